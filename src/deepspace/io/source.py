"""What every image backend gives to `Slide`, and the tile cache that they share."""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

MAX_WHOLE_IMAGE = 1_000_000_000
"""Pixels that a format without random access may have: it is decoded whole."""

_PLAUSIBLE = (0.02, 40.0)


@dataclass(frozen=True)
class Scale:
    """Micrometres per pixel as one file states it, or why it does not.

    Attributes
    ----------
    mpp
        Micrometres per full-resolution pixel, or None when the file does not say.
    source
        Where the value stands in the file.
    notes
        What a user should hear: values that were ignored or that disagree.
    """

    mpp: float | None = None
    source: str | None = None
    notes: tuple[str, ...] = ()


class PixelSource(Protocol):
    """A file format: knows its levels, and reads windows that lie inside them."""

    sizes: tuple[tuple[int, int], ...]
    """Width and height of each level, the full resolution first."""
    blocks: tuple[tuple[int, int], ...]
    """Width and height of the smallest unit that is decoded at once, for each level."""
    downsamples: tuple[float, ...]
    scale: Scale
    notes: tuple[str, ...]
    identity: str
    """Text that belongs to the content besides the bytes of the file, often empty."""

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image:
        """Return a window, shape (height, width, 3), that lies wholly inside the level."""

    def close(self) -> None:
        """Give back the file."""


def downsample_of(full: tuple[int, int], size: tuple[int, int]) -> float:
    """Full-resolution pixels per pixel of a level.

    Scanners halve and drop the odd row, so that 4443 x 3567 becomes 2221 x 1783: the ratio of
    the widths is not the step. A whole number that explains both sizes is taken.

    Examples
    --------
    >>> downsample_of((4443, 3567), (2221, 1783))
    2.0
    >>> downsample_of((1000, 500), (400, 200))
    2.5
    """
    ratio = (full[0] / size[0] + full[1] / size[1]) / 2
    step = max(1, round(ratio))
    exact = all(abs(f / step - s) < 1 for f, s in zip(full, size, strict=True))
    return float(step) if exact else ratio


def plausible(mpp: float) -> bool:
    """Whether a slide scanner or a Visium low-resolution image could have this pixel size.

    Examples
    --------
    >>> plausible(25400 / 72)  # the 72 dpi that every picture editor writes
    False
    """
    return math.isfinite(mpp) and _PLAUSIBLE[0] <= mpp <= _PLAUSIBLE[1]


def per_axis(x: float, y: float, where: str) -> Scale:
    """Make one `Scale` of the pixel width and height (um) that stand at `where`."""
    if not (plausible(x) and plausible(y)):
        return Scale(notes=(f"{where} says {x:.4g} um/px, which no slide has: ignored",))
    if abs(x - y) > 0.05 * min(x, y):
        return Scale(notes=(f"{where} gives pixels of {x:.4g} x {y:.4g} um, not square: ignored",))
    return Scale((x + y) / 2, where)


def jpeg_is_whole(data: bytes) -> bool:
    r"""Whether the image data of a JPEG stream are closed by an end marker.

    Decoders fill the rest of a cut picture with grey and say nothing.

    Examples
    --------
    >>> jpeg_is_whole(b"\xff\xd8\xff\xda...\xff\xd9")
    True
    >>> jpeg_is_whole(b"\xff\xd8\xff\xda...")
    False
    """
    # the last start of a scan: embedded previews come before it
    return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")


def threads() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ArrayLRU:
    """Thread-safe cache of images, least recently used out first, bounded in bytes.

    An image that several threads ask for at once is made once.

    Parameters
    ----------
    max_bytes
        Bytes of finished images kept. The newest one stays even when it alone is larger.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, Future[Image]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Image]) -> Image:
        """Return the image of `key`, calling `make` when it is not there."""
        with self._lock:
            entry = self._entries.get(key)
            owner = entry is None
            if entry is None:
                entry = self._entries[key] = Future()
            self._entries.move_to_end(key)
        if owner:
            self._fill(key, entry, make)
        return entry.result()

    def _fill(self, key: Hashable, entry: Future[Image], make: Callable[[], Image]) -> None:
        try:
            image = make()
        except BaseException as error:
            with self._lock:
                self._entries.pop(key, None)
            entry.set_exception(error)
            return
        image.flags.writeable = False
        entry.set_result(image)
        with self._lock:
            self.bytes += image.nbytes
            self._evict(keep=key)

    def _evict(self, keep: Hashable) -> None:
        # entries still being made have no size yet and are passed over
        for key in list(self._entries):
            if self.bytes <= self.max_bytes:
                return
            if key != keep and self._entries[key].done():
                self.bytes -= self._entries.pop(key).result().nbytes

    def clear(self) -> None:
        """Forget every finished image."""
        with self._lock:
            for key in [k for k, entry in self._entries.items() if entry.done()]:
                self.bytes -= self._entries.pop(key).result().nbytes
