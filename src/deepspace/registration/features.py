"""Guesses from matched key points, which need neither an outline nor a search of angles."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from skimage import exposure, feature, measure
from skimage import transform as geometry

from deepspace.registration.prepare import Picture
from deepspace.registration.transform import FloatArray, Transform

MODELS = {
    "rigid": geometry.EuclideanTransform,
    "similarity": geometry.SimilarityTransform,
    "affine": geometry.AffineTransform,
}
"""Maps that RANSAC may fit."""

_RATIO = 0.85
_LEAST = 8
_TRIALS = 2000


def from_key_points(
    moving: Picture, fixed: Picture, freedoms: Collection[str], tolerance_um: float, seed: int
) -> list[Transform]:
    """Fit maps of some kinds (keys of `MODELS`) to matched SIFT key points, also mirrored.

    Lowe (International Journal of Computer Vision 60:91, 2004) for the key points; RANSAC
    (Fischler & Bolles, Communications of the ACM 24:381, 1981) for the map.

    Returns
    -------
    At most one map of each kind each way; none where fewer than eight matches agree.
    """
    target = _key_points(fixed)
    found = []
    for view, way in ((moving, Transform.identity()), (moving.mirrored(), moving.mirror())):
        matched = _match(_key_points(view), target)
        if matched is None:
            continue
        for freedom in freedoms:
            fitted = _fit(matched, freedom, tolerance_um, seed)
            if fitted is not None:
                found.append(way.then(fitted))
    return found


def _key_points(picture: Picture) -> tuple[FloatArray, FloatArray]:
    """Places, um (n, 2), and descriptors (n, 128) of the key points on tissue."""
    even = exposure.equalize_adapthist(np.clip(picture.density, 0.0, 1.0))
    sift: Any = feature.SIFT(upsampling=1)  # type: ignore[no-untyped-call]
    try:
        sift.detect_and_extract(even)
    except RuntimeError:  # a picture without key points
        return np.zeros((0, 2)), np.zeros((0, 128))
    rows, columns = sift.keypoints.T
    on_tissue = picture.mask[rows, columns]
    index = np.stack([columns, rows], axis=-1)[on_tissue]
    places = (index + 0.5) * picture.um_per_px + np.asarray(picture.origin_um)
    return places, sift.descriptors[on_tissue].astype(np.float64)


def _match(
    moving: tuple[FloatArray, FloatArray], fixed: tuple[FloatArray, FloatArray]
) -> tuple[FloatArray, FloatArray] | None:
    """Places, um (n, 2), of the key points of both that look alike; None if there are few."""
    if min(len(moving[0]), len(fixed[0])) < _LEAST:
        return None
    pairs = feature.match_descriptors(  # type: ignore[no-untyped-call]
        moving[1], fixed[1], max_ratio=_RATIO, cross_check=True
    )
    if len(pairs) < _LEAST:
        return None
    return moving[0][pairs[:, 0]], fixed[0][pairs[:, 1]]


def _fit(
    matched: tuple[FloatArray, FloatArray], freedom: str, tolerance_um: float, seed: int
) -> Transform | None:
    model, inliers = measure.ransac(  # type: ignore[no-untyped-call]
        matched,
        MODELS[freedom],
        min_samples=3,
        residual_threshold=tolerance_um,
        max_trials=_TRIALS,
        rng=np.random.default_rng(seed),
    )
    if model is None or inliers is None or inliers.sum() < _LEAST:
        return None
    return Transform(np.asarray(model.params, np.float64))
