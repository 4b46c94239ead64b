"""Stain normalisation: the colours of one scanner and laboratory as those of another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepspace.core.errors import InputError
from deepspace.data.tissue import TissueMask
from deepspace.io.slide import Slide
from deepspace.io.source import Image

Floats = NDArray[np.float64]

WHITE = 240.0
"""Intensity of light that no stain has absorbed, as Macenko et al. take it."""

REFERENCE_STAINS: Floats = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
"""Optical density of haematoxylin and of eosin in R, G, B, rows of length one: the target of
Macenko's own demonstration, which most later work took over."""

REFERENCE_MAXIMA: Floats = np.array([1.9705, 1.0308])
"""99th percentile of the amounts of haematoxylin and eosin in that target."""

_MIN_DENSITY = 0.15
_SAMPLE_UM_PER_PX = 2.0
_SAMPLE_PX = 1_000_000


@dataclass(frozen=True)
class StainNormaliser:
    """Bring H&E patches to a reference stain, after Macenko et al. (ISBI 2009).

    Light that passes a stain is dimmed by Beer and Lambert's law, so optical densities
    ``OD = -ln((I + 1) / 240)`` add up: ``OD = amounts @ stains``. The plane of the two stains is
    that of the two largest singular directions of a section's densities; in it the stains are
    the extreme angles (1st and 99th percentile). The amounts are scaled to equal 99th
    percentiles and laid on the reference stains.

    Attributes
    ----------
    stains
        Haematoxylin and eosin of this section, shape (2, 3), rows of length one.
    maxima
        99th percentile of their amounts, shape (2,).

    Examples
    --------
    >>> haematoxylin = np.rint(240 * np.exp(-REFERENCE_STAINS[:1]) - 1).astype(np.uint8)
    >>> same = StainNormaliser(REFERENCE_STAINS, REFERENCE_MAXIMA).apply(haematoxylin)
    >>> bool((same == haematoxylin).all())
    True
    """

    stains: Floats
    maxima: Floats

    @classmethod
    def fit(cls, slide: Slide, tissue: TissueMask) -> StainNormaliser:
        """Measure the stains of one section on its tissue.

        Parameters
        ----------
        slide
            The section, read at about 2 um per pixel.
        tissue
            Where its tissue is.

        Raises
        ------
        InputError
            If the section shows no two stains.
        """
        downsample = max(1.0, _SAMPLE_UM_PER_PX / slide.require_mpp())
        image = slide.overview(downsample)
        rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
        points = (np.stack([columns.ravel(), rows.ravel()], axis=1) + 0.5) * downsample
        pixels = image.reshape(-1, 3)[tissue.contains(points)]
        # every k-th pixel, so that the fit is the same each time
        pixels = pixels[:: max(1, len(pixels) // _SAMPLE_PX)]
        try:
            return cls.from_pixels(pixels)
        except InputError as error:
            raise InputError(f"{slide.path}: {error}") from error

    @classmethod
    def from_pixels(cls, pixels: Image) -> StainNormaliser:
        """Measure the stains of tissue pixels, uint8 of shape (n, 3).

        Raises
        ------
        InputError
            If they show no two stains.
        """
        density = optical_density(pixels)
        density = density[(density > _MIN_DENSITY).all(axis=1)]
        if len(density) < 100:
            raise InputError(
                "too few stained pixels to measure the stains; leave stain normalisation off "
                "for this section"
            )
        stains = _stain_vectors(density)
        amounts = np.linalg.lstsq(stains.T, density.T, rcond=None)[0]
        maxima = np.percentile(amounts, 99, axis=1)
        if not (maxima > 0.01).all():
            raise InputError("shows one stain only; leave stain normalisation off for this section")
        return cls(stains, maxima)

    def apply(self, patches: Image) -> Image:
        """Show patches, uint8 of shape (..., 3), as if stained like the reference."""
        mix = np.linalg.pinv(self.stains) @ np.diag(REFERENCE_MAXIMA / self.maxima)
        density = optical_density(patches.reshape(-1, 3)) @ (mix @ REFERENCE_STAINS)
        rgb = WHITE * np.exp(-density) - 1
        return np.clip(np.rint(rgb), 0, 255).astype(np.uint8).reshape(patches.shape)


def optical_density(pixels: Image) -> Floats:
    """``-ln((I + 1) / 240)`` of 8-bit intensities, same shape."""
    table = -np.log((np.arange(256) + 1.0) / WHITE)
    density: Floats = table[pixels]
    return density


def _stain_vectors(density: Floats) -> Floats:
    """Haematoxylin and eosin, shape (2, 3), of densities of shape (n, 3)."""
    plane = np.linalg.eigh(np.cov(density.T))[1][:, [2, 1]]
    plane *= np.where(plane[0] < 0, -1, 1)  # densities are positive: point that way
    projected = density @ plane
    angles = np.arctan2(projected[:, 1], projected[:, 0])
    low, high = np.percentile(angles, [1, 99])
    ends = np.stack([plane @ (np.cos(a), np.sin(a)) for a in (low, high)])
    ends /= np.linalg.norm(ends, axis=1, keepdims=True)
    # haematoxylin is the one that absorbs more red
    return ends[np.argsort(-ends[:, 0])]
