"""Matrices on disk that are filled by groups of rows, each durable once it is there."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepspace.core.errors import DiskError
from deepspace.core.resume import GROUPS_DONE

Rows = NDArray[np.float32]
Index = NDArray[np.int64]

_NOTE = re.compile(rb"(\d+) ([0-9a-f]{8})")
_SIZE = np.dtype(np.float32).itemsize


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say what to do about a disk that is full or refuses to be written.

    Raises
    ------
    DiskError
        Instead of any `OSError` inside the block.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{path}: cannot be written ({error.strerror or error}); make room, or mend what is "
            "wrong with the disk, and repeat the command: what is done stays"
        ) from error


class RowStore:
    """Float32 matrices with the same rows, filled group by group in any order.

    A group is written, brought to the disk and then noted in a manifest with its checksum, so
    that after a crash at any moment a group is there whole or not at all.

    Parameters
    ----------
    folder : Path
        Where the files lie; those of an interrupted run are taken up.
    widths : mapping
        Columns of each matrix, by name.
    groups : sequence of ndarray
        Row numbers of each group; every row in exactly one of them.

    Raises
    ------
    DiskError
        If there is no room for all of it.

    Examples
    --------
    >>> import tempfile
    >>> groups = [np.array([0, 2]), np.array([1])]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = RowStore(Path(folder), {"mean": 2}, groups)
    ...     store.put(0, {"mean": np.ones((2, 2))})
    ...     again = RowStore(Path(folder), {"mean": 2}, groups)
    ...     again.missing(), again.read("mean", 0, 3).tolist()
    ([1], [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    """

    def __init__(self, folder: Path, widths: Mapping[str, int], groups: Sequence[Index]) -> None:
        self.folder, self.widths, self.groups = folder, dict(widths), list(groups)
        self.n_rows = sum(len(group) for group in self.groups)
        with disk_errors(folder):
            for name, width in self.widths.items():
                _reserve(self._path(name), self.n_rows * width * _SIZE)
        self._done = self._take_up()

    def missing(self) -> list[int]:
        """Numbers of the groups that are still to be filled."""
        return [k for k in range(len(self.groups)) if k not in self._done]

    def put(self, group: int, values: Mapping[str, NDArray[np.floating]]) -> None:
        """Write a group: by matrix, values of shape (rows of the group, columns)."""
        index, check = self.groups[group], 0
        with disk_errors(self.folder):
            for name, width in self.widths.items():
                rows = np.ascontiguousarray(values[name], np.float32).reshape(len(index), width)
                self._write(name, index, rows)
                check = zlib.crc32(rows.data, check)
            with (self.folder / GROUPS_DONE).open("ab") as manifest:
                manifest.write(b"%d %08x\n" % (group, check))
                manifest.flush()
                os.fsync(manifest.fileno())
        self._done.add(group)

    def read(self, name: str, start: int, stop: int) -> Rows:
        """Rows `start` to `stop` of a matrix, shape (stop - start, columns)."""
        width = self.widths[name]
        with self._path(name).open("rb") as stream:
            stream.seek(start * width * _SIZE)
            flat = np.fromfile(stream, np.float32, (stop - start) * width)
        return flat.reshape(stop - start, width)

    def columns(self, name: str, chosen: Sequence[int]) -> Rows:
        """Some columns of all rows, shape (rows, chosen), read band by band."""
        bands = [self.read(name, *band)[:, list(chosen)] for band in self.bands(name)]
        return np.concatenate([np.empty((0, len(chosen)), np.float32), *bands])

    def bands(self, name: str, values: int = 4 * 2**20) -> list[tuple[int, int]]:
        """First and last row of pieces of a matrix that hold about so many values."""
        step = max(1, values // max(1, self.widths[name]))
        return [(k, min(k + step, self.n_rows)) for k in range(0, self.n_rows, step)]

    def _write(self, name: str, index: Index, rows: Rows) -> None:
        breaks = np.flatnonzero(np.diff(index) != 1) + 1
        with self._path(name).open("r+b") as stream:
            for run in np.split(np.arange(len(index)), breaks):
                if len(run):
                    stream.seek(int(index[run[0]]) * self.widths[name] * _SIZE)
                    stream.write(rows[run[0] : run[-1] + 1].data)
            stream.flush()
            os.fsync(stream.fileno())

    def _take_up(self) -> set[int]:
        """Groups of an interrupted run whose rows are what the manifest says."""
        try:
            text = (self.folder / GROUPS_DONE).read_bytes()
        except FileNotFoundError:
            return set()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:  # the last line was cut by the crash: the next must not run on from it
            (self.folder / GROUPS_DONE).write_bytes(whole)
        noted = (_NOTE.fullmatch(line) for line in whole.splitlines())
        found = ((int(note[1]), note[2].decode()) for note in noted if note is not None)
        return {k for k, check in found if k < len(self.groups) and self._check(k) == check}

    def _check(self, group: int) -> str:
        index, check = self.groups[group], 0
        for name in self.widths:
            matrix = self._mapped(name)
            check = zlib.crc32(np.ascontiguousarray(matrix[index]).data, check)
        return f"{check:08x}"

    def _mapped(self, name: str) -> Rows:
        shape = (self.n_rows, self.widths[name])
        if not all(shape):
            return np.empty(shape, np.float32)
        return np.memmap(self._path(name), np.float32, "r", shape=shape)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.f32"


def _reserve(path: Path, size: int) -> None:
    """Make a file of this size with real room on the disk, or keep the one that is there."""
    if path.exists() and path.stat().st_size == size:
        return
    with path.open("w+b") as stream:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
        else:
            stream.truncate(size)
