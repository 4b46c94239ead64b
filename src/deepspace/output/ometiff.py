"""Genes as channels of one pyramidal OME-TIFF that lies on the slide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy.spatial import KDTree

from deepspace.core.errors import InputError

Matrix = NDArray[np.float32]

TILE: Final = 256
# a level of the pyramid that fits a screen is the last
SMALLEST: Final = 512
MOST_PIXELS: Final = 100_000_000
# a lattice of squares leaves no place farther from a point than 0.71 of its pitch
REACH: Final = 0.75


@dataclass(frozen=True)
class Grid:
    """Pixels over a slide; the corner of the first is the corner of the slide.

    Attributes
    ----------
    nearest : ndarray of int, shape (height, width)
        Number of the point nearest to the centre of a pixel; -1 where none is near.
    step_px : float
        Side of a pixel in full-resolution pixels.
    pixel_um : float
        The same in micrometres.
    """

    nearest: NDArray[np.int32]
    step_px: float
    pixel_um: float

    def paint(self, values: Matrix) -> Matrix:
        """Values of the nearest point, (height, width); NaN where none is near."""
        return np.append(values, np.float32(np.nan))[self.nearest].astype(np.float32, copy=False)


def make_grid(
    coords: NDArray[np.float64],
    used: NDArray[np.bool_],
    size_px: tuple[int, int],
    *,
    spacing_px: float,
    mpp: float,
    pixel_um: float,
) -> Grid:
    """Find the nearest point of every pixel.

    Parameters
    ----------
    coords : ndarray, shape (points, 2)
        `x, y` in full-resolution pixels.
    used : ndarray of bool, shape (points,)
        Points that count; around others nothing lies.
    size_px : tuple of int
        Width and height of the slide.
    spacing_px : float
        Distance between neighbouring points; a pixel farther than 0.75 of it from all stays
        empty.
    mpp, pixel_um : float
        Micrometres per pixel of the slide and of the grid.

    Raises
    ------
    InputError
        If no point is used, or the grid has no or too many pixels.
    """
    if not (np.isfinite(pixel_um) and pixel_um > 0):
        raise InputError(f"--pixel-um {pixel_um:g}: must be a size above 0 in micrometres")
    if not used.any():
        raise InputError("none of the points lies on tissue: nothing to draw")
    step = pixel_um / mpp
    width, height = (max(1, int(np.ceil(side / step))) for side in size_px)
    if width * height > MOST_PIXELS:
        raise InputError(
            f"--pixel-um {pixel_um:g}: makes {width} x {height} pixels, more than "
            f"{MOST_PIXELS:,}; give a larger one"
        )
    tree = KDTree(coords[used])
    numbers = np.append(np.flatnonzero(used), -1).astype(np.int32)
    x = (np.arange(width) + 0.5) * step
    nearest = np.empty((height, width), np.int32)
    for row in range(height):
        centres = np.column_stack([x, np.full(width, (row + 0.5) * step)])
        # where none is near, the tree answers with the number of its points
        found = tree.query(centres, distance_upper_bound=REACH * spacing_px)[1]
        nearest[row] = numbers[found]
    return Grid(nearest, step, pixel_um)


def write_ome_tiff(
    path: Path,
    grid: Grid,
    names: Sequence[str],
    channels: Callable[[], Iterable[Matrix]],
) -> None:
    """Write one channel a gene, in tiles, compressed without loss, with half-size levels.

    Parameters
    ----------
    path : Path
        File to write.
    grid : Grid
        Where the pixels lie.
    names : sequence of str
        Names of the channels.
    channels : callable
        Gives the values of one gene after the other, (points,); called once for each level, so
        that one channel is in memory at a time.
    """
    height, width = grid.nearest.shape
    halvings = 0
    while max(height, width) >> halvings > SMALLEST:
        halvings += 1
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as tiff:
        for level in range(halvings + 1):
            shape = (-(-height // 2**level), -(-width // 2**level))
            size = grid.pixel_um * 2**level
            described = {
                "axes": "CYX",
                "Name": "deepspace",
                "Channel": {"Name": list(names)},
                "PhysicalSizeX": size,
                "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": size,
                "PhysicalSizeYUnit": "µm",
            }
            tiff.write(
                _tiles(_halved(grid.paint(v), level) for v in channels()),
                shape=(len(names), *shape),
                dtype=np.float32,
                tile=(TILE, TILE),
                photometric="minisblack",
                compression="zlib",
                predictor=True,
                resolution=(1e4 / size, 1e4 / size),
                resolutionunit="CENTIMETER",
                subifds=halvings if level == 0 else None,
                subfiletype=1 if level else 0,
                metadata=described if level == 0 else None,
            )


def _halved(image: Matrix, times: int) -> Matrix:
    """Mean of the pixels that hold a value, two by two, so many times."""
    for _ in range(times):
        rows, columns = (side % 2 for side in image.shape)
        padded = np.pad(image, ((0, rows), (0, columns)), constant_values=np.nan)
        parts = np.stack([padded[i::2, j::2] for i in (0, 1) for j in (0, 1)])
        known = np.isfinite(parts)
        count = known.sum(axis=0)
        total = np.where(known, parts, 0).sum(axis=0)
        empty = np.full(count.shape, np.nan, np.float32)
        image = np.divide(total, count, out=empty, where=count > 0).astype(np.float32)
    return image


def _tiles(images: Iterable[Matrix]) -> Iterator[Matrix]:
    for image in images:
        height, width = image.shape
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                part = image[top : top + TILE, left : left + TILE]
                margin = ((0, TILE - part.shape[0]), (0, TILE - part.shape[1]))
                yield np.pad(part, margin, constant_values=np.nan)
