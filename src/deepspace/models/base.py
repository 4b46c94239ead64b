"""The one interface of everything that predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from deepspace.data.targets import Target
from deepspace.io.section import Section
from deepspace.io.slide import Slide

FloatArray = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Prediction:
    """Values at points, in the unit of the target.

    Attributes
    ----------
    mean : ndarray, shape (points, names)
        Expected value of a measurement there, a column for each of the target's names.
    sd : ndarray, shape (points, names)
        Standard deviation of a measurement there, its noise included, at a spot that is as noisy
        as the training spots are on average.
    sd_latent : ndarray, shape (points, names)
        Standard deviation of what is measured itself.
    """

    mean: FloatArray
    sd: FloatArray
    sd_latent: FloatArray

    def sd_at(self, thinness: FloatArray) -> FloatArray:
        """Standard deviation of measurements of another depth, shape (points, names).

        Parameters
        ----------
        thinness : ndarray, shape (points,)
            Their noise variance as a share of that of the training spots (`Target.thinness`).

        Examples
        --------
        >>> one = np.ones((1, 1))
        >>> found = Prediction(mean=one, sd=5 * one, sd_latent=3 * one)
        >>> found.sd_at(np.array([4.0])).round(2)  # a quarter of the counts
        array([[8.54]])
        """
        noise = np.maximum(self.sd**2 - self.sd_latent**2, 0.0)
        sd: FloatArray = np.sqrt(self.sd_latent**2 + noise * thinness[:, None])
        return sd


class Predictor(Protocol):
    """What a model must do. A prediction at a point never depends on the other points."""

    target: Target

    def fit(self, sections: Sequence[Section], target: Target) -> Self:
        """Learn from measured sections, reduced to their training spots."""
        ...

    def predict(self, slide: Slide, coords: FloatArray) -> Prediction:
        """Predict at `coords`, shape (points, 2), x and y in full-resolution pixels."""
        ...


class SavablePredictor(Predictor, Protocol):
    """A predictor that can be written to disk as JSON values and arrays."""

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Fitted state: JSON values and arrays."""
        ...

    def restore(self, target: Target, values: Mapping[str, Any], arrays: Arrays) -> Self:
        """Take back what `state` gave."""
        ...


def learnable(sections: Sequence[Section], target: Target) -> tuple[list[Section], Target]:
    """Sections reduced to the spots that have a label, and the target to learn from them.

    That target gives a spot the same label however the sections are cut further.
    """
    sections, target = target.settled(sections)
    masks = [(s, target.labelled(s.require_counts())) for s in sections]
    return [s if mask.all() else s.subset(mask) for s, mask in masks if mask.any()], target
