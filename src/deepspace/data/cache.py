"""Arrays on disk under the hash of everything that made them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from deepspace.core.errors import InputError
from deepspace.core.files import atomic_path
from deepspace.core.progress import log_once

Mapped = np.memmap[Any, np.dtype[Any]]

_STALE_S = 86400.0  # an unfinished file this old is left from a process that died
_CURE = "make room, or set DEEPSPACE_CACHE to a folder on another disk"


def content_key(recipe: Mapping[str, Any]) -> str:
    """Hash a recipe: SHA-256 of its canonical JSON; arrays count by type, shape and bytes.

    Examples
    --------
    >>> content_key({"fov_um": 112, "px": 224}) == content_key({"px": 224, "fov_um": 112})
    True
    """
    text = json.dumps(
        recipe, sort_keys=True, separators=(",", ":"), default=_plain, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "shape": value.shape, "sha256": _checksum(value)}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a cache recipe cannot hold {type(value).__name__}")


class ArrayCache:
    """A folder of arrays, least recently used out first, bounded in bytes.

    Parameters
    ----------
    folder
        Made when the first array is stored. It holds nothing that cannot be made again.
    max_bytes
        Bytes kept; an array larger than this is given but not stored.

    Attributes
    ----------
    notes
        What went wrong and was mended: damaged entries, a folder that cannot be written.
    """

    def __init__(self, folder: Path, max_bytes: int = 8 << 30) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.notes: list[str] = []

    def get(self, recipe: Mapping[str, Any], make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the array of `recipe`; call `make` and store its result when there is none.

        Parameters
        ----------
        recipe
            Everything that the array depends on: content hashes, sizes, coordinates, versions.
        make
            Computes it.
        """
        path = self._path(content_key(recipe))
        stored = self._load(path)
        if stored is not None:
            return stored
        array = make()
        if array.nbytes <= self.max_bytes:
            self._store(path, array)
        return array

    def has(self, recipe: Mapping[str, Any]) -> bool:
        """Whether there is an array of `recipe`; it may be damaged."""
        return self._path(content_key(recipe)).exists()

    def peek(self, recipe: Mapping[str, Any]) -> NDArray[Any] | None:
        """Return the array of `recipe` if there is one."""
        return self._load(self._path(content_key(recipe)))

    def put(self, recipe: Mapping[str, Any], array: NDArray[Any]) -> None:
        """Store the array of `recipe` in place of another."""
        self._store(self._path(content_key(recipe)), array)

    def mapped(
        self,
        recipe: Mapping[str, Any],
        shape: tuple[int, ...],
        dtype: DTypeLike,
        fill: Callable[[Mapped], None],
    ) -> Mapped:
        """Return the array of `recipe` as a read-only map of its file, never whole in memory.

        When there is none, `fill` writes it piece by piece into a new file, which takes its name
        once it is complete. Opening checks type, shape and size, not every byte. An array larger
        than `max_bytes` is gone once it is no longer used.

        Parameters
        ----------
        recipe
            Everything that the array depends on, as for `get`.
        shape, dtype
            Of the array.
        fill
            Writes all of the array that it is given.

        Raises
        ------
        InputError
            If the folder cannot hold the array.
        """
        path = self._path(content_key({"mapped": dict(recipe)}))
        stored = self._open(path, shape, np.dtype(dtype))
        if stored is not None:
            return stored
        array = self._write(path, shape, np.dtype(dtype), fill)
        if array.nbytes > self.max_bytes:
            path.unlink(missing_ok=True)  # what is mapped stays until it is let go
        else:
            self._evict()
        return array

    def _open(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Mapped | None:
        try:
            array: Mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"it is {array.dtype} {array.shape}")
            if path.stat().st_size != array.offset + array.nbytes:
                raise ValueError("its size is wrong")
            _touch(path)
        except FileNotFoundError:
            return None
        except (ValueError, OSError, EOFError) as error:
            self._note(f"{path}: cached array is damaged ({error}); it is computed again")
            return None
        return array

    def _write(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        fill: Callable[[Mapped], None],
    ) -> Mapped:
        with ExitStack() as stack:
            with self._can_be_written():
                self._make_room(path, math.prod(shape) * dtype.itemsize)
                temporary = stack.enter_context(atomic_path(path))
                array: Mapped = np.lib.format.open_memmap(temporary, "w+", dtype, shape)
            fill(array)
            array.flush()
            # opened before it has its name: from then on another process may evict it
            stored: Mapped = np.load(temporary, mmap_mode="r", allow_pickle=False)
        return stored

    @contextmanager
    def _can_be_written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error}); {_CURE}") from error

    def _make_room(self, path: Path, size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.stem}-*{path.suffix}"):
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _STALE_S:
                    left.unlink()
        free = shutil.disk_usage(path.parent).free
        if free < size:  # a full disk would end the process while it writes into the map
            raise InputError(
                f"{self.folder}: {size / 1e9:.1f} GB are needed, {free / 1e9:.1f} are free; {_CURE}"
            )

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"

    def _load(self, path: Path) -> NDArray[Any] | None:
        try:
            array: NDArray[Any] = np.load(path, allow_pickle=False)
            if _checksum(array) != _sum_file(path).read_text():
                raise ValueError("its checksum is wrong")
            _touch(path)
        except FileNotFoundError:
            return None
        except (ValueError, OSError, EOFError) as error:
            self._note(f"{path}: cached array is damaged ({error}); it is computed again")
            return None
        return array

    def _store(self, path: Path, array: NDArray[Any]) -> None:
        try:
            with atomic_path(path) as temporary, temporary.open("wb") as stream:
                np.save(stream, array, allow_pickle=False)
            with atomic_path(_sum_file(path)) as temporary:
                temporary.write_text(_checksum(array))
            self._evict()
        except OSError as error:
            self._note(f"{self.folder}: cannot be written ({error}); nothing is cached")

    def _note(self, text: str) -> None:
        self.notes.append(text)
        log_once(f"cache: {text}")

    def _evict(self) -> None:
        files = []
        for path in self._files():
            with suppress(FileNotFoundError):  # other processes evict, too
                files.append((path, path.stat()))
        total = sum(stat.st_size for _, stat in files)
        for path, stat in sorted(files, key=lambda item: item[1].st_mtime_ns):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            _sum_file(path).unlink(missing_ok=True)
            total -= stat.st_size

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob("??/*.npy") if not path.name.startswith(".")]


def _checksum(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _touch(path: Path) -> None:
    """Note the time of use, which decides what goes first; the file may be another user's."""
    with suppress(OSError):
        os.utime(path)


def _sum_file(path: Path) -> Path:
    return path.with_suffix(".sha256")
