"""What registration sees of a slide: where it absorbs light at all, whatever the stain."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure

from deepspace.data.stain import optical_density
from deepspace.data.tissue import TissueMask, tissue_mask
from deepspace.io.slide import Slide
from deepspace.io.source import Image
from deepspace.registration.transform import FloatArray, Transform

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

_MASK_UM = 8.0
_MASK_PX = 1024
_LEAST_DENSITY = 0.02
_MARGIN = 0.05
_GLASS_PERCENTILE = 95


@dataclass(frozen=True)
class Picture:
    """The tissue of a slide at the resolution that registration works at.

    Attributes
    ----------
    density
        How much tissue, 0 (glass) to 1, shape (h, w).
    mask
        Where tissue is, shape (h, w).
    origin_um
        x, y of the top-left corner on the slide, um.
    um_per_px
        Size of a pixel.
    """

    density: Floats
    mask: Mask
    origin_um: tuple[float, float]
    um_per_px: float

    def points(self) -> FloatArray:
        """Centres of all pixels on the slide, um, shape (h * w, 2)."""
        rows, columns = np.indices(self.mask.shape)
        index = np.stack([columns, rows], axis=-1).reshape(-1, 2)
        out: FloatArray = (index + 0.5) * self.um_per_px + np.asarray(self.origin_um)
        return out

    def look(self, channel: NDArray[np.generic], points_um: FloatArray) -> Floats:
        """Values of a channel (h, w) at points (n, 2) um; 0 outside."""
        place = (points_um - np.asarray(self.origin_um)) / self.um_per_px - 0.5
        values: Floats = ndimage.map_coordinates(
            channel.astype(np.float32, copy=False), place.T[::-1], order=1, cval=0.0
        )
        return values

    def centre_um(self) -> FloatArray:
        """Centre of the tissue, x, y in um."""
        rows, columns = np.nonzero(self.mask)
        middle = np.array([columns.mean(), rows.mean()])
        out: FloatArray = (middle + 0.5) * self.um_per_px + np.asarray(self.origin_um)
        return out

    def area_um2(self) -> float:
        """Area of the tissue."""
        return float(self.mask.sum()) * self.um_per_px**2

    def coarser(self, um_per_px: float) -> Picture:
        """Return the same picture with larger pixels."""
        factor = max(1, round(um_per_px / self.um_per_px))
        if factor == 1:
            return self
        density, share = (
            measure.block_reduce(channel, (factor, factor), np.mean)  # type: ignore[no-untyped-call]
            for channel in (self.density, self.mask.astype(np.float32))
        )
        return Picture(
            density.astype(np.float32), share > 0.5, self.origin_um, self.um_per_px * factor
        )

    def contrast(self, blur_px: float, window_px: float) -> Floats:
        """Density against its neighbourhood: mean and spread of a window are taken away.

        What differs between stains or fades over the slide vanishes; edges of glands, vessels
        and gaps remain.
        """
        soft = ndimage.gaussian_filter(self.density, blur_px)
        mean = ndimage.gaussian_filter(soft, window_px)
        spread = ndimage.gaussian_filter(soft**2, window_px) - mean**2
        floor = (0.1 * float(soft.std())) ** 2 + 1e-8
        values: Floats = (soft - mean) / np.sqrt(np.maximum(spread, 0.0) + floor)
        return values

    def mirrored(self) -> Picture:
        """Return the picture flipped left to right, in place."""
        return replace(self, density=self.density[:, ::-1], mask=self.mask[:, ::-1])

    def mirror(self) -> Transform:
        """Return the map from the slide to where `mirrored` shows it."""
        width = self.mask.shape[1] * self.um_per_px
        return Transform.of(np.diag([-1.0, 1.0]), (2 * self.origin_um[0] + width, 0.0))


def find_mask(slide: Slide) -> TissueMask:
    """Tissue of a slide, no finer than registration needs.

    Raises
    ------
    InputError
        If the mpp is unknown or a tile is damaged.
    """
    longest = max(slide.width, slide.height) * slide.require_mpp()
    return tissue_mask(slide, um_per_px=max(_MASK_UM, longest / _MASK_PX))


def tissue_box_um(slide: Slide, tissue: TissueMask) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the tissue with a margin, um; without tissue the slide."""
    mpp = slide.require_mpp()
    whole = (0.0, 0.0, slide.width * mpp, slide.height * mpp)
    if not tissue.mask.any():
        return whole
    step = tissue.downsample * mpp
    rows, columns = np.flatnonzero(tissue.mask.any(axis=1)), np.flatnonzero(tissue.mask.any(axis=0))
    left, right = columns[0] * step, (columns[-1] + 1) * step
    top, bottom = rows[0] * step, (rows[-1] + 1) * step
    margin = _MARGIN * max(right - left, bottom - top)
    return (
        max(left - margin, 0.0),
        max(top - margin, 0.0),
        min(right + margin, whole[2]),
        min(bottom + margin, whole[3]),
    )


def prepare(slide: Slide, tissue: TissueMask, um_per_px: float) -> Picture:
    """Read the tissue of a slide at a working resolution.

    Parameters
    ----------
    slide
        It must know its mpp.
    tissue
        From `find_mask`.
    um_per_px
        Size of a pixel of the picture.
    """
    mpp = slide.require_mpp()
    left, top, right, bottom = tissue_box_um(slide, tissue)
    width, height = (max(8, round(v / um_per_px)) for v in (right - left, bottom - top))
    size = (width * um_per_px / mpp, height * um_per_px / mpp)
    pixels = slide.resample((left / mpp, top / mpp), size, (width, height))
    blank = Picture(
        np.zeros((height, width), np.float32),
        np.zeros((height, width), bool),
        (left, top),
        um_per_px,
    )
    mask = tissue.contains(blank.points() / mpp).reshape(height, width)
    # what a mask cuts off at the rim of pale tissue still counts
    near = ndimage.gaussian_filter(mask.astype(np.float32), 2.0)
    return replace(blank, density=_density(pixels, mask) * np.minimum(2.0 * near, 1.0), mask=mask)


def _density(pixels: Image, mask: Mask) -> Floats:
    """Absorption of red light, saturating: a pale stain tells as much as a dark one.

    Haematoxylin absorbs red, eosin hardly, so that H&E and immunohistochemistry show alike what
    their counterstain shows.
    """
    density = optical_density(pixels)
    glass = density[~mask] if (~mask).mean() > 0.05 else density.reshape(-1, 3)
    level = np.percentile(glass, 100 - _GLASS_PERCENTILE, axis=0)
    above = np.maximum(density - level, 0.0)[..., 0]
    typical = float(np.median(above[mask])) if mask.any() else 0.0
    values: Floats = (1.0 - np.exp(-above / max(0.5 * typical, _LEAST_DENSITY))).astype(np.float32)
    return values
