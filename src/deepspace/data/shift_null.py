"""Correlation of two maps against chance: one is shifted, turned and mirrored under the other.

Neighbouring points of a map resemble each other, so a map of thousands of points holds few
independent values and two unrelated maps correlate far beyond what a table of p-values for
independent points allows. Moving one map as a whole keeps the texture of both and breaks only what
ties them together; how the correlations of moved maps scatter is what chance can do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from deepspace.core.errors import InputError

FloatArray = NDArray[np.float64]
# values at points (n, 2), NaN where the map ends
Look = Callable[[FloatArray], FloatArray]

LEAST_SHIFTS = 199
LEAST_OVERLAP = 0.35
LEAST_POINTS = 20
_TRIES = 20


@dataclass(frozen=True)
class MovedMaps:
    """A map as it lies under some points, and as it lies after random moves.

    Attributes
    ----------
    there
        Its values at the points, (n,); NaN where it ends.
    moved
        The same after each move, (n, moves).
    refused
        Moves that were drawn again, because too few points met the map.
    """

    there: FloatArray
    moved: NDArray[np.float32]
    refused: int

    @property
    def overlap(self) -> FloatArray:
        """Points that meet the map after each move, of those that meet it in place, (moves,)."""
        met: FloatArray = np.isfinite(self.moved).sum(axis=0) / np.isfinite(self.there).sum()
        return met


def move_map(look: Look, points: ArrayLike, *, moves: int = 999, seed: int = 0) -> MovedMaps:
    """Look a map up at points, and at the same points after random moves.

    A move turns the points by any angle about the middle of their box, mirrors every second one,
    shifts them by any part of the box and wraps what leaves it to the other side. Points that
    then lie where the map ends are left out; a move that leaves less than `LEAST_OVERLAP` of the
    points is drawn again.

    Parameters
    ----------
    look
        The map.
    points
        (n, 2), in the frame of the map.
    moves
        How many, at least 199.
    seed
        Of the moves.

    Raises
    ------
    InputError
        If fewer than 20 points lie on the map, or hardly any move leaves enough of them.
    """
    if moves < LEAST_SHIFTS:
        raise InputError(
            f"{moves} random shifts are too few to judge by; use at least {LEAST_SHIFTS}"
        )
    coords = np.asarray(points, np.float64).reshape(-1, 2)
    there = look(coords)
    used = np.isfinite(there)
    if used.sum() < LEAST_POINTS:
        raise InputError(
            f"only {used.sum()} of {len(coords)} points lie on the stained tissue, at least "
            f"{LEAST_POINTS} are needed; predict more points, as with --at grid:50, or give the "
            "IHC of the same piece of tissue"
        )
    low, high = coords[used].min(axis=0), coords[used].max(axis=0)
    rng = np.random.default_rng(seed)
    moved = np.empty((len(coords), moves), np.float32)
    done = refused = 0
    while done < moves:
        values = look(random_move(coords, low, high, rng))
        # a point that has no value in place takes no part after a move either
        values[~used] = np.nan
        if np.isfinite(values).sum() >= LEAST_OVERLAP * used.sum():
            moved[:, done] = values
            done += 1
        else:
            refused += 1
        if refused > _TRIES * moves:
            raise InputError(
                "the tissue is too thin or too broken for a fair comparison: shifted, hardly any "
                "points still lie on it; take a larger piece"
            )
    return MovedMaps(there, moved, refused)


def random_move(
    coords: FloatArray, low: FloatArray, high: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Points (n, 2) turned, every second time mirrored, and shifted round their box."""
    size = np.maximum(high - low, 1e-9)
    angle = rng.uniform(0.0, 2.0 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) @ np.diag([rng.choice([-1.0, 1.0]), 1.0])
    middle = (low + high) / 2.0
    out: FloatArray = (coords - middle) @ turn.T + middle - low + rng.uniform(0.0, 1.0, 2) * size
    return out % size + low


def correlations(values: ArrayLike, maps: ArrayLike) -> FloatArray:
    """Pearson correlation of every column of `values` with every one of `maps`.

    Parameters
    ----------
    values
        (n, genes), finite.
    maps
        (n, moves); rows that are NaN are left out of that column alone.

    Returns
    -------
    ndarray
        (genes, moves); NaN where one of the two is constant.
    """
    x = np.asarray(values, np.float64)
    x = x - x.mean(axis=0)
    scale = x.std(axis=0)
    x = x / np.where(scale > 0, scale, 1.0)
    y = np.asarray(maps, np.float64)
    known = np.isfinite(y)
    count = known.sum(axis=0)
    mean = np.where(known, y, 0.0).sum(axis=0) / np.maximum(count, 1)
    y = np.where(known, y - mean, 0.0)
    weight = known.astype(np.float64)
    total, square = x.T @ weight, (x**2).T @ weight
    spread = np.maximum(square - total**2 / np.maximum(count, 1), 0.0) * (y**2).sum(axis=0)
    # rounding leaves a trace of spread in a constant column
    fixed = (spread <= 1e-18 * np.maximum(count, 1) ** 2) | (scale == 0)[:, None]
    out: FloatArray = np.where(fixed, np.nan, x.T @ y / np.sqrt(np.where(fixed, 1.0, spread)))
    return out


def rank_correlations(values: ArrayLike, maps: ArrayLike) -> FloatArray:
    """Spearman correlation of one vector (n,) with every column of `maps` (n, moves)."""
    x = np.asarray(values, np.float64)
    out = [
        correlations(stats.rankdata(x[known])[:, None], stats.rankdata(column[known])[:, None])
        for column in np.asarray(maps, np.float64).T
        for known in [np.isfinite(column)]
    ]
    found: FloatArray = np.concatenate(out, axis=1)[0]
    return found


def p_values(there: FloatArray, count: int, moved: FloatArray, counts: FloatArray) -> FloatArray:
    """Share of moved maps that correlate at least as well, the true place among them.

    ``(k + 1) / (moves + 1)``. A moved map meets fewer points and so scatters more: correlations
    are compared after multiplication by the root of the number of points (the variance
    correction of Mrkvicka et al., Spatial Statistics 42:100430, 2021).

    Parameters
    ----------
    there
        (genes,) correlation in place.
    count
        Points it is of.
    moved
        (genes, moves).
    counts
        (moves,) points these are of.

    Examples
    --------
    >>> moved = np.array([[0.1, 0.2, 0.5]])
    >>> p_values(np.array([0.4]), 9, moved, np.full(3, 9.0))
    array([0.5])
    """
    limit = (there * np.sqrt(count))[:, None]
    as_good = (moved * np.sqrt(counts) >= limit - 1e-9).sum(axis=1)
    known = np.isfinite(moved).sum(axis=1)
    out: FloatArray = np.where(np.isfinite(there), (as_good + 1.0) / (known + 1.0), np.nan)
    return out
