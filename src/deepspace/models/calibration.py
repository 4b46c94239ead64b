"""Standard deviations that hold on sections that were left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from deepspace.data.splits import Fold
from deepspace.data.targets import Target
from deepspace.io.section import Section
from deepspace.models.base import FloatArray, Prediction, Predictor

# share of measurements that an interval should hold
COVERAGE = 0.9
# groups of genes that get a factor each
GROUPS = 5
# a gene group is not told by fewer values
LEAST_VALUES = 50


@dataclass(frozen=True)
class LeftOut:
    """A prediction of spots that were left out: `rows` of `section`, in fold `number`."""

    number: int
    section: Section
    rows: NDArray[np.int64]
    prediction: Prediction


def left_out(
    build: Callable[[], Predictor],
    sections: Sequence[Section],
    target: Target,
    folds: Sequence[Fold],
) -> list[LeftOut]:
    """Predict every fold's spots by a predictor fitted without them.

    Parameters
    ----------
    build : callable
        Makes a predictor that is not fitted yet.
    sections : sequence of Section
        Measured sections.
    target : Target
        What is predicted.
    folds : sequence of Fold
        What is left out in turn.
    """
    found = []
    for number, fold in enumerate(folds):
        predictor = build().fit(fold.training(sections), target)
        for section in sections:
            if section.section in fold.test:
                rows = np.flatnonzero(fold.test[section.section])
                prediction = predictor.predict(section.slide, section.coords[rows])
                found.append(LeftOut(number, section, rows, prediction))
    return found


@dataclass(frozen=True)
class Calibration:
    """Factors of standard deviations, learnt on what was left out.

    Attributes
    ----------
    factor : ndarray, shape (names,)
        What the sd of each gene is multiplied by; the same within a group of genes.
    held_out : int
        How many sections or blocks, left out in turn, the factors rest on.
    image_factor : ndarray, shape (names,)
        The same for the sd of the image term alone, where nothing was measured around.
    """

    factor: FloatArray
    held_out: int
    image_factor: FloatArray

    @classmethod
    def none(cls, names: int) -> Calibration:
        """Factors of 1, which rest on nothing."""
        return cls(np.ones(names), 0, np.ones(names))

    def describe(self) -> str:
        """Say what the intervals rest on."""
        low, high = float(self.factor.min()), float(self.factor.max())
        return (
            f"sd calibrated on {self.held_out} held-out sections or blocks of the training data, "
            f"factors {low:.2f} to {high:.2f}"
        )


def calibrate(
    errors: FloatArray, sd: FloatArray, held_out: NDArray[np.int64], by: FloatArray
) -> Calibration:
    """Factors for which 90 % intervals hold 90 % of what was left out.

    A normal interval of ``+-1.645 sd`` is made as wide as the 90 % quantile of the errors asks
    for, in each group of genes. Every held-out section counts alike; sections differ, so the
    widths are widened until they hold on sections that did not tell them (`_widening`). They then
    hold 90 % on average over these sections and a group's genes: of few sections that is no
    guarantee for the next one, nor for a single gene.

    Parameters
    ----------
    errors, sd : ndarray, shape (spots, names)
        Errors at spots that were left out, and the standard deviations given with them.
    held_out : ndarray of int, shape (spots,)
        What each spot was left out with.
    by : ndarray, shape (names,)
        Genes of similar values share a factor.
    """
    score = np.abs(errors) / np.maximum(sd, 1e-12)
    numbers = np.unique(held_out)
    groups = max(1, min(GROUPS, errors.size // (LEAST_VALUES * len(numbers))))
    parts = [g for g in np.array_split(np.argsort(by, kind="stable"), groups) if len(g)]
    own = np.array(
        [[np.quantile(score[held_out == k][:, g], COVERAGE) for g in parts] for k in numbers]
    )
    factor = np.ones(errors.shape[1])
    widening = _widening(score, held_out, parts, own)
    for genes, wide in zip(parts, own.mean(axis=0), strict=True):
        factor[genes] = widening * wide / norm.ppf((1 + COVERAGE) / 2)
    return Calibration(np.maximum(factor, 1e-3), len(numbers), np.ones_like(factor))


def _widening(
    score: FloatArray, held_out: NDArray[np.int64], parts: Sequence[NDArray[Any]], own: FloatArray
) -> float:
    """How much wider intervals must be on a section that told nothing of their width.

    Each held-out section is covered by the mean width that the others (sections, parts) ask for;
    the factor makes that hold 90 % of it, on average over sections.
    """
    if len(own) < 2:
        return 1.0
    asked = []
    for k, number in enumerate(np.unique(held_out)):
        others = np.delete(own, k, axis=0).mean(axis=0)
        mine = score[held_out == number]
        asked.append(
            np.concatenate([(mine[:, g] / w).ravel() for g, w in zip(parts, others, strict=True)])
        )
    weights = np.concatenate([np.full(len(values), 1 / len(values)) for values in asked])
    values = np.concatenate(asked)
    order = np.argsort(values, kind="stable")
    held = np.cumsum(weights[order]) / len(asked)
    # the last sum may round to just below what all of them hold
    place = min(int(np.searchsorted(held, COVERAGE - 1e-9)), len(order) - 1)
    return float(values[order[place]])
