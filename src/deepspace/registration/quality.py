"""How good a registration is, and whether it is better than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepspace.registration.prepare import Picture
from deepspace.registration.refine import Pair, correlation
from deepspace.registration.transform import Transform

_BINS = 32
_LEAST_PIXELS = 100
_LEAST_SPREAD = 0.01
_COARSE_PX = 165
_FINE_PX = 300


@dataclass(frozen=True)
class Quality:
    """Scores of one registered pair.

    Attributes
    ----------
    overlap
        Dice coefficient of the tissue masks.
    mutual_information
        Of the densities where both have tissue, nats.
    agreement
        Of structure and detail, see `Scales.agreement`.
    chance
        Largest agreement of the same pair in another orientation, fitted as carefully.
    excess
        Agreement over the mean of the other orientations, in their standard deviations.
    """

    overlap: float
    mutual_information: float
    agreement: float
    chance: float
    excess: float

    def better_than_chance(self, least_excess: float) -> bool:
        """Tell whether no other orientation comes near."""
        return self.agreement > self.chance and self.excess >= least_excess


@dataclass(frozen=True)
class Scales:
    """A pair at the two resolutions that orientations are compared at."""

    coarse: Pair
    fine: Pair

    @classmethod
    def of(cls, moving: Picture, fixed: Picture) -> Scales:
        """Compare at 165 and 300 pixels along the larger tissue."""
        longest = max(*moving.mask.shape, *fixed.mask.shape) * moving.um_per_px
        coarse = Pair.at(moving, fixed, longest / _COARSE_PX, 2.0)
        return cls(coarse, Pair.at(moving, fixed, longest / _FINE_PX, 1.5))

    def agreement(self, transform: Transform) -> float:
        """Mean of two correlations: coarse structure with the outline, and detail without it.

        Each is blind where the other is not: serial sections far apart share no detail, slides
        of one shape share the outline.
        """
        detail = inner_agreement(self.fine, transform)
        return (self.coarse.agreement(transform) + detail) / 2.0


def assess(
    agreement: float,
    rivals: Sequence[float],
    pictures: tuple[Picture, Picture],
    transform: Transform,
) -> Quality:
    """Score a registration against the best that other orientations of the pair can do.

    Sections of one block agree in one orientation only. Two slides that are strangers agree as
    well in several. The rivals were fitted in the same way, so that chance has had the same
    freedom; all are compared without the smooth deformation.

    Parameters
    ----------
    agreement
        Of the chosen map, `Scales.agreement`.
    rivals
        Agreements of the maps in other orientations.
    pictures
        Moving and fixed.
    transform
        The chosen map with its deformation.
    """
    null = np.array(rivals if len(rivals) else [0.0])
    return Quality(
        overlap=mask_overlap(*pictures, transform),
        mutual_information=mutual_information(*pictures, transform),
        agreement=agreement,
        chance=float(null.max()),
        excess=(agreement - float(null.mean())) / max(float(null.std()), _LEAST_SPREAD),
    )


def inner_agreement(pair: Pair, transform: Transform) -> float:
    """Correlation of the contrast inside both tissues, times the root of the overlap."""
    core, other = pair.core
    mapped = transform.forward(pair.points[core])
    inside = pair.fixed.look(other, mapped) > 0.5
    shared = int(inside.sum())
    if shared < _LEAST_PIXELS:
        return 0.0
    smaller = min(int(core.sum()), int(other.sum() * pair.share))
    found = correlation(
        pair.values[core][inside], pair.fixed.look(pair.fixed_contrast, mapped[inside])
    )
    return found * float(np.sqrt(min(1.0, shared / smaller)))


def mask_overlap(moving: Picture, fixed: Picture, transform: Transform) -> float:
    """Dice coefficient of the tissue masks after registration.

    Examples
    --------
    >>> square = Picture(np.ones((4, 4), np.float32), np.ones((4, 4), bool), (0.0, 0.0), 1.0)
    >>> mask_overlap(square, square, Transform.of(np.eye(2), (2.0, 0.0)))
    0.5
    """
    points = transform.forward(moving.points()[moving.mask.ravel()])
    shared = float((fixed.look(fixed.mask, points) > 0.5).sum()) * moving.um_per_px**2
    # areas are compared on the fixed section: the map may stretch
    stretch = abs(float(np.linalg.det(transform.linear)))
    total = moving.area_um2() * stretch + fixed.area_um2()
    return float(2.0 * shared * stretch / total) if total > 0 else 0.0


def mutual_information(moving: Picture, fixed: Picture, transform: Transform) -> float:
    """Mutual information, nats, of the densities where both have tissue."""
    points = transform.forward(moving.points()[moving.mask.ravel()])
    inside = fixed.look(fixed.mask, points) > 0.5
    if not inside.any():
        return 0.0
    a = moving.density[moving.mask][inside]
    b = fixed.look(fixed.density, points[inside])
    joint = np.histogram2d(a, b, bins=_BINS, range=((0.0, 1.0), (0.0, 1.0)))[0]
    joint /= joint.sum()
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    some = joint > 0
    return float((joint[some] * np.log(joint[some] / apart[some])).sum())
