"""Matrices on disk that outlive a crash."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepspace.core.errors import DiskError
from deepspace.core.resume import GROUPS_DONE
from deepspace.core.rows import RowStore, disk_errors

WIDTHS = {"mean": 3, "sd": 1}


def some_groups(rows: int, parts: int, seed: int) -> list[np.ndarray]:
    order = np.random.default_rng(seed).permutation(rows)
    return [np.sort(part) for part in np.array_split(order, parts)]


def some_values(rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(rows, width)) for name, width in WIDTHS.items()}


def put(store: RowStore, group: int, whole: dict[str, np.ndarray]) -> None:
    store.put(group, {name: v[store.groups[group]] for name, v in whole.items()})


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 99), st.data())
def test_rows_come_back_in_any_order_and_over_any_break(
    rows: int, parts: int, seed: int, data: st.DataObject
) -> None:
    groups, whole = some_groups(rows, parts, seed), some_values(rows, seed)
    turns = data.draw(st.permutations(range(parts)))
    stop = data.draw(st.integers(0, parts))
    with TemporaryDirectory() as name:
        store = RowStore(Path(name), WIDTHS, groups)
        for k in turns[:stop]:
            put(store, k, whole)
        again = RowStore(Path(name), WIDTHS, groups)
        assert again.missing() == sorted(turns[stop:])
        for k in again.missing():
            put(again, k, whole)
        for name_, values in whole.items():
            expected = values.astype(np.float32)
            np.testing.assert_array_equal(again.read(name_, 0, rows), expected)
            np.testing.assert_array_equal(again.columns(name_, [0]), expected[:, :1])
            bands = [again.read(name_, *band) for band in again.bands(name_, 7)]
            np.testing.assert_array_equal(np.concatenate(bands), expected)


def filled(folder: Path) -> RowStore:
    store = RowStore(folder, WIDTHS, some_groups(20, 4, 0))
    for k in range(4):
        put(store, k, some_values(20, 0))
    return store


def test_a_line_cut_by_a_crash_does_not_count(tmp_path: Path) -> None:
    filled(tmp_path)
    manifest = tmp_path / GROUPS_DONE
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-3])
    again = RowStore(tmp_path, WIDTHS, some_groups(20, 4, 0))
    assert again.missing() == [3]
    put(again, 3, some_values(20, 0))
    assert manifest.read_bytes() == whole


def test_rows_that_are_not_what_was_written_are_missing(tmp_path: Path) -> None:
    store = filled(tmp_path)
    row = int(store.groups[2][0])
    with (tmp_path / "mean.f32").open("r+b") as stream:
        stream.seek(row * 3 * 4)
        stream.write(b"\1\2\3\4")
    assert RowStore(tmp_path, WIDTHS, store.groups).missing() == [2]


def test_nothing_to_predict_is_nothing(tmp_path: Path) -> None:
    store = RowStore(tmp_path, {"mean": 2}, [])
    assert store.missing() == []
    assert store.columns("mean", [1]).shape == (0, 1)


def test_a_full_disk_is_told_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskError, match=r"No space left.*make room"):
        RowStore(tmp_path, WIDTHS, some_groups(20, 4, 0))


def test_other_errors_of_the_disk_are_told_alike(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="Read-only"), disk_errors(tmp_path):
        raise OSError(errno.EROFS, "Read-only file system")
