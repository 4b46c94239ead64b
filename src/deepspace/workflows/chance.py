"""What chance can do: held-out scores where no label lies where it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.spatial import KDTree
from scipy.special import digamma, polygamma
from scipy.stats import t as student_t

from deepspace.core.metrics import pearson, within_folds
from deepspace.core.progress import track
from deepspace.data.shift_null import LEAST_OVERLAP, random_move
from deepspace.io.section import Section
from deepspace.models.registry import Workbench, for_chance
from deepspace.workflows.expression_scoring import HeldOut
from deepspace.workflows.trial import Trial

FloatArray = NDArray[np.float64]
Rows = NDArray[np.int64]

# prior degrees of freedom of genes that all vary alike
MOST_DEGREES = 100.0
# moves of the measurements under predictions that are there already
OWN_MOVES = 99
_TRIES = 50


def moved_rows(coords: FloatArray, rng: np.random.Generator) -> Rows:
    """Which spot's measurement each spot gets when all are moved as a whole, shape (spots,).

    The spots are turned, mirrored and shifted at random (`deepspace.data.shift_null`), and each
    takes the measurement of the spot nearest to where it came to lie: neighbours stay neighbours.

    Examples
    --------
    >>> line = np.column_stack([np.arange(6.0), np.zeros(6)])
    >>> sorted(set(moved_rows(line, np.random.default_rng(0)).tolist())) == list(range(6))
    False
    """
    tree = KDTree(coords)
    pitch = float(np.median(tree.query(coords, 2)[0][:, 1]))
    low, high = coords.min(axis=0), coords.max(axis=0)
    best, most = np.arange(len(coords)), -1.0
    for _ in range(_TRIES):
        distance, rows = tree.query(random_move(coords, low, high, rng))
        met = float((distance <= pitch).mean())
        if met > most:
            best, most = rows.astype(np.int64), met
        if met >= LEAST_OVERLAP:
            break
    return best


def chance_scores(trial: Trial, bench: Workbench, moves: int) -> pd.DataFrame:
    """Held-out Pearson correlation of every gene under models of moved labels.

    The measurements of each section are moved as a whole over its spots, one move a section,
    and `probe` is trained and scored on them, penalties and all. What ties genes to the image is
    broken; kept are the smoothness of both and, since a section that trains one fold is scored in
    another, the dependence between folds. Both let a model of nothing correlate with a gene by
    more than independent spots would let expect: these scores say by how much.

    Returns
    -------
    DataFrame
        Index gene, one column a move: mean over sections, NaN where there is no score.
    """
    columns = {}
    for number in track(range(moves), total=moves, text="moved labels"):
        name = f"move {number + 1}"
        sections = [
            _moved(section, np.random.default_rng([bench.config.seed, number, k]))
            for k, section in enumerate(trial.sections)
        ]
        slots = {
            section.section: replace(trial.slots[section.section], section=section)
            for section in sections
            if section.section in trial.slots
        }
        moved = replace(trial, sections=sections, slots=slots)
        columns[name] = _mean_scores(moved.run({name: partial(for_chance, bench)}), name)
    return pd.DataFrame(columns)


def own_chance(held_out: Mapping[str, HeldOut], model: str, seed: int) -> pd.DataFrame:
    """Correlation of a model's predictions with measurements that are moved under them.

    Where `chance_scores` trains `probe` anew, this tells how far the very predictions of `model`
    correlate with genes by their smoothness alone. Shape and columns as there, `OWN_MOVES` of
    them. Moved under predictions that stay, the sections score independently; in truth what
    one section tells of another, that one tells of it again, so that of all pairs half repeat
    the other half: the scores are given with twice their variance.
    """
    parts = []
    for k, (_, slot) in enumerate(sorted(held_out.items())):
        rng = np.random.default_rng([seed, k])
        predicted = slot.predicted[model]
        whole = ~(np.isnan(predicted) | np.isnan(slot.measured)).any(axis=0)
        centred = within_folds(predicted[:, whole], slot.fold)
        measured = slot.measured[:, whole]
        found = [
            pearson(
                within_folds(measured[moved_rows(slot.section.coords, rng)], slot.fold), centred
            )
            for _ in range(OWN_MOVES)
        ]
        names = [f"move {number + 1}" for number in range(OWN_MOVES)]
        index = np.array(slot.genes)[whole]
        parts.append(pd.DataFrame(np.column_stack(found), index, names))
    together: pd.DataFrame = pd.concat(parts).groupby(level=0, sort=False).mean()
    return together * 2**0.5


def _moved(section: Section, rng: np.random.Generator) -> Section:
    """The section with its counts moved over its spots."""
    counts = section.require_counts()
    moved = counts.copy()
    moved.X = counts.X[moved_rows(section.coords, rng)]
    return replace(section, counts=moved)


def _mean_scores(held_out: dict[str, HeldOut], model: str) -> pd.Series:
    parts = []
    for slot in held_out.values():
        predicted = slot.predicted[model]
        whole = ~(np.isnan(predicted) | np.isnan(slot.measured)).any(axis=0)
        pair = (within_folds(v[:, whole], slot.fold) for v in (slot.measured, predicted))
        parts.append(pd.Series(pearson(*pair), np.array(slot.genes)[whole]))
    together = pd.concat(parts)
    return together.groupby(level=0, sort=False).mean()


def summarise_chance(null: pd.DataFrame) -> dict[str, Any]:
    """Mean correlation over genes under all moves, and how far single moves lie apart."""
    means = null.mean()
    return {
        "number": int(null.shape[1]),
        "mean_pearson": round(float(means.mean()), 4),
        "sd_of_means": round(float(means.std(ddof=1)), 4) if len(means) > 1 else None,
    }


def p_values(score: FloatArray, null: FloatArray) -> FloatArray:
    """Chance that moved labels reach a gene's score, one-sided, shape (genes,).

    The spread of a gene's score around 0 is estimated from its own moves, moderated by that
    of all genes (empirical Bayes on the log variance: Smyth, Stat. Appl. Genet. Mol. Biol. 3,
    2004), so that few moves suffice; the score over that spread follows Student's t.

    Parameters
    ----------
    score : ndarray, shape (genes,)
        NaN has p = 1.
    null : ndarray, shape (genes, moves)
        Scores of the same genes under moved labels; NaN where there are none.

    Examples
    --------
    >>> null = np.random.default_rng(0).normal(0, 0.1, (200, 10))
    >>> p_values(np.array([0.0, 0.1, 0.5]), null[:3]).round(3)
    array([0.5  , 0.122, 0.   ])
    """
    known = ~np.isnan(null).any(axis=1) & ~np.isnan(score)
    p = np.ones(len(score))
    if not known.any():
        return p
    moves = null.shape[1]
    # no tie to the image is left, so the mean is 0: no degree of freedom goes into it
    variance = np.maximum((null[known] ** 2).mean(axis=1), 1e-8)
    prior, degrees = _prior(variance, moves)
    moderated = (moves * variance + degrees * prior) / (moves + degrees)
    p[known] = student_t.sf(score[known] / np.sqrt(moderated), moves + degrees)
    return p


def _prior(variance: FloatArray, degrees: int) -> tuple[float, float]:
    """Variance of a typical gene, and degrees of freedom that it is worth (Smyth 2004, eq. 6.2)."""
    half = degrees / 2
    logs = np.log(variance) - digamma(half) + np.log(half)
    excess = float(logs.var(ddof=1) - polygamma(1, half)) if len(logs) > 1 else 0.0
    if excess <= polygamma(1, MOST_DEGREES / 2):
        worth = MOST_DEGREES
    else:
        worth = 2 * brentq(lambda x: polygamma(1, x) - excess, 1e-3, MOST_DEGREES / 2)
    typical = float(np.exp(logs.mean() + digamma(worth / 2) - np.log(worth / 2)))
    return typical, float(worth)
