"""Fitting ridge by leaving sections out, beside a solver called once a fold and penalty.

Simulated features of serial sections; the penalty of each component of the genes is chosen with one
section left out in turn, and the last fit is on all. The bound is the time of the matrix products
that no way can leave out (one Gram matrix of all spots), at the float64 rate of the same run.

    python benchmarks/fits.py [--sections 5] [--spots 3000] [--features 512] [--genes 1000]

Kriging has a benchmark of its own: benchmarks/kriging_scale.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from deepspace.core.config import Config
from deepspace.models.ridge import (
    InnerFold,
    Spectrum,
    held_out_errors,
    principal_components,
    total_gram,
)

Groups = list[tuple[NDArray[np.float64], NDArray[np.float64]]]
SIDE = 2000


def simulate(sections: int, spots: int, features: int, genes: int) -> Groups:
    """Features and expression of each section, centred."""
    rng = np.random.default_rng(0)
    decay = np.linspace(1, 0.01, features)
    law = rng.normal(size=(features, genes)) / np.sqrt(features)
    found = []
    for _ in range(sections):
        X = rng.normal(size=(spots, features)) * decay
        Y = X @ law + rng.normal(size=(spots, genes))
        found.append((X - X.mean(0), Y - Y.mean(0)))
    return found


def seconds(work: Callable[[], object]) -> float:
    """Wall clock of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ours(groups: Groups, penalties: list[float]) -> NDArray[np.float64]:
    """Weights, as `probe` finds them: a penalty for each component of the genes."""
    basis = principal_components(groups)
    rotated = [(x, y @ basis) for x, y in groups]
    folds = [InnerFold([g for g in rotated if g is not left], [left]) for left in rotated]
    spectra = [Spectrum.of(total_gram(fold.train)) for fold in folds]
    errors = held_out_errors(folds, spectra, penalties)
    best = np.asarray(penalties)[errors.argmin(axis=0)]
    return Spectrum.of(total_gram(rotated)).coefficients(best) @ basis.T


def one_solve(groups: Groups) -> None:
    """One fold and one penalty, as a general library does it."""
    X, Y = (np.concatenate(parts) for parts in zip(*groups[1:], strict=True))
    Ridge(1.0, fit_intercept=False, solver="cholesky").fit(X, Y).predict(groups[0][0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", type=int, default=5)
    parser.add_argument("--spots", type=int, default=3000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--genes", type=int, default=1000)
    given = parser.parse_args()
    groups = simulate(given.sections, given.spots, given.features, given.genes)
    penalties = list(Config().probe.penalties)
    square = np.random.default_rng(1).normal(size=(SIDE, SIDE))
    rate = 2 * SIDE**3 / min(seconds(lambda: square @ square) for _ in range(3))
    rows = given.sections * given.spots
    bound = 2 * rows * given.features * (given.features + given.genes) / rate
    fit = seconds(lambda: ours(groups, penalties))
    solves = given.sections * len(penalties) + 1
    naive = solves * seconds(lambda: one_solve(groups))
    print(
        f"ridge, {rows} spots, {given.features} features, {given.genes} genes, "
        f"{len(penalties)} penalties: {fit:.1f} s, {fit / bound:.1f} x the bound ({bound:.2f} s at "
        f"{rate / 1e9:.0f} GFLOP/s); {solves} separate solves {naive:.0f} s, "
        f"{naive / fit:.1f} times as long"
    )


if __name__ == "__main__":
    main()
