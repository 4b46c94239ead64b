"""Immunohistochemistry: how much DAB a section holds, around any point of it.

The chromogen DAB is brown, the counterstain haematoxylin blue. Light that passes both is dimmed by
Beer and Lambert's law, so that their optical densities add up and can be told apart (Ruifrok &
Johnston, Anal Quant Cytol Histol 23:291, 2001).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, signal
from skimage.color import rgb_from_hdx
from skimage.filters import threshold_otsu

from deepspace.core.errors import InputError
from deepspace.data.tissue import TissueMask
from deepspace.io.slide import Slide
from deepspace.io.source import Image

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]
Box = tuple[float, float, float, float]

STAINS: FloatArray = rgb_from_hdx[:2] / np.linalg.norm(rgb_from_hdx[:2], axis=1, keepdims=True)
"""Optical density of haematoxylin and of DAB in R, G, B, rows of length one."""

POSITIVE = 0.1
"""Least DAB, optical density to base 10, that is called positive: Otsu always finds a limit."""

LEAST_BROWN = 0.001
"""Least share of brown pixels of a slide with DAB; real H&E slides had at most 0.0001 of them."""

LEAST_COVERED = 0.5
"""Least part of a disc that tissue must cover for its mean to count."""

_BROWN = 0.15
_PIXELS_PER_DISC = 30
_CELLS_PER_DISC = 10
_BAND_CELLS = 64
_MOST_CELLS = 40_000_000
_GLASS_PERCENTILE = 95
_TYPICAL_GLASS = 240.0


def optical_density(pixels: Image, glass: ArrayLike = _TYPICAL_GLASS) -> FloatArray:
    """``log10((glass + 1) / (I + 1))`` of 8-bit intensities (..., 3), never negative.

    Examples
    --------
    >>> optical_density(np.array([[23, 119, 239]], np.uint8), 239.0).round(2)
    array([[1. , 0.3, 0. ]])
    """
    table = np.log10(np.asarray(glass, np.float64) + 1.0)
    values: FloatArray = np.maximum(table - np.log10(pixels + 1.0), 0.0)
    return values


def unmix(density: FloatArray) -> FloatArray:
    """Amounts of haematoxylin and DAB, never negative, that explain densities best.

    Parameters
    ----------
    density
        Optical densities (..., 3), as `optical_density` gives them.

    Returns
    -------
    ndarray
        (..., 2) haematoxylin and DAB; an amount of 1 dims light by a factor of ten along the
        stain's direction in R, G, B. The least squares fit under the bound.

    Examples
    --------
    >>> unmix(0.5 * STAINS[0] + 0.2 * STAINS[1]).round(6)
    array([0.5, 0.2])
    """
    both = density @ np.linalg.pinv(STAINS)
    # where one of the two would be negative the other alone fits best
    alone = np.maximum(density @ STAINS.T, 0.0)
    blue_only, brown_only = both[..., 1] < 0, both[..., 0] < 0
    out = np.maximum(both, 0.0)
    out[..., 0] = np.where(blue_only, alone[..., 0], out[..., 0])
    out[..., 1] = np.where(brown_only, alone[..., 1], out[..., 1])
    return out


def brown(density: FloatArray) -> Mask:
    """Which densities (..., 3) absorb blue most, as DAB does and neither dye of H&E."""
    found: Mask = (density[..., 2] > density[..., 1]) & (density[..., 2] > _BROWN)
    return found


@dataclass(frozen=True)
class StainMap:
    """Mean DAB over discs of one size, on a grid over a window of an IHC slide.

    The sums over the disc are kept, not their ratios, so that a value between the nodes is again
    the mean over a disc.

    Attributes
    ----------
    dab, positive, covered
        Sums over the disc around each node, in parts of the disc, shape (h, w): of the optical
        density of DAB in tissue, of the pixels that are positive, of tissue.
    origin_um
        x, y of the first node on the slide.
    step_um
        Distance of the nodes.
    diameter_um
        Of the disc.
    threshold
        Optical density of DAB from which a pixel is positive.
    brown
        Share of brown pixels in the tissue.
    glass
        Intensity of empty glass in R, G, B.
    """

    dab: NDArray[np.float32]
    positive: NDArray[np.float32]
    covered: NDArray[np.float32]
    origin_um: tuple[float, float]
    step_um: float
    diameter_um: float
    threshold: float
    brown: float
    glass: tuple[float, ...]

    def at(self, points_um: ArrayLike) -> dict[str, FloatArray]:
        """Look up points (n, 2), um on the IHC slide.

        Returns
        -------
        dict
            ``dab`` mean optical density, ``positive`` part of the tissue that is positive, both
            NaN where less than half of the disc is tissue; ``covered`` part of it that is.
        """
        points = np.asarray(points_um, np.float64).reshape(-1, 2)
        place = ((points - np.asarray(self.origin_um)) / self.step_um).T[::-1]
        sums = {
            name: ndimage.map_coordinates(getattr(self, name), place, order=1, cval=0.0)
            for name in ("dab", "positive", "covered")
        }
        enough = sums["covered"] >= LEAST_COVERED
        out = {"covered": sums["covered"].astype(np.float64)}
        for name in ("dab", "positive"):
            mean = sums[name] / np.maximum(sums["covered"], LEAST_COVERED)
            out[name] = np.where(enough, mean, np.nan).astype(np.float64)
        return out


def stain_map(slide: Slide, tissue: TissueMask, box_um: Box, diameter_um: float) -> StainMap:
    """Unmix DAB in a window of an IHC slide and average it over discs.

    Parameters
    ----------
    slide
        It must know its mpp.
    tissue
        Of the same slide.
    box_um
        Left, top, right, bottom of the window that is asked about.
    diameter_um
        Of the discs.

    Raises
    ------
    InputError
        If the window holds no tissue, or its tissue no DAB, or a tile is damaged.
    """
    mpp = slide.require_mpp()
    fine = max(mpp, diameter_um / _PIXELS_PER_DISC)
    factor = max(1, round(diameter_um / _CELLS_PER_DISC / fine))
    step = factor * fine
    left, top = (edge - diameter_um for edge in box_um[:2])
    columns, rows = (
        max(1, math.ceil((high + diameter_um - low) / step))
        for low, high in ((left, box_um[2]), (top, box_um[3]))
    )
    if columns * rows > _MOST_CELLS:
        raise InputError(
            f"{slide.path}: {columns} x {rows} discs of {diameter_um:g} um are too many; correct "
            "the mpp or choose a larger diameter"
        )
    glass = glass_level(slide, tissue)
    density = np.zeros((rows, columns, factor, factor), np.float16)
    seen = np.zeros((rows, columns), np.float32)
    for first in range(0, rows, _BAND_CELLS):
        band = slice(first, min(first + _BAND_CELLS, rows))
        corner, size = (left, top + first * step), (columns * factor, (band.stop - first) * factor)
        pixels = slide.resample(
            (corner[0] / mpp, corner[1] / mpp), (size[0] * fine / mpp, size[1] * fine / mpp), size
        )
        inside = _inside(tissue, corner, size, fine, mpp)
        values = optical_density(pixels, glass)
        found = np.where(inside, unmix(values)[..., 1], np.nan).astype(np.float16)
        density[band] = _cells(found, factor)
        seen[band] = _cells(brown(values) & inside, factor).mean(axis=(2, 3))
    return _over_discs(slide, density, seen, (left, top), (step, diameter_um), glass)


def glass_level(slide: Slide, tissue: TissueMask) -> tuple[float, ...]:
    """Intensity of empty glass in R, G, B; a typical one where the slide shows no glass."""
    image = slide.overview(tissue.downsample)
    height, width = (min(a, b) for a, b in zip(image.shape, tissue.mask.shape, strict=False))
    outside = ~tissue.mask[:height, :width]
    # white padding of a scan is no glass
    pixels = image[:height, :width][outside & (image[:height, :width].min(axis=-1) < 255)]
    if len(pixels) < 0.02 * outside.size:
        return (_TYPICAL_GLASS,) * 3
    return tuple(float(v) for v in np.percentile(pixels, _GLASS_PERCENTILE, axis=0))


def _inside(
    tissue: TissueMask, corner_um: tuple[float, float], size: tuple[int, int], um: float, mpp: float
) -> Mask:
    """Which pixels of a window lie on tissue, shape (rows, columns)."""
    y, x = np.indices(size[::-1]) + 0.5
    points = np.stack([corner_um[0] + x * um, corner_um[1] + y * um], axis=-1) / mpp
    return tissue.contains(points.reshape(-1, 2)).reshape(size[::-1])


def _cells(pixels: NDArray[np.generic], factor: int) -> NDArray[np.generic]:
    """Pixels (rows * f, columns * f) as (rows, columns, f, f)."""
    rows, columns = (side // factor for side in pixels.shape)
    return pixels.reshape(rows, factor, columns, factor).swapaxes(1, 2)


def _over_discs(
    slide: Slide,
    density: NDArray[np.float16],
    seen: NDArray[np.float32],
    corner_um: tuple[float, float],
    sizes_um: tuple[float, float],
    glass: tuple[float, ...],
) -> StainMap:
    """Average cells (rows, columns, f, f) of DAB, NaN off tissue, over discs."""
    step, diameter = sizes_um
    known = ~np.isnan(density)
    share = float(seen.mean() / max(known.mean(), 1e-9))
    if not known.any():
        raise InputError(
            f"{slide.path}: no tissue was found where the prediction lies; look at the image, and "
            "check its mpp"
        )
    if share < LEAST_BROWN:
        raise InputError(
            f"{slide.path}: shows no DAB ({share:.3%} of the tissue is brown, at least "
            f"{LEAST_BROWN:.1%} was expected); give the immunohistochemistry with DAB and "
            "haematoxylin, not the H&E; a wholly negative stain cannot be compared"
        )
    values = density[known].astype(np.float32)
    threshold = max(float(threshold_otsu(values)), POSITIVE)  # type: ignore[no-untyped-call]
    cells = {
        "dab": np.where(known, density, 0),
        "positive": np.where(known, density, 0) >= threshold,
        "covered": known,
    }
    disc = _disc(diameter / step / 2)
    sums = {
        name: signal.fftconvolve(part.mean(axis=(2, 3), dtype=np.float32), disc, mode="same")
        for name, part in cells.items()
    }
    return StainMap(
        **{name: np.maximum(part, 0.0).astype(np.float32) for name, part in sums.items()},
        origin_um=(corner_um[0] + step / 2, corner_um[1] + step / 2),
        step_um=step,
        diameter_um=diameter,
        threshold=threshold,
        brown=share,
        glass=glass,
    )


def _disc(radius: float) -> NDArray[np.float32]:
    """Weights of a disc that sum to 1; cells at its rim count in part."""
    reach = math.ceil(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    weight = np.clip(radius + 0.5 - np.hypot(x, y), 0.0, 1.0)
    out: NDArray[np.float32] = (weight / weight.sum()).astype(np.float32)
    return out
