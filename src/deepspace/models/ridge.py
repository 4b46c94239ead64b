"""Closed-form ridge over a path of penalties, one penalty per target, chosen on left-out groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Gram:
    """Sufficient statistics of centred features X and targets Y.

    Attributes
    ----------
    xx : ndarray, shape (features, features)
        ``X.T @ X``
    xy : ndarray, shape (features, genes)
        ``X.T @ Y``
    n : int
        Rows of X.
    """

    xx: FloatArray
    xy: FloatArray
    n: int

    @classmethod
    def of(cls, X: FloatArray, Y: FloatArray) -> Gram:
        """Statistics of one group, whose columns are centred already."""
        return cls(X.T @ X, X.T @ Y, len(X))

    def __add__(self, other: Gram) -> Gram:
        return Gram(self.xx + other.xx, self.xy + other.xy, self.n + other.n)


@dataclass(frozen=True)
class Spectrum:
    """Eigendecomposition of a `Gram`, from which the whole path follows.

    With ``X.T @ X = V diag(s) V.T`` the coefficients for penalty ``a`` are
    ``V diag(1 / (s + a * mean(s))) V.T X.T Y``: one decomposition serves all penalties.
    """

    vectors: FloatArray  # (features, components)
    values: FloatArray  # (components,)
    rotated: FloatArray  # (components, genes)
    scale: float  # mean eigenvalue over all features

    @classmethod
    def of(cls, gram: Gram) -> Spectrum:
        """Decompose; directions without variance are dropped."""
        values, vectors = np.linalg.eigh(gram.xx)
        keep = values > max(values[-1], 0.0) * 1e-10
        values, vectors = values[keep], vectors[:, keep]
        scale = float(np.trace(gram.xx)) / max(len(gram.xx), 1)
        return cls(vectors, values, vectors.T @ gram.xy, max(scale, 1e-12))

    def shrunk(self, penalty: float) -> FloatArray:
        """Inverse of the penalised eigenvalues, shape (components,)."""
        inverse: FloatArray = 1.0 / (self.values + penalty * self.scale)
        return inverse

    def coefficients(self, penalties: FloatArray) -> FloatArray:
        """Weights with one penalty per gene, shape (features, genes)."""
        inverse = 1.0 / (self.values[:, None] + penalties[None, :] * self.scale)
        weights: FloatArray = self.vectors @ (self.rotated * inverse)
        return weights

    def leverage(self, X: FloatArray, penalty: float) -> FloatArray:
        """``x (X'X + a)^-1 x'`` for each row: grows with the distance from the training data."""
        projected = X @ self.vectors
        h: FloatArray = (projected**2) @ self.shrunk(penalty)
        return h


Group = tuple[FloatArray, FloatArray]


@dataclass(frozen=True)
class InnerFold:
    """Groups learnt from and groups scored, each a pair (X, Y) whose columns are centred.

    Centring within a section keeps a shift between sections from being learnt.
    """

    train: list[Group]
    test: list[Group]


def total_gram(groups: Sequence[Group]) -> Gram:
    """Statistics of several centred groups together."""
    total = Gram.of(*groups[0])
    for X, Y in groups[1:]:
        total = total + Gram.of(X, Y)
    return total


def principal_components(groups: Sequence[Group], at_most: int = 256) -> FloatArray:
    """Orthonormal directions of the targets, most variable first, shape (genes, components)."""
    Y = np.concatenate([y for _, y in groups])
    if len(Y) >= Y.shape[1]:
        return np.linalg.eigh(Y.T @ Y)[1][:, ::-1][:, :at_most]
    # fewer spots than genes: the same directions from the smaller of the two Gram matrices
    values, vectors = np.linalg.eigh(Y @ Y.T)
    keep = np.flatnonzero(values > values[-1] * 1e-10)[::-1][:at_most]
    directions: FloatArray = (Y.T @ vectors[:, keep]) / np.sqrt(values[keep])
    return directions


def held_out_errors(
    folds: Sequence[InnerFold], spectra: Sequence[Spectrum], penalties: Sequence[float]
) -> FloatArray:
    """Held-out squared error of every penalty and target, shape (penalties, targets).

    Parameters
    ----------
    folds, spectra : sequences of InnerFold and of Spectrum
        What is left out in turn, and the decomposition of the training groups of each.
    penalties : sequence of float
        Relative to the mean eigenvalue of ``X.T @ X``.
    """
    error = np.zeros((len(penalties), folds[0].test[0][1].shape[1]))
    for fold, spectrum in zip(folds, spectra, strict=True):
        for X, Y in fold.test:
            projected = X @ spectrum.vectors
            for k, penalty in enumerate(penalties):
                predicted = (projected * spectrum.shrunk(penalty)) @ spectrum.rotated
                error[k] += ((Y - predicted) ** 2).sum(axis=0)
    return error
