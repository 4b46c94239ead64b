"""Colour, texture and nuclear-density statistics of H&E patches, without any network.

The stain axes are those of Ruifrok & Johnston (2001), as `skimage.color.hed_from_rgb`; local
binary patterns after Ojala et al. (2002); co-occurrence statistics after Haralick et al. (1973).
Texture and nuclei are measured at half the resolution of the patch, where nothing was lost on
real sections.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import hed_from_rgb
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern, peak_local_max
from skimage.filters import threshold_otsu

from deepspace.core.errors import InputError

VERSION = 1  # raise it whenever a feature changes, so that cached features are not mixed
MULTIPLE = 8  # three halvings
MIN_SIDE = 32  # co-occurrence looks 8 pixels away at half the resolution

FloatArray = NDArray[np.float32]

_PERCENTILES = (5, 25, 50, 75, 95)
_LEVELS = 5
_BASE_SIGMA = 0.8
_NEIGHBOURHOODS = (3, 8)  # half-resolution pixels over which orientation is averaged
_GREY_LEVELS = 16
_DISTANCES = (1, 3, 8)
_ANGLES = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
_PROPERTIES = ("contrast", "homogeneity", "energy", "correlation", "dissimilarity")
_LBP_POINTS, _LBP_RADIUS = 8, 2
_MIN_NUCLEUS_PX = 8  # smaller spots of haematoxylin are noise
_MIN_HAEMATOXYLIN = 0.03  # below this optical density nothing is stained
_TINY = 1e-8

# optical density of every grey value, in the unit of skimage.color.rgb2hed
_DENSITY = (np.log(np.maximum(np.arange(256) / 255, 1e-6)) / np.log(1e-6)).astype(np.float32)
_UNMIX = hed_from_rgb.astype(np.float32)

_NUCLEI = (
    "fraction",
    "count",
    "log_area_mean",
    "log_area_sd",
    "peaks",
    "peak_mean",
    "peak_sd",
    "threshold",
    "haematoxylin_inside",
    "haematoxylin_outside",
    "eosin_inside",
    "eosin_outside",
)


def _names() -> tuple[str, ...]:
    names = [f"{c}_{s}" for c in "rgb" for s in ("mean", "sd", *(f"p{q}" for q in _PERCENTILES))]
    names += [f"{c}_{s}" for c in ("haematoxylin", "eosin", "residual") for s in ("mean", "sd")]
    names += [f"lbp_{k}" for k in range(_LBP_POINTS + 2)]
    names += [f"glcm_{p}_{d}px" for p in _PROPERTIES for d in _DISTANCES]
    names += [f"nuclei_{name}" for name in _NUCLEI]
    for channel in ("haematoxylin", "eosin"):
        names += [f"{channel}_detail{k}_{s}" for k in range(_LEVELS) for s in ("log_sd", "skew")]
    for channel in ("haematoxylin", "grey"):
        names += [
            f"{channel}_orientation{n}_{s}"
            for n in _NEIGHBOURHOODS
            for s in ("mean", "sd", "energy_sd")
        ]
    return tuple(names)


FEATURE_NAMES = _names()


def stain_features(patches: NDArray[np.uint8]) -> FloatArray:
    """Statistics of colour, texture and nuclei.

    Parameters
    ----------
    patches
        (b, s, s, 3) RGB; `s` a multiple of 8, at least 32.

    Returns
    -------
    ndarray
        (b, d) float32, columns named by `FEATURE_NAMES`. A patch's row depends on it alone.

    Raises
    ------
    InputError
        If `s` is not such a size.

    Examples
    --------
    >>> white = np.full((1, 64, 64, 3), 255, np.uint8)
    >>> row = dict(zip(FEATURE_NAMES, stain_features(white)[0].tolist()))
    >>> row["r_mean"], row["haematoxylin_mean"], row["nuclei_fraction"]
    (255.0, 0.0, 0.0)
    """
    side = patches.shape[1]
    if side % MULTIPLE or side < MIN_SIDE:
        raise InputError(
            f"encoder stain: patches of {side} px; "
            f"use a multiple of {MULTIPLE} from {MIN_SIDE}, such as 224"
        )
    if not len(patches):
        return np.empty((0, len(FEATURE_NAMES)), np.float32)
    return np.concatenate([_one(patch) for patch in patches]).astype(np.float32)


def mean_colour(patches: NDArray[np.uint8]) -> FloatArray:
    """Mean red, green and blue of `patches` (b, s, s, 3), shape (b, 3)."""
    means: FloatArray = patches.reshape(len(patches), -1, 3).mean(axis=1).astype(np.float32)
    return means


def _one(patch: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Features (1, d) of one patch (s, s, 3), so that no row can depend on another."""
    stains = _halve(_DENSITY[patch]) @ _UNMIX
    haematoxylin, eosin = (np.ascontiguousarray(stains[..., k]) for k in (0, 1))
    grey = _halve(patch.astype(np.float32)).mean(axis=2)
    parts = [
        _colour(patch),
        np.stack([stains.mean(axis=(0, 1)), stains.std(axis=(0, 1))], axis=1).ravel(),
        _binary_patterns(grey),
        _cooccurrence(grey),
        _nuclei(haematoxylin, eosin),
        _details(haematoxylin),
        _details(eosin),
        _orientation(haematoxylin),
        _orientation(grey / 255),
    ]
    return np.concatenate([np.asarray(part, np.float64) for part in parts])[None]


def _halve(image: FloatArray) -> FloatArray:
    """Mean over blocks of 2 x 2."""
    rows = image[::2] + image[1::2]
    means: FloatArray = (rows[:, ::2] + rows[:, 1::2]) * np.float32(0.25)
    return means


def _colour(patch: NDArray[np.uint8]) -> list[float]:
    """Mean, sd and percentiles of each channel from its histogram."""
    values = np.arange(256)
    found: list[float] = []
    for channel in range(3):
        share = np.bincount(patch[..., channel].ravel(), minlength=256) / patch[..., 0].size
        mean = share @ values
        cumulated = share.cumsum()
        found += [float(mean), float(np.sqrt(share @ (values - mean) ** 2))]
        found += [float((cumulated < q / 100 - 1e-12).sum()) for q in _PERCENTILES]
    return found


def _binary_patterns(grey: FloatArray) -> FloatArray:
    """Histogram of uniform local binary patterns."""
    levels = grey.round().astype(np.uint8)
    codes = local_binary_pattern(levels, _LBP_POINTS, _LBP_RADIUS, "uniform").astype(np.int64)  # type: ignore[no-untyped-call]
    shares: FloatArray = np.bincount(codes.ravel(), minlength=_LBP_POINTS + 2) / codes.size
    return shares


def _cooccurrence(grey: FloatArray) -> FloatArray:
    """Co-occurrence statistics, averaged over four directions."""
    levels = (grey * (_GREY_LEVELS / 256)).astype(np.uint8)
    matrix = graycomatrix(levels, _DISTANCES, _ANGLES, _GREY_LEVELS, symmetric=True, normed=True)  # type: ignore[no-untyped-call]
    return np.concatenate([graycoprops(matrix, name).mean(axis=1) for name in _PROPERTIES])  # type: ignore[no-untyped-call]


def _nuclei(haematoxylin: FloatArray, eosin: FloatArray) -> list[float]:
    """Describe number, size and stain of what Otsu's threshold takes for nuclei."""
    smooth = ndimage.gaussian_filter(haematoxylin, 1.0)
    threshold = max(float(threshold_otsu(smooth)), _MIN_HAEMATOXYLIN)  # type: ignore[no-untyped-call]
    inside = smooth > threshold
    labels, _ = ndimage.label(inside)
    areas = np.bincount(labels.ravel())[1:]
    log_areas = np.log1p(areas[areas >= _MIN_NUCLEUS_PX])
    peaks = peak_local_max(smooth, min_distance=3, threshold_abs=threshold, exclude_border=False)  # type: ignore[no-untyped-call]
    heights = smooth[tuple(peaks.T)]
    return [
        float(inside.mean()),
        float(len(log_areas)),
        *_mean_sd(log_areas),
        float(len(peaks)),
        *_mean_sd(heights),
        threshold,
        *(
            _mean_sd(image[where])[0]
            for image in (haematoxylin, eosin)
            for where in (inside, ~inside)
        ),
    ]


def _mean_sd(values: NDArray[Any]) -> tuple[float, float]:
    """Mean and standard deviation; zeros where there is nothing."""
    return (float(values.mean()), float(values.std())) if values.size else (0.0, 0.0)


def _details(image: FloatArray) -> list[float]:
    """Log sd and skewness of what a Gaussian pyramid loses from level to level."""
    found: list[float] = []
    smooth = ndimage.gaussian_filter(image, _BASE_SIGMA)
    found += _spread(image - smooth)
    # from sigma to 2 sigma at every level; the next level sees sigma again at half the resolution
    step = _BASE_SIGMA * np.sqrt(3)
    for _ in range(_LEVELS - 1):
        smoother = ndimage.gaussian_filter(smooth, step)
        found += _spread(smooth - smoother)
        smooth = smoother[::2, ::2]
    return found


def _spread(detail: FloatArray) -> list[float]:
    sd = float(detail.std())
    return [float(np.log(sd + 1e-4)), float((detail * detail * detail).mean() / (sd**3 + 1e-9))]


def _orientation(image: FloatArray) -> list[float]:
    """How aligned the gradients are around each point (coherence of the structure tensor)."""
    dy, dx = np.gradient(ndimage.gaussian_filter(image, 1.0))
    products = [_halve(_halve(product)) for product in (dx * dx, dy * dy, dx * dy)]
    found: list[float] = []
    for n in _NEIGHBOURHOODS:
        xx, yy, xy = (ndimage.gaussian_filter(product, n / 4) for product in products)
        energy = xx + yy + _TINY
        coherence = np.sqrt((xx - yy) ** 2 + 4 * xy**2) / energy
        found += [*_mean_sd(coherence), float(np.log(energy).std())]
    return found
