"""DeepZoom tiles of a slide, cut on demand from its pyramid."""

from __future__ import annotations

import math
import threading
from functools import lru_cache

import imagecodecs
import numpy as np
from PIL import Image as PillowImage

from deepspace.io.slide import Slide
from deepspace.io.source import Image

TILE = 256
QUALITY = 85
# some 100 MB of tiles
KEPT = 4096
# below the pyramid, tiles come from one picture of the whole slide: its coarsest level, or of this
# size at most
OVERVIEW_PX = 4096


class TileSource:
    """Tiles of one slide; level 0 is one pixel, the last one the full resolution.

    Parameters
    ----------
    slide : Slide
        Read from several threads.
    downsample : float
        Pixels of the shown image per pixel of `slide`, where that is but a small copy of it.

    Examples
    --------
    >>> from deepspace.io.memory import slide_from_array
    >>> from pathlib import Path
    >>> slide = slide_from_array(np.zeros((300, 500, 3), np.uint8), 1.0, Path("a"), "doctest")
    >>> source = TileSource(slide)
    >>> source.max_level, source.columns_rows(source.max_level)
    (9, (2, 2))
    """

    def __init__(self, slide: Slide, downsample: float = 1.0) -> None:
        self.slide = slide
        self._downsample = downsample
        self.width = round(slide.width * downsample)
        self.height = round(slide.height * downsample)
        self.mpp = None if slide.mpp is None else slide.mpp / downsample
        self.max_level = max(0, math.ceil(math.log2(max(self.width, self.height))))
        self._lock = threading.Lock()
        self._overview: tuple[Image, float] | None = None

    def columns_rows(self, level: int) -> tuple[int, int]:
        """Number of tiles side by side, and one above the other."""
        step = TILE * 2 ** (self.max_level - level)
        return math.ceil(self.width / step), math.ceil(self.height / step)

    def tile(self, level: int, column: int, row: int) -> bytes:
        """Tile as JPEG; the last ones of all slides are kept.

        Raises
        ------
        IndexError
            If there is no such tile.
        """
        return _kept(self, level, column, row)

    def cut(self, level: int, column: int, row: int) -> bytes:
        """Tile as JPEG, read from the slide.

        Raises
        ------
        IndexError
            If there is no such tile.
        """
        if not 0 <= level <= self.max_level:
            raise IndexError(level)
        columns, rows = self.columns_rows(level)
        if not (0 <= column < columns and 0 <= row < rows):
            raise IndexError((column, row))
        scale = 2 ** (self.max_level - level)
        x, y = column * TILE * scale, row * TILE * scale
        width, height = min(TILE * scale, self.width - x), min(TILE * scale, self.height - y)
        out = max(1, math.ceil(width / scale)), max(1, math.ceil(height / scale))
        small = self._downsample
        pixels = self._pixels((x / small, y / small), (width / small, height / small), out)
        return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), level=QUALITY))

    def _pixels(
        self, corner: tuple[float, float], size: tuple[float, float], out: tuple[int, int]
    ) -> Image:
        """Window of the slide, in its own pixels, at a size of `out`."""
        scale = size[0] / out[0]
        if scale <= 2 * max(level.downsample for level in self.slide.levels):
            return self.slide.resample(corner, size, out)
        with self._lock:
            if self._overview is None:
                coarsest = max(level.downsample for level in self.slide.levels)
                stored = max(1, int(max(self.slide.width, self.slide.height) / coarsest))
                self._overview = self.slide.thumbnail(min(stored, OVERVIEW_PX))
            image, downsample = self._overview
        if scale < downsample:
            return self.slide.resample(corner, size, out)
        box = (
            corner[0] / downsample,
            corner[1] / downsample,
            min((corner[0] + size[0]) / downsample, image.shape[1]),
            min((corner[1] + size[1]) / downsample, image.shape[0]),
        )
        picture = PillowImage.fromarray(image)
        return np.asarray(picture.resize(out, PillowImage.Resampling.BOX, box=box, reducing_gap=3))


@lru_cache(KEPT)
def _kept(source: TileSource, level: int, column: int, row: int) -> bytes:
    return source.cut(level, column, row)
