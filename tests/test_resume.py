"""A run goes on where it was stopped, and never mixes with another one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from deepspace.core import resume
from deepspace.core.errors import InputError
from deepspace.core.resume import GROUPS_DONE, STAMP, partial_folder, resumable_folder


def dying(path: Path, stamp: dict[str, int]) -> None:
    """A run that writes its first step and dies."""
    with resumable_folder(path, stamp, overwrite=False) as folder:
        (folder / "first").write_text("1")
        (folder / ".second-x").write_text("half")
        raise KeyboardInterrupt


def interrupted(path: Path, stamp: dict[str, int]) -> None:
    """Start and kill it."""
    with pytest.raises(KeyboardInterrupt):
        dying(path, stamp)


def test_nothing_appears_before_all_is_done(tmp_path: Path) -> None:
    interrupted(tmp_path / "out", {"seed": 0})
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted(out, {"seed": 0})
    with resumable_folder(out, {"seed": 0}, overwrite=False) as folder:
        assert (folder / "first").read_text() == "1"
        assert not (folder / ".second-x").exists()
        (folder / "second").write_text("2")
    assert sorted(p.name for p in out.iterdir()) == ["first", STAMP, "second"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_run_of_something_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted(out, {"seed": 0})
    with (
        pytest.raises(InputError, match="unfinished run"),
        resumable_folder(out, {"seed": 1}, overwrite=False),
    ):
        pass
    assert (partial_folder(out) / "first").exists()
    with resumable_folder(out, {"seed": 1}, overwrite=True) as folder:
        assert not (folder / "first").exists()


@pytest.mark.parametrize("left", [".run-x.json", "groups/0.npy"])
def test_a_folder_killed_while_it_was_made_or_removed_is_begun_anew(
    tmp_path: Path, left: str
) -> None:
    file = partial_folder(tmp_path / "out") / left
    file.parent.mkdir(parents=True)
    file.write_text("half")
    with resumable_folder(tmp_path / "out", {"seed": 1}, overwrite=False) as partial:
        assert not file.exists()
        (partial / "a.txt").write_text("a")
    assert (tmp_path / "out" / "a.txt").read_text() == "a"


def test_a_finished_result_stays_until_the_next_is_done(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with resumable_folder(out, {"seed": 0}, overwrite=False) as folder:
        (folder / "old").write_text("old")
    with resumable_folder(out, {"seed": 1}, overwrite=True) as folder:
        assert (out / "old").exists()
        (folder / "new").write_text("new")
    assert sorted(p.name for p in out.iterdir()) == ["new", STAMP]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_run_left_beside_does_not_stop_the_next(tmp_path: Path) -> None:
    out, left = tmp_path / "out", tmp_path / ".out-old"
    for folder in (out, left):
        folder.mkdir()
        (folder / "file").write_text("of an earlier run")
    with resumable_folder(out, {"seed": 1}, overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert sorted(p.name for p in out.iterdir()) == ["new", STAMP]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_systems_without_locks_go_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "fcntl", None)
    interrupted(tmp_path / "out", {"seed": 0})
    with resumable_folder(tmp_path / "out", {"seed": 0}, overwrite=False) as folder:
        assert (folder / "first").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("seed", [0, 1])
def test_two_runs_do_not_work_in_one_folder(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("fcntl")
    out = tmp_path / "out"
    with resumable_folder(out, {"seed": 0}, overwrite=False) as folder:
        (folder / ".step-x").write_text("half of a step")
        with (
            pytest.raises(InputError, match="another run is at work"),
            resumable_folder(out, {"seed": seed}, overwrite=True),
        ):
            pass
        assert (folder / ".step-x").exists()


def test_a_lock_that_was_removed_in_between_is_not_held_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened while another run still held it, then removed by that run: it locks nothing."""
    fcntl = pytest.importorskip("fcntl")
    out, real, inodes = tmp_path / "out", fcntl.flock, []

    def flock(stream: Any, how: int) -> None:
        if not inodes:
            (tmp_path / ".out.lock").unlink()
        inodes.append(os.fstat(stream.fileno()).st_ino)
        real(stream, how)

    monkeypatch.setattr(resume.fcntl, "flock", flock)
    with resumable_folder(out, {"seed": 0}, overwrite=False):
        assert (tmp_path / ".out.lock").stat().st_ino == inodes[-1]
    assert len(inodes) == 2


def test_groups_that_are_done_outlive_a_refusal(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused() -> None:
        with resumable_folder(out, {"seed": 0}, overwrite=False) as folder:
            (folder / GROUPS_DONE).write_text("0 00000000\n")
            raise InputError("a tile cannot be read just now")

    with pytest.raises(InputError, match="just now"):
        refused()
    assert (partial_folder(out) / GROUPS_DONE).exists()


def test_a_refused_run_leaves_nothing_and_what_differs_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused() -> None:
        with resumable_folder(out, {"seed": 0}, overwrite=False):
            raise InputError("wrong genes")

    with pytest.raises(InputError, match="wrong genes"):
        refused()
    assert not list(tmp_path.iterdir())
    interrupted(out, {"seed": 0})
    with pytest.raises(InputError, match="wrong genes"):
        refused()
    assert (partial_folder(out) / "first").exists()  # what an earlier run did stays
    with (
        pytest.raises(InputError, match=r"\(config\.genes, seed\)"),
        resumable_folder(out, {"seed": 1, "config": {"genes": 2}}, overwrite=False),
    ):
        pass
