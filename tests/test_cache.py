"""The cache of arrays on disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepspace.core.errors import InputError
from deepspace.data.cache import ArrayCache, content_key

ARRAY = np.arange(1000, dtype=np.float32).reshape(20, 50)


def never() -> np.ndarray:
    raise AssertionError("it should have been stored")


def put(cache: ArrayCache, name: str, array: np.ndarray = ARRAY) -> np.ndarray:
    return cache.get({"name": name}, lambda: array)


def test_stored_once_and_equal(tmp_path: Path) -> None:
    put(ArrayCache(tmp_path), "a")
    again = ArrayCache(tmp_path).get({"name": "a"}, never)
    assert again.dtype == ARRAY.dtype
    assert np.array_equal(again, ARRAY)


@pytest.mark.parametrize("array", [np.zeros((0, 3), np.uint8), np.array(2.5), ARRAY.T])
def test_any_shape(tmp_path: Path, array: np.ndarray) -> None:
    cache = ArrayCache(tmp_path)
    put(cache, "a", array)
    assert np.array_equal(cache.get({"name": "a"}, never), array)
    assert cache.notes == []


@given(
    recipe=st.dictionaries(
        st.text(max_size=5), st.integers() | st.floats(allow_nan=False, allow_infinity=False),
        max_size=6,
    )
)  # fmt: skip
def test_key_ignores_order_and_sees_every_change(recipe: dict[str, float]) -> None:
    assert content_key(dict(reversed(recipe.items()))) == content_key(recipe)
    assert content_key({**recipe, "one more": 1}) != content_key(recipe)


def test_key_sees_values_types_and_shapes_of_arrays() -> None:
    a = np.arange(6.0)
    variants = [a, a + 1, a.reshape(2, 3), a.astype(np.float32), a[::-1]]
    assert len({content_key({"coords": v}) for v in variants}) == 5
    assert content_key({"coords": a}) == content_key({"coords": np.arange(12.0)[:6]})


def test_key_refuses_what_it_cannot_hash() -> None:
    with pytest.raises(TypeError, match="cannot hold"):
        content_key({"x": object()})
    with pytest.raises(ValueError, match="JSON"):
        content_key({"x": float("nan")})


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "pickle"])
def test_damaged_entry_is_made_again_and_told(tmp_path: Path, damage: str) -> None:
    cache = ArrayCache(tmp_path)
    put(cache, "a")
    (path,) = tmp_path.rglob("*.npy")
    content = path.read_bytes()
    if damage == "pickle":
        np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        path.write_bytes({"cut": content[:300], "flip": flipped, "text": b"hello"}[damage])
    assert np.array_equal(put(cache, "a"), ARRAY)
    assert len(cache.notes) == 1
    assert "damaged" in cache.notes[0]
    assert np.array_equal(cache.get({"name": "a"}, never), ARRAY)


def test_bound_lets_the_least_used_go(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path, max_bytes=3 * (ARRAY.nbytes + 200))
    for number, name in enumerate("abc"):
        put(cache, name)
        newest = max(tmp_path.rglob("*.npy"), key=lambda p: p.stat().st_mtime_ns)
        os.utime(newest, (number + 1, number + 1))
    cache.get({"name": "a"}, never)  # used just now
    put(cache, "d")
    assert sum(p.stat().st_size for p in tmp_path.rglob("*.npy")) <= cache.max_bytes
    for name in "acd":
        cache.get({"name": name}, never)
    assert put(cache, "b", ARRAY + 1)[0, 0] == 1


def test_too_large_is_given_but_not_stored(tmp_path: Path) -> None:
    put(ArrayCache(tmp_path, max_bytes=100), "a")
    assert not list(tmp_path.rglob("*.npy"))


def test_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    cache = ArrayCache(blocked)
    assert np.array_equal(put(cache, "a"), ARRAY)
    assert any("nothing is cached" in note for note in cache.notes)


def test_failure_while_computing_leaves_nothing(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)

    def fail() -> np.ndarray:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        cache.get({"name": "a"}, fail)
    assert not any(p.is_file() for p in tmp_path.rglob("*"))


def fill(array: np.memmap) -> None:
    for row in range(len(array)):
        array[row] = ARRAY[row]


def never_fill(array: np.memmap) -> None:
    raise AssertionError("it should have been stored")


def mapped(cache: ArrayCache, name: str = "a", by=fill) -> np.memmap:
    return cache.mapped({"name": name}, ARRAY.shape, ARRAY.dtype, by)


def test_mapped_is_filled_once_and_only_read(tmp_path: Path) -> None:
    first = mapped(ArrayCache(tmp_path))
    again = mapped(ArrayCache(tmp_path), by=never_fill)
    assert isinstance(again, np.memmap)
    assert np.array_equal(first, ARRAY)
    assert np.array_equal(again, ARRAY)
    assert not again.flags.writeable


def test_mapped_and_whole_arrays_of_one_recipe_do_not_meet(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    put(cache, "a", ARRAY + 1)
    assert np.array_equal(mapped(cache), ARRAY)
    assert np.array_equal(cache.get({"name": "a"}, never), ARRAY + 1)
    assert cache.notes == []


@pytest.mark.parametrize("damage", ["cut", "grown", "text", "other shape", "other type"])
def test_damaged_map_is_made_again_and_told(tmp_path: Path, damage: str) -> None:
    cache = ArrayCache(tmp_path)
    mapped(cache)
    (path,) = tmp_path.rglob("*.npy")
    content = path.read_bytes()
    if damage.startswith("other"):
        np.save(path, ARRAY.T if damage == "other shape" else ARRAY.astype(np.int32))
    else:
        bad = {"cut": content[:-8], "grown": content + b"x", "text": b"hello"}[damage]
        path.write_bytes(bad)
    assert np.array_equal(mapped(cache), ARRAY)
    assert len(cache.notes) == 1
    assert np.array_equal(mapped(cache, by=never_fill), ARRAY)


def test_interrupted_fill_leaves_nothing(tmp_path: Path) -> None:
    def half(array: np.memmap) -> None:
        array[:10] = 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mapped(ArrayCache(tmp_path), by=half)
    assert not any(p.is_file() for p in tmp_path.rglob("*"))
    assert np.array_equal(mapped(ArrayCache(tmp_path)), ARRAY)


def test_error_of_the_fill_is_its_own(tmp_path: Path) -> None:
    def unread(array: np.memmap) -> None:
        raise FileNotFoundError("slide.tif")

    with pytest.raises(FileNotFoundError, match=r"slide\.tif"):
        mapped(ArrayCache(tmp_path), by=unread)


def test_mapped_arrays_are_bounded_and_live_on_while_used(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path, max_bytes=2 * (ARRAY.nbytes + 200))
    arrays = [mapped(cache, name) for name in "abc"]
    assert len(list(tmp_path.rglob("*.npy"))) == 2
    assert all(np.array_equal(array, ARRAY) for array in arrays)
    large = mapped(ArrayCache(tmp_path / "small", max_bytes=100))
    assert np.array_equal(large, ARRAY)
    assert not list((tmp_path / "small").rglob("*.npy"))


def test_map_that_does_not_fit_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=ARRAY.nbytes - 1)
    monkeypatch.setattr("deepspace.data.cache.shutil.disk_usage", lambda _: full)
    with pytest.raises(InputError, match="set DEEPSPACE_CACHE"):
        mapped(ArrayCache(tmp_path), by=never_fill)
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with pytest.raises(InputError, match="cannot be written"):
        mapped(ArrayCache(blocked), by=never_fill)


def test_what_a_dead_process_left_goes_after_a_day(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    mapped(cache)
    (path,) = tmp_path.rglob("*.npy")
    path.unlink()
    old, new = (path.with_name(f".{path.stem}-{name}.npy") for name in ("old", "new"))
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    mapped(cache)
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([new.name, path.name])
