"""Freed memory that is used again at once.

Maps of a network are tens of megabytes that come and go many times a second. The C library asks
the system anew for each, and every page of it costs a fault: a quarter of the time of VGG16.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

# parameters of mallopt(3) in glibc
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# blocks up to the first come from memory of the process, which keeps the second at most of what
# is free at its end
_REUSED = (256 << 20, 512 << 20)
# what glibc comes to by itself in a process of large arrays
_USUAL = (32 << 20, 64 << 20)
# how a user sets the same; the number of arenas (MALLOC_ARENA_MAX) is another matter
_OF_THE_USER = (
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)
# what dask starts its workers with, whose user has set nothing
_OF_DASK = ("MALLOC_TRIM_THRESHOLD_", "65536")


@contextmanager
def freed_memory_reused() -> Iterator[None]:
    """Let this process keep what it frees; what is left over goes back at the end.

    Nothing is changed where the C library is not glibc, or is too old for it, or where the user
    has set the same (``MALLOC_TRIM_THRESHOLD_`` and others).
    """
    libc = _glibc()
    # versions that refuse the first threshold would get slower by the second alone
    kept = libc is not None and _set(libc, _REUSED)
    try:
        yield
    finally:
        if libc is not None and kept:
            _set(libc, _USUAL)
            libc.malloc_trim(0)


def _set(libc: Any, thresholds: tuple[int, int]) -> bool:
    largest, free = thresholds
    return bool(libc.mallopt(_MMAP_THRESHOLD, largest) and libc.mallopt(_TRIM_THRESHOLD, free))


@cache
def _glibc() -> Any:
    given = {(name, os.environ[name]) for name in _OF_THE_USER if name in os.environ}
    if given - {_OF_DASK} or not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
