"""Scores of gene sets at predicted points, with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
# a gene that varies less, in log1p CP10k, is predicted the same everywhere
CONSTANT = 1e-6


def expected_sd(values: FloatArray, sd: FloatArray) -> FloatArray:
    """Sd over the points that the true expression is expected to have, shape (genes,).

    Predictions vary less than the truth, the less the worse they are: variance of the predictions
    plus the mean of their own variances (law of total variance). In this unit a gene that is
    predicted badly counts less.

    Parameters
    ----------
    values, sd : ndarray, shape (points, genes)
        Predicted expression and the sd of the expression itself (``layers['sd_latent']``).
    """
    unit: FloatArray = np.sqrt(values.var(axis=0) + np.square(sd).mean(axis=0))
    return unit


@dataclass(frozen=True)
class ModuleScores:
    """Scores of gene sets, each (points, sets).

    Attributes
    ----------
    score
        Mean over the genes of their values in units of `expected_sd`; 0 is the mean of the
        reference points.
    sd
        Standard deviation of `score` if the errors of all its genes go the same way: never too
        small, whatever their correlation.
    sd_independent
        The same if the errors had nothing to do with each other.
    mean
        Mean of the values as they are; does not depend on the reference points.
    """

    score: FloatArray
    sd: FloatArray
    sd_independent: FloatArray
    mean: FloatArray

    def support(self, points: NDArray[np.bool_]) -> FloatArray:
        """Share of the variation of each true score that the prediction shows, shape (sets,).

        Variance of the predicted scores over that and the mean of ``sd**2``: with calibrated sd
        the squared correlation of predicted and true scores to expect, at the least.
        """
        shown = self.score[points].var(axis=0)
        total = shown + np.square(self.sd[points]).mean(axis=0)
        share: FloatArray = np.divide(shown, total, out=np.zeros_like(shown), where=total > 0)
        return share


def module_scores(
    values: FloatArray, sd: FloatArray, sets: Sequence[Sequence[int]], reference: NDArray[np.bool_]
) -> ModuleScores:
    """Mean of the genes of each set, every gene in units of its `expected_sd`.

    The plain mean is taken, without the control genes of Tirosh et al. (Science 352:189, 2016).
    They correct for the quality of single cells, which predicted values do not have; among the few
    hundred genes that can be predicted the controls would be the markers of the other tissues, so
    that each score would fall where those rise, and it would depend on the draw of the controls.

    The genes of a set are predicted from the same image features, so that their errors go
    together by an unknown amount. The sd of a mean is never above the mean of the sds (equality:
    full correlation); this bound is `sd`.

    Parameters
    ----------
    values, sd : ndarray, shape (points, genes)
        Predicted expression and the sd of the expression itself (``layers['sd_latent']``).
    sets : sequence of sequences of int
        Columns of each set; none empty, and no gene constant.
    reference : ndarray of bool, shape (points,)
        Points whose mean is 0 and that the unit is of.
    """
    centre = values[reference].mean(axis=0)
    unit = expected_sd(values[reference], sd[reference])
    scores = ModuleScores(*(np.zeros((len(values), len(sets))) for _ in range(4)))
    for k, columns in enumerate(sets):
        own = np.asarray(columns, np.intp)
        errors = sd[:, own] / unit[own]
        scores.score[:, k] = ((values[:, own] - centre[own]) / unit[own]).mean(axis=1)
        scores.sd[:, k] = errors.mean(axis=1)
        scores.sd_independent[:, k] = np.sqrt(np.square(errors).sum(axis=1)) / len(own)
        scores.mean[:, k] = values[:, own].mean(axis=1)
    return scores
