"""Colour, texture and nuclei of H&E as maps of a slide, for dense features without any network.

What `deepspace.models.stain_features` measures on a patch is here the mean or spread, over a field
of view, of something that every pixel has: stain (Ruifrok & Johnston 2001), uniform local binary
pattern (Ojala et al. 2002), difference to its neighbours (the co-occurrence statistics of Haralick
et al. 1973), detail at five scales, alignment of gradients, being part of a nucleus. In place of
percentiles stands skewness (shares of pixels above fixed levels would be almost constant on one
section and vary on the next), in place of Otsu's threshold on the patch contrast to the
surroundings. Texture is measured at half the resolution of the patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import hed_from_rgb

from deepspace.models.field_sums import MapLayer, Moments

FloatArray = NDArray[np.float64]
Map = NDArray[np.float32]

VERSION = 1  # raise it whenever a feature changes, so that cached features are not mixed
CELL_PX = 8

_WHITE = 255.0
_TRUNCATE = 3.0  # Gaussian filters end after so many sigmas, so that the halo bounds them
_CELL = CELL_PX // 2  # pixels of half the resolution
_LEVELS = 5
_BASE_SIGMA = 0.8
_NEIGHBOURHOODS = (3, 8)
_DISTANCES = (1, 3, 8)
_DIRECTIONS = ((0.0, 1.0), (0.7071, 0.7071), (1.0, 0.0), (0.7071, -0.7071))
_GREY_LEVEL = 16.0
_LBP_POINTS, _LBP_RADIUS = 8, 2
_TIE = 0.01  # grey levels are whole: less is rounding
_SURROUNDINGS_SIGMA = 8.0
_NUCLEUS = 0.02  # optical density of haematoxylin above the surroundings
_TINY = 1e-8
_ROUNDING = 1e-6  # a variance below this part of the mean square is rounding

# optical density of every grey value, in the unit of skimage.color.rgb2hed
_DENSITY = (np.log(np.maximum(np.arange(256) / 255, 1e-6)) / np.log(1e-6)).astype(np.float32)
_UNMIX = hed_from_rgb.astype(np.float32)


class ColourMaps:
    """Mean red, green and blue."""

    core_px = 512
    halo_px = 0
    step_px = 1
    threaded = True

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ("red", "green", "blue")

    def identity(self) -> dict[str, Any]:
        """See `deepspace.models.dense.Maps`."""
        return {"version": VERSION}

    def __call__(self, window: NDArray[np.uint8]) -> list[MapLayer]:
        """See `deepspace.models.dense.Maps`."""
        channels = np.ascontiguousarray(window.transpose(2, 0, 1)).astype(np.float32)
        return [MapLayer(1, torch.from_numpy(channels), squares=False)]

    def finish(self, moments: Sequence[Moments]) -> FloatArray:
        """See `deepspace.models.dense.Maps`."""
        return moments[0].mean


class TextureMaps:
    """Maps of colour, texture and nuclei; cells are means over 8 x 8 pixels of the patch."""

    core_px = 1024
    halo_px = 128  # four levels of detail reach 124 pixels
    step_px = 32  # the coarsest level has a value for 16 pixels of half the resolution
    threaded = True

    def __init__(self) -> None:
        blank = np.full((2 * CELL_PX * 8, 2 * CELL_PX * 8, 3), int(_WHITE), np.uint8)
        self._maps = tuple(_describe(blank))
        self.names = tuple(_columns({name: np.zeros(1) for name in self._maps}))

    def identity(self) -> dict[str, Any]:
        """See `deepspace.models.dense.Maps`."""
        return {"version": VERSION}

    def __call__(self, window: NDArray[np.uint8]) -> list[MapLayer]:
        """See `deepspace.models.dense.Maps`."""
        cut = slice(self.halo_px // CELL_PX, (window.shape[0] - self.halo_px) // CELL_PX)
        maps = np.stack([values[cut, cut] for values in _describe(window).values()])
        return [MapLayer(CELL_PX, torch.from_numpy(maps), squares=False)]

    def finish(self, moments: Sequence[Moments]) -> FloatArray:
        """See `deepspace.models.dense.Maps`."""
        mean = moments[0].mean
        columns = _columns({name: mean[:, k] for k, name in enumerate(self._maps)})
        return np.stack(list(columns.values()), axis=1)


class _Cells:
    """Maps that are collected as means over cells, with their powers where spread is wanted."""

    def __init__(self) -> None:
        self.maps: dict[str, Map] = {}

    def add(self, name: str, image: Map, power: int = 1, scale: int = 1) -> None:
        """Take an image and its powers up to `power`.

        It has one value for `scale` x `scale` pixels of half the resolution.
        """
        values = image
        for exponent in range(1, power + 1):
            self.maps[f"{name}^{exponent}"] = _to_cells(values, scale)
            values = values * image if exponent < power else values


def _to_cells(image: Map, scale: int) -> Map:
    if scale > _CELL:
        times = scale // _CELL
        repeated: Map = np.repeat(np.repeat(image, times, axis=0), times, axis=1)
        return repeated
    while scale < _CELL:
        image, scale = _halve(image), 2 * scale
    return image


def _describe(window: NDArray[np.uint8]) -> dict[str, Map]:
    """All maps of a window whose side is a multiple of 32 pixels, by name and power."""
    cells = _Cells()
    halved = _halve(window.astype(np.float32))
    stains = _halve(_DENSITY[window]) @ _UNMIX
    haematoxylin, eosin, residual = (np.ascontiguousarray(stains[..., k]) for k in range(3))
    grey = halved.mean(axis=2)
    for k, name in enumerate("rgb"):
        cells.add(name, halved[..., k] - np.float32(_WHITE), power=2)
    stained = {"haematoxylin": haematoxylin, "eosin": eosin, "residual": residual}
    for name, image in stained.items():
        cells.add(name, image, power=3)
    cells.add("grey", grey / np.float32(_WHITE) - 1, power=3)
    _binary_patterns(cells, grey)
    _differences(cells, grey / np.float32(_GREY_LEVEL))
    _nuclei(cells, haematoxylin, eosin)
    _details(cells, "haematoxylin", haematoxylin)
    _details(cells, "eosin", eosin)
    _orientation(cells, "haematoxylin", haematoxylin)
    _orientation(cells, "grey", grey / np.float32(_WHITE))
    return cells.maps


def _halve(image: Map) -> Map:
    """Mean over blocks of 2 x 2."""
    rows = image[::2] + image[1::2]
    means: Map = (rows[:, ::2] + rows[:, 1::2]) * np.float32(0.25)
    return means


def _smooth(image: Map, sigma: float) -> Map:
    smooth: Map = ndimage.gaussian_filter(image, sigma, truncate=_TRUNCATE)
    return smooth


def _binary_patterns(cells: _Cells, grey: Map) -> None:
    """Indicators of the uniform codes, by the number of brighter neighbours, and of all others.

    scikit-image interpolates at absolute positions, so that equal neighbours would come out
    brighter in one window and darker in the next.
    """
    levels = grey.round()
    pattern = np.zeros(levels.shape, np.uint8)
    for bit in range(_LBP_POINTS):
        angle = 2 * np.pi * bit / _LBP_POINTS
        neighbour = _shifted(levels, _LBP_RADIUS * np.sin(angle), _LBP_RADIUS * np.cos(angle))
        pattern |= (neighbour - levels > -_TIE).astype(np.uint8) << np.uint8(bit)
    codes = _uniform_codes()[pattern]
    for code in range(_LBP_POINTS + 2):
        cells.add(f"lbp_{code}", (codes == code).astype(np.float32))


def _shifted(image: Map, rows: float, columns: float) -> Map:
    """The image at a fixed distance from every pixel, linearly interpolated."""
    y, x = round(np.floor(rows + 1e-9)), round(np.floor(columns + 1e-9))
    shifted: Map = np.zeros_like(image)
    for dy, height in ((0, 1 - (rows - y)), (1, rows - y)):
        for dx, width in ((0, 1 - (columns - x)), (1, columns - x)):
            if height * width > 1e-6:
                moved = np.roll(image, (-y - dy, -x - dx), (0, 1))
                shifted += np.float32(height * width) * moved
    return shifted


def _uniform_codes() -> NDArray[np.uint8]:
    """Number of ones of every circular pattern that changes at most twice; of the others one code.

    Examples
    --------
    >>> _uniform_codes()[[0b0, 0b111, 0b101, 0b11111111]]
    array([0, 3, 9, 8], dtype=uint8)
    """
    bits = (np.arange(2**_LBP_POINTS)[:, None] >> np.arange(_LBP_POINTS)) & 1
    changes = (bits != np.roll(bits, 1, axis=1)).sum(axis=1)
    return np.where(changes <= 2, bits.sum(axis=1), _LBP_POINTS + 1).astype(np.uint8)


def _differences(cells: _Cells, grey: Map) -> None:
    """Contrast and homogeneity of pixels at fixed distances, mean over four directions."""
    for distance in _DISTANCES:
        contrast, homogeneity = np.zeros_like(grey), np.zeros_like(grey)
        for direction in _DIRECTIONS:
            shift = tuple(round(distance * part) for part in direction)
            # what comes round the border stays in the halo
            square = (grey - np.roll(grey, shift, (0, 1))) ** 2
            contrast += square
            homogeneity += 1 / (1 + square)
        share = np.float32(1 / len(_DIRECTIONS))
        cells.add(f"glcm_contrast_{distance}px", contrast * share)
        cells.add(f"glcm_dissimilarity_{distance}px", np.sqrt(contrast * share))
        cells.add(f"glcm_homogeneity_{distance}px", homogeneity * share)


def _nuclei(cells: _Cells, haematoxylin: Map, eosin: Map) -> None:
    """What has more haematoxylin than its surroundings."""
    smooth = _smooth(haematoxylin, 1.0)
    above = smooth - _smooth(smooth, _SURROUNDINGS_SIGMA)
    inside = np.clip(above / np.float32(_NUCLEUS), 0, 1)
    cells.add("inside", inside)
    cells.add("inside_haematoxylin", inside * haematoxylin)
    cells.add("inside_eosin", inside * eosin)
    highest = ndimage.maximum_filter(smooth, size=7)
    peaks = ((smooth == highest) & (above > _NUCLEUS)).astype(np.float32)
    cells.add("peaks", peaks)
    cells.add("peaks_height", peaks * smooth)
    cells.add("peaks_height2", peaks * smooth**2)


def _details(cells: _Cells, name: str, image: Map) -> None:
    """What a Gaussian pyramid loses from level to level."""
    smooth = _smooth(image, _BASE_SIGMA)
    cells.add(f"{name}_detail0", image - smooth, power=3)
    # from sigma to 2 sigma at every level; the next level sees sigma again at half the resolution
    step = _BASE_SIGMA * 3**0.5
    for level in range(1, _LEVELS):
        smoother = _smooth(smooth, step)
        cells.add(f"{name}_detail{level}", smooth - smoother, power=3, scale=2 ** (level - 1))
        smooth = smoother[::2, ::2]


def _orientation(cells: _Cells, name: str, image: Map) -> None:
    """How aligned the gradients are around each point (coherence of the structure tensor)."""
    dy, dx = (np.asarray(slope, np.float32) for slope in np.gradient(_smooth(image, 1.0)))
    products = [_halve(_halve(product)) for product in (dx * dx, dy * dy, dx * dy)]
    for n in _NEIGHBOURHOODS:
        xx, yy, xy = (_smooth(product, n / 4) for product in products)
        energy = xx + yy + np.float32(_TINY)
        coherence = np.sqrt((xx - yy) ** 2 + 4 * xy**2) / energy
        cells.add(f"{name}_coherence{n}", coherence, power=2, scale=4)
        cells.add(f"{name}_energy{n}", np.log(energy), power=2, scale=4)


def _columns(mean: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """Features by name from the mean of every map over a field of view."""
    found: dict[str, FloatArray] = {}
    for name in ("r", "g", "b", "haematoxylin", "eosin", "residual"):
        found[f"{name}_mean"], found[f"{name}_sd"] = mean[f"{name}^1"], _sd(mean, name)
    for name in ("grey", "haematoxylin", "eosin", "residual"):
        found[f"{name}_skew"] = _skew(mean, name)
    found |= {
        key.removesuffix("^1"): value
        for key, value in mean.items()
        if key.startswith(("lbp_", "glcm_"))
    }
    found |= _nuclear_columns(mean)
    for name in ("haematoxylin", "eosin"):
        for level in range(_LEVELS):
            key = f"{name}_detail{level}"
            found[f"{key}_log_sd"] = np.log(_sd(mean, key) + 1e-4)
            found[f"{key}_skew"] = _skew(mean, key)
    for name in ("haematoxylin", "grey"):
        for n in _NEIGHBOURHOODS:
            for what in ("coherence", "energy"):
                key = f"{name}_{what}{n}"
                found[f"{key}_mean"], found[f"{key}_sd"] = mean[f"{key}^1"], _sd(mean, key)
    return found


def _nuclear_columns(mean: dict[str, FloatArray]) -> dict[str, FloatArray]:
    inside, peaks = mean["inside^1"], mean["peaks^1"]
    height = mean["peaks_height^1"] / (peaks + _TINY)
    spread = np.maximum(mean["peaks_height2^1"] / (peaks + _TINY) - height**2, 0.0)
    found = {
        "nuclei_fraction": inside,
        "nuclei_peaks": peaks,
        "nuclei_log_area": np.log((inside + 1e-3) / (peaks + 1e-4)),
        "nuclei_peak_mean": height,
        "nuclei_peak_sd": np.sqrt(spread),
    }
    for stain in ("haematoxylin", "eosin"):
        within = mean[f"inside_{stain}^1"]
        found[f"nuclei_{stain}_inside"] = within / (inside + 1e-3)
        found[f"nuclei_{stain}_outside"] = (mean[f"{stain}^1"] - within) / (1.001 - inside)
    return found


def _sd(mean: dict[str, FloatArray], name: str) -> FloatArray:
    square = mean[f"{name}^2"]
    variance = square - mean[f"{name}^1"] ** 2
    spread: FloatArray = np.sqrt(np.where(variance > _ROUNDING * square, variance, 0.0))
    return spread


def _skew(mean: dict[str, FloatArray], name: str) -> FloatArray:
    first, second, third = (mean[f"{name}^{power}"] for power in (1, 2, 3))
    central = third - 3 * first * second + 2 * first**3
    skew: FloatArray = central / (_sd(mean, name) ** 3 + 1e-9)
    return skew
