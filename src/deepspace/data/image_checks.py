"""Why a tile is odd: measures that need no model, against what the training tiles show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from deepspace.data.tissue import ink_mask
from deepspace.io.source import Image

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

_WHITE = 245.0
_STAINED = 0.15  # optical density, mean of the channels, of what is no glass
_SOFT_UM = 2.0
_DARK_UM = 6.0
_INK_UM = 4.0  # size of the pixels that ink is looked for in
_FINE_UM = 0.7
_NUCLEUS_UM = (2.0, 4.0)
_QUANTILES = (0.01, 0.99)
_TINY = 1e-6
_DENSITY = np.maximum(np.log(_WHITE) - np.log(np.arange(256) + 1.0), 0.0).astype(np.float32)


@dataclass(frozen=True)
class Tile:
    """A patch and what several measures need of it.

    Attributes
    ----------
    grey : ndarray, shape (s, s)
        Optical density, mean of R, G and B, never negative.
    soft : ndarray, shape (t, t, 3)
        Optical density of R, G, B in pixels of about 2 um.
    stained : ndarray of bool, shape (t, t)
        Which of those are no glass.
    um_per_px, soft_um : float
        Size of a pixel of `grey`, and of `soft`.
    """

    grey: Singles
    soft: Singles
    stained: NDArray[np.bool_]
    um_per_px: float
    soft_um: float

    @classmethod
    def of(cls, patch: Image, um_per_px: float) -> Self:
        """Prepare one patch, uint8 RGB of shape (s, s, 3)."""
        density = _DENSITY[patch]
        step = max(1, round(_SOFT_UM / um_per_px))
        soft = _blocks(density, step)
        stained = soft.mean(axis=2) > _STAINED
        return cls(density.mean(axis=2), soft, stained, um_per_px, step * um_per_px)


def _blocks(image: Singles, step: int) -> Singles:
    """Mean over blocks of `step` x `step` pixels; what is left over at the far sides is cut."""
    n = len(image) // step
    blocks = image[: n * step, : n * step].reshape(n, step, n, step, *image.shape[2:])
    means: Singles = blocks.mean(axis=(1, 3))
    return means


def glass(tile: Tile) -> float:
    """Share of the tile that is not stained."""
    return float(1.0 - tile.stained.mean())


def ink(tile: Tile) -> float:
    """Share of the tile under colours that H&E cannot make, as `data.tissue` tells them."""
    step = max(1, round(_INK_UM / tile.soft_um))
    return float(ink_mask(_blocks(tile.soft, step), 1.0 / (step * tile.soft_um)).mean())


def brown(tile: Tile) -> float:
    """Share of the tile that absorbs blue most and red least, as diaminobenzidine (DAB) does.

    Haematoxylin and eosin both absorb green most.
    """
    red, green, blue = np.moveaxis(tile.soft, -1, 0)
    return float((tile.stained & (blue > green) & (red < 0.8 * blue)).mean())


def darkness(tile: Tile) -> float:
    """Log of the optical density of the darkest twentieth, nuclei smoothed away."""
    smooth = ndimage.gaussian_filter(tile.soft.mean(axis=2), _DARK_UM / tile.soft_um)
    return float(np.log(np.percentile(smooth, 95) + 0.01))


def focus(tile: Tile) -> float:
    """Log of fine detail (below 1 um) over that of the size of nuclei.

    The ratio is the same for pale and for strong staining.
    """
    fine = tile.grey - ndimage.gaussian_filter(tile.grey, _FINE_UM / tile.um_per_px, truncate=3)
    inner, outer = (
        ndimage.gaussian_filter(tile.soft.mean(axis=2), um / tile.soft_um) for um in _NUCLEUS_UM
    )
    return float(np.log((fine.std() + _TINY) / ((inner - outer).std() + _TINY)))


def red_hue(tile: Tile) -> float:
    """Log of the density in red over that in green: haematoxylin over eosin."""
    return _hue(tile, 0)


def blue_hue(tile: Tile) -> float:
    """Log of the density in blue over that in green: little in H&E, more in DAB and greys."""
    return _hue(tile, 2)


def _hue(tile: Tile, channel: int) -> float:
    if tile.stained.mean() < 0.05:
        return float("nan")  # the colour of glass says nothing
    mean = tile.soft[tile.stained].mean(axis=0)
    return float(np.log((mean[channel] + _TINY) / (mean[1] + _TINY)))


MEASURES: dict[str, Callable[[Tile], float]] = {
    "glass": glass,
    "ink": ink,
    "brown": brown,
    "darkness": darkness,
    "focus": focus,
    "red_hue": red_hue,
    "blue_hue": blue_hue,
}


@dataclass(frozen=True)
class Check:
    """A measure that, beyond the training tiles' range, explains why a tile is odd.

    Attributes
    ----------
    reason
        Key of `REASONS`.
    measure
        Key of `MEASURES`.
    side
        1 where large values are odd, -1 where small ones are.
    margin
        How far beyond the range.
    least
        Value that it must have besides, times `side`.
    """

    reason: str
    measure: str
    side: int
    margin: float
    least: float = -np.inf


# the first that applies is named
CHECKS = (
    Check("ink", "ink", 1, 0.05),
    Check("ihc", "brown", 1, 0.05),
    Check("ihc", "blue_hue", 1, 0.15),
    Check("glass", "glass", 1, 0.0, 0.6),
    Check("blur", "focus", -1, 0.1),
    Check("dark", "darkness", 1, 0.0),
    Check("fine", "focus", 1, 0.1),
    Check("stain", "red_hue", 1, 0.1),
    Check("stain", "red_hue", -1, 0.1),
    Check("stain", "blue_hue", -1, 0.1),
)

# in words; `mpp` and `coarse` are facts of a whole slide
REASONS = {
    "ink": "pen or ink over the tissue",
    "ihc": "another stain than H&E (as IHC)",
    "glass": "mostly empty glass",
    "dark": "darker than any training tissue (folded, thick or overstained)",
    "mpp": "a wrong mpp",
    "coarse": "an image coarser than the training images",
    "blur": "out of focus",
    "fine": "finer detail than in the training images (sharpened, or a wrong mpp)",
    "stain": "stained or scanned in other colours",
    "other": "tissue unlike any of the training slides",
}


@dataclass(frozen=True)
class Ranges:
    """Range of every measure over the training tiles.

    Attributes
    ----------
    low, high : dict of str to float
        1 % and 99 % quantile, by name of the measure.
    """

    low: Mapping[str, float]
    high: Mapping[str, float]

    @classmethod
    def of(cls, groups: Sequence[Mapping[str, Floats]]) -> Self:
        """Learn from the measures of training tiles, one table for every section.

        The range is as wide as that of the section that reaches farthest.
        """
        ends = {k: np.array([np.nanquantile(g[k], _QUANTILES) for g in groups]) for k in MEASURES}
        low = {k: float(found[:, 0].min()) for k, found in ends.items()}
        high = {k: float(found[:, 1].max()) for k, found in ends.items()}
        return cls(low, high)

    def reasons(self, values: Mapping[str, Floats]) -> NDArray[np.str_]:
        """Reason of every tile, a key of `REASONS`, shape (tiles,)."""
        n = len(next(iter(values.values())))
        found = np.full(n, "other", dtype="U8")
        for check in reversed(CHECKS):
            found[self.beyond(check, values[check.measure])] = check.reason
        return found

    def beyond(self, check: Check, values: Floats) -> NDArray[np.bool_]:
        """Whether `check` applies to tiles with these values of its measure, shape (tiles,)."""
        edge = (self.high if check.side > 0 else self.low)[check.measure]
        limit = max(check.side * edge + check.margin, check.least)
        beyond: NDArray[np.bool_] = check.side * values > limit
        return beyond

    def state(self) -> dict[str, Any]:
        """JSON values."""
        return {"low": dict(self.low), "high": dict(self.high)}

    @classmethod
    def restore(cls, values: Mapping[str, Any]) -> Self:
        """Take back what `state` gave."""
        return cls(dict(values["low"]), dict(values["high"]))


def measure(patches: Image, um_per_px: float) -> dict[str, Floats]:
    """All measures of patches; those of a patch depend on it alone.

    Parameters
    ----------
    patches
        uint8 RGB of shape (tiles, s, s, 3).
    um_per_px
        Size of a patch pixel.

    Returns
    -------
    dict of str to ndarray, shape (tiles,)

    Examples
    --------
    >>> white = np.full((1, 64, 64, 3), 255, np.uint8)
    >>> values = measure(white, um_per_px=0.7)
    >>> float(values["glass"][0]), float(values["ink"][0])
    (1.0, 0.0)
    """
    tiles = [Tile.of(patch, um_per_px) for patch in patches]
    return {
        name: np.array([function(tile) for tile in tiles], np.float64)
        for name, function in MEASURES.items()
    }
