"""Target values to what a network is trained on, and back; fitted on training spots alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deepspace.models.base import FloatArray


@dataclass(frozen=True)
class Scaling:
    """An affine map per target.

    Attributes
    ----------
    offset, spread : ndarray, shape (names,)
        An output of the network times `spread` plus `offset` is a value of the target.
    centred : bool
        Whether labels are taken relative to their own section's level, `offset` being the mean
        of the levels: a new section's level is not told by its image.
    """

    offset: FloatArray
    spread: FloatArray
    centred: bool

    def labels(self, values: FloatArray, level: FloatArray) -> FloatArray:
        """What to train on, for the values (spots, names) of a section of that mean level."""
        return (values - (level if self.centred else self.offset)) / self.spread

    def values(self, outputs: FloatArray) -> FloatArray:
        """Values of the target for outputs (points, names) of the network."""
        return self.offset + outputs * self.spread


def _by_section(sections: Sequence[FloatArray]) -> Scaling:
    levels = np.stack([values.mean(axis=0) for values in sections])
    within = np.concatenate([values - values.mean(axis=0) for values in sections])
    return Scaling(levels.mean(axis=0), _not_zero(within.std(axis=0)), centred=True)


def _min_max(sections: Sequence[FloatArray]) -> Scaling:
    values = np.concatenate(sections)
    low = values.min(axis=0)
    return Scaling(low, _not_zero(values.max(axis=0) - low), centred=False)


def as_it_is(sections: Sequence[FloatArray]) -> Scaling:
    """Labels are the values: indicators of clusters."""
    names = sections[0].shape[1]
    return Scaling(np.zeros(names), np.ones(names), centred=False)


def _not_zero(spread: FloatArray) -> FloatArray:
    """A target that never varies keeps its unit."""
    return np.where(spread > 0, spread, 1.0)


SCALINGS: dict[str, Callable[[Sequence[FloatArray]], Scaling]] = {
    "section": _by_section,
    "minmax": _min_max,
}
