"""A picture in memory as a slide, for the copies of slides that AnnData files hold."""

from __future__ import annotations

from pathlib import Path

from deepspace.io.slide import Level, Slide
from deepspace.io.source import Image, Scale


class _ArraySource:
    """One level of pixels that are there already; see `deepspace.io.source.PixelSource`."""

    sizes: tuple[tuple[int, int], ...]
    blocks: tuple[tuple[int, int], ...]
    downsamples: tuple[float, ...]

    def __init__(self, image: Image) -> None:
        height, width = image.shape[:2]
        self._image = image
        self.sizes = ((width, height),)
        self.blocks = ((width, height),)
        self.downsamples = (1.0,)
        self.scale = Scale()
        self.notes: tuple[str, ...] = ()
        self.identity = ""

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image:
        """Return a window."""
        del level  # there is one
        return self._image[y : y + height, x : x + width]

    def close(self) -> None:
        """Nothing to give back."""


def slide_from_array(image: Image, mpp: float, path: Path, source: str) -> Slide:
    """Wrap a picture as a `Slide` of one level.

    Parameters
    ----------
    image
        uint8 of shape (height, width, 3).
    mpp
        Micrometres per pixel of the picture.
    path
        File that it came from, for messages.
    source
        Where `mpp` comes from.

    Examples
    --------
    >>> import numpy as np
    >>> slide = slide_from_array(np.zeros((4, 6, 3), np.uint8), 2.0, Path("a.h5ad"), "the file")
    >>> slide.width, slide.height, slide.mpp
    (6, 4, 2.0)
    """
    height, width = image.shape[:2]
    slide = Slide(path, None, None, (Level(width, height, 1.0),), (), _ArraySource(image))
    return slide.with_mpp(mpp, source)
