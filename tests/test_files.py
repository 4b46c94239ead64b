"""Outputs appear whole or not at all."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from deepspace.core.errors import InputError, Problems
from deepspace.core.files import atomic_folder, atomic_path, check_output


def fail_inside(output: AbstractContextManager[Path]) -> None:
    with output as temporary:
        half = temporary / "half" if temporary.is_dir() else temporary
        half.write_text("half")
        raise RuntimeError


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        fail_inside(atomic_path(path))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    for text in ("first", "second"):
        with atomic_folder(folder) as temporary:
            (temporary / "x").write_text(text)
        assert (folder / "x").read_text() == text
    with pytest.raises(RuntimeError):
        fail_inside(atomic_folder(folder))
    assert [p.name for p in folder.iterdir()] == ["x"]
    assert list(tmp_path.iterdir()) == [folder]


def test_existing_output_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    check_output(path, overwrite=False)
    path.write_text("old")
    with pytest.raises(InputError, match="--overwrite"):
        check_output(path, overwrite=False)
    check_output(path, overwrite=True)
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", overwrite=False)
    with pytest.raises(InputError, match="cannot write"):
        check_output(path / "below-a-file", overwrite=False)


def test_problems_come_together() -> None:
    problems = Problems("f.csv")
    problems.raise_if_any()
    with problems.collect():
        raise InputError("first")
    problems.add("second")
    with pytest.raises(InputError, match=r"f.csv: 2 problems\n  - first\n  - second"):
        problems.raise_if_any()


def test_only_own_folders_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "slide.tif").write_text("mine")
    with pytest.raises(InputError, match=r"holds no model\.json"):
        check_output(folder, overwrite=True, marker="model.json")
    with pytest.raises(InputError, match="is a folder"):
        check_output(folder, overwrite=True)
    (folder / "model.json").write_text("{}")
    check_output(folder, overwrite=True, marker="model.json")
    with pytest.raises(InputError, match="is a file"):
        check_output(folder / "slide.tif", overwrite=True, marker="model.json")
