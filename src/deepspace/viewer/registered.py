"""Tiles of a neighbouring section, such as IHC, as it lies on the section beside it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from deepspace.core.errors import InputError
from deepspace.core.progress import log
from deepspace.io.slide import Slide
from deepspace.io.source import Image
from deepspace.registration.register import register
from deepspace.registration.transform import Transform
from deepspace.viewer.tiles import TileSource

WHITE = 255


class RegisteredTiles(TileSource):
    """Tiles in the pixels of another slide.

    Parameters
    ----------
    slide : Slide
        The neighbour; it must know its mpp.
    frame : TileSource
        What it is laid over, of known mpp: size and levels are taken from there.
    transform : Transform
        From `slide` to `frame`, micrometres.
    """

    def __init__(self, slide: Slide, frame: TileSource, transform: Transform) -> None:
        super().__init__(slide)
        self.width, self.height, self.mpp = frame.width, frame.height, frame.mpp
        self.max_level = frame.max_level
        self._transform = transform

    def _pixels(
        self, corner: tuple[float, float], size: tuple[float, float], out: tuple[int, int]
    ) -> Image:
        columns, rows = out
        mpp, own = self.mpp or 1.0, self.slide.require_mpp()
        y, x = np.indices((rows, columns)) + 0.5
        points = np.stack(
            [corner[0] + x * size[0] / columns, corner[1] + y * size[1] / rows], axis=-1
        )
        place = self._transform.backward(points.reshape(-1, 2) * mpp) / own
        step = size[0] / columns * mpp / own
        edge = np.array([self.slide.width, self.slide.height], np.float64)
        low = np.clip(place.min(axis=0) - 2 * step, 0.0, edge)
        high = np.clip(place.max(axis=0) + 2 * step, 0.0, edge)
        if (high - low < 1.0).any():
            return np.full((rows, columns, 3), WHITE, np.uint8)
        wide, tall = (max(1, round(v / step)) for v in high - low)
        seen = super()._pixels((low[0], low[1]), (high[0] - low[0], high[1] - low[1]), (wide, tall))
        at = ((place - low) / (high - low) * (wide, tall) - 0.5).T[::-1]
        # the outermost half pixel belongs to the slide
        kept = ((place >= 0) & (place <= edge)).all(axis=1)
        found = np.full((rows * columns, 3), WHITE, np.uint8)
        for k in range(3):
            band = seen[..., k].astype(np.float32)
            channel = ndimage.map_coordinates(band, at, order=1, mode="nearest")
            found[kept, k] = np.rint(channel[kept])
        return found.reshape(rows, columns, 3)


def lay_over(name: str, slide: Slide, frame: TileSource) -> tuple[TileSource, bool]:
    """Tiles of a neighbour as it lies on a section, or as it is where it cannot be registered.

    Parameters
    ----------
    name : str
        Of the section, for messages.
    slide : Slide
        The neighbour.
    frame : TileSource
        The section.

    Returns
    -------
    tiles : TileSource
    registered : bool
    """
    log.info("%s: registering %s", name, slide.path.name)
    try:
        if frame.mpp is None:
            raise InputError("the size of a pixel of the section is not known")
        transform = register(slide, frame.slide).require()
    except InputError as error:
        log.info("%s: %s is shown as it is, not registered: %s", name, slide.path.name, error)
        return TileSource(slide), False
    return RegisteredTiles(slide, frame, transform), True
