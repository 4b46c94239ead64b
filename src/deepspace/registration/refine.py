"""Rigid, similarity and affine maps that make two pictures agree best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, ndimage

from deepspace.registration.prepare import Floats, Mask, Picture
from deepspace.registration.transform import FloatArray, Transform

_ROTATION = ((0.0, -1.0), (1.0, 0.0))
_SCALE = ((1.0, 0.0), (0.0, 1.0))
_STRETCH = ((1.0, 0.0), (0.0, -1.0))
_SHEAR = ((0.0, 1.0), (1.0, 0.0))

FREEDOM: dict[str, tuple[tuple[tuple[float, float], tuple[float, float]], ...]] = {
    "rigid": (_ROTATION,),
    "similarity": (_ROTATION, _SCALE),
    "affine": (_ROTATION, _SCALE, _STRETCH, _SHEAR),
}
"""What may change besides the position: generators of the linear part."""

_STEPS = 12
_DAMPING = 1e-3
_WINDOW = 4.0
_POINTS = 8000
_RIM_PX = 6


@dataclass(frozen=True)
class Pair:
    """Two pictures at one resolution, with the channels that are compared.

    Attributes
    ----------
    moving, fixed
        The pictures.
    fixed_contrast
        Contrast (h, w) of the fixed one.
    points
        Some pixels of the moving tissue, um, shape (n, 2).
    values
        Contrast there, shape (n,).
    share
        How many of the tissue's pixels these are.
    core
        Which of `points` are not at the rim of the tissue, shape (n,), and the fixed tissue
        without its rim, shape (h, w).
    """

    moving: Picture
    fixed: Picture
    fixed_contrast: Floats
    points: FloatArray
    values: Floats
    share: float
    core: tuple[Mask, Mask]

    @classmethod
    def at(cls, moving: Picture, fixed: Picture, um_per_px: float, blur_px: float) -> Pair:
        """Compare two pictures at this resolution and blur."""
        moving, fixed = moving.coarser(um_per_px), fixed.coarser(um_per_px)
        window = _WINDOW * blur_px
        inside = np.flatnonzero(moving.mask)
        few = len(inside) > _POINTS
        chosen = np.sort(np.random.default_rng(0).permutation(inside)[:_POINTS]) if few else inside
        return cls(
            moving,
            fixed,
            fixed.contrast(blur_px, window),
            moving.points()[chosen],
            moving.contrast(blur_px, window).ravel()[chosen],
            len(chosen) / max(1, len(inside)),
            (_core(moving.mask).ravel()[chosen], _core(fixed.mask)),
        )

    def agreement(self, transform: Transform) -> float:
        """Correlation of the contrast where both have tissue, less where they overlap little."""
        return self.agreement_at(transform.forward(self.points))

    def agreement_at(self, mapped: FloatArray) -> float:
        """Return the agreement of points that have been mapped already."""
        inside = self.fixed.look(self.fixed.mask, mapped) > 0.5
        shared = int(inside.sum())
        smaller = min(len(self.points), int(self.fixed.mask.sum() * self.share))
        if shared < max(30, 0.2 * smaller):
            return 0.0
        other = self.fixed.look(self.fixed_contrast, mapped[inside])
        overlap = float(np.sqrt(min(1.0, shared / smaller)))
        return correlation(self.values[inside], other) * overlap


def _core(mask: Mask) -> Mask:
    """Tissue without its rim; where little is left, all of it."""
    core: Mask = ndimage.binary_erosion(mask, iterations=_RIM_PX, border_value=1)
    return core if core.sum() > 0.2 * mask.sum() else mask


def correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Pearson correlation; 0 where one of them is constant."""
    x, y = a - a.mean(), b - b.mean()
    size = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / size if size > 0 else 0.0


def refine(pair: Pair, start: Transform, freedom: str, steps: int = _STEPS) -> Transform:
    """Gauss-Newton on the contrast of two pictures from a start that is nearly right.

    The map is changed by left multiplication with the exponential of the generators of
    `freedom` (Baker & Matthews, International Journal of Computer Vision 56:221, 2004), about
    the centre of the fixed tissue.

    Returns
    -------
    The best transform seen, never worse in agreement than `start`.
    """
    fixed = pair.fixed
    slopes = [ndimage.sobel(pair.fixed_contrast, axis=a) / 8.0 / fixed.um_per_px for a in (1, 0)]
    centre = fixed.centre_um()
    radius = float(np.sqrt(fixed.area_um2()))
    best, best_score = start, pair.agreement(start)
    current = start
    for _ in range(steps):
        current = _step(pair, current, slopes, (centre, radius), freedom)
        score = pair.agreement(current)
        if score > best_score:
            best, best_score = current, score
    return best


def _step(
    pair: Pair,
    current: Transform,
    slopes: list[Floats],
    frame: tuple[FloatArray, float],
    freedom: str,
) -> Transform:
    """Return the map after one Gauss-Newton step."""
    centre, radius = frame
    fixed = pair.fixed
    mapped = current.forward(pair.points)
    inside: Mask = fixed.look(fixed.mask, mapped) > 0.5
    if inside.sum() < 30:
        return current
    mapped = mapped[inside]
    gap = pair.values[inside] - fixed.look(pair.fixed_contrast, mapped)
    slope = np.stack([fixed.look(s, mapped) for s in slopes], axis=-1).astype(np.float64)
    arm = (mapped - centre) / radius
    generators = np.asarray(FREEDOM[freedom])
    columns = [slope[:, 0], slope[:, 1]]
    columns += [((arm @ g.T) * slope).sum(axis=-1) for g in generators]
    design = np.stack(columns, axis=-1)
    normal = design.T @ design
    normal += _DAMPING * np.diag(np.diag(normal)) + 1e-12 * np.eye(len(normal))
    found = np.linalg.solve(normal, design.T @ gap)
    # no further than the slopes can tell
    longest = np.hypot(found[0], found[1]) + np.abs(found[2:]).max(initial=0.0)
    found *= min(1.0, 3.0 * fixed.um_per_px / max(longest, 1e-9))
    turn = np.einsum("g,gij->ij", found[2:] / radius, generators)
    linear = linalg.expm(turn)
    shift = centre - linear @ centre + found[:2]
    return current.then(Transform.of(linear, shift))
