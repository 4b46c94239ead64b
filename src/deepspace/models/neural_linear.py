"""Uncertainty of a linear last layer on features that were learnt."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from deepspace.models.base import Arrays, FloatArray

# directions of the training features that leverage is measured in
DIRECTIONS = 256
# ridge of the leverage, in mean variances of those directions
PENALTY = 1.0


@dataclass(frozen=True)
class HeldOutSpots:
    """Spots that a training held out: their features (n, d) and squared errors (n, names)."""

    features: FloatArray
    squared_error: FloatArray


@dataclass(frozen=True)
class NeuralLinear:
    """Variance of a linear model on features, ``s^2 (1 + x' (X'X + a)^-1 x)``.

    This is Bayesian linear regression on the last hidden layer (Snoek et al., ICML 2015), with
    the residual variance ``s^2`` of each target measured on spots that were held out.

    Attributes
    ----------
    centre : ndarray, shape (d,)
        Mean of the training features.
    directions, shrunk : ndarray, shapes (d, m) and (m,)
        Directions of the training features, and the inverse of their penalised sums of squares.
    residual : ndarray, shape (names,)
        Residual variance at the typical held-out spot, its leverage included.
    typical : float
        Mean leverage of the held-out spots.
    """

    centre: FloatArray
    directions: FloatArray
    shrunk: FloatArray
    residual: FloatArray
    typical: float

    @classmethod
    def of(cls, features: FloatArray, held_out: HeldOutSpots) -> NeuralLinear:
        """Fit on training features (n, d) and held-out spots."""
        residual = held_out.squared_error.mean(axis=0)
        fitted = cls(*_directions(features), residual, 0.0)
        leverage = fitted.leverage(held_out.features)
        return replace(fitted, typical=float(leverage.mean()))

    def onto(self, features: FloatArray, rows: int) -> NeuralLinear:
        """Carry the held-out figures to a network trained on more spots, with these features.

        Parameters
        ----------
        features
            Of all training spots, in the new network, (n, d).
        rows
            Spots that the first one was trained on: leverage falls as 1 / spots.
        """
        ratio = rows / len(features)
        moved = NeuralLinear(*_directions(features), self.residual, 0.0)
        return replace(moved, typical=self.typical * ratio)

    def leverage(self, features: FloatArray) -> FloatArray:
        """How far features (n, d) are from the training features, shape (n,)."""
        h: FloatArray = ((features - self.centre) @ self.directions) ** 2 @ self.shrunk
        return h

    def variance(self, features: FloatArray) -> FloatArray:
        """What leverage adds to the residual variance, shape (n, names).

        Below the typical leverage nothing is taken off.
        """
        h = self.leverage(features)
        share = np.maximum(h - self.typical, 0.0) / (1.0 + self.typical)
        added: FloatArray = share[:, None] * self.residual
        return added

    def arrays(self) -> Arrays:
        """All of it, for saving."""
        return {
            "centre": self.centre,
            "directions": self.directions,
            "shrunk": self.shrunk,
            "residual": self.residual,
            "typical": np.array([self.typical]),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> NeuralLinear:
        """Take back what `arrays` gave."""
        return cls(
            arrays["centre"],
            arrays["directions"],
            arrays["shrunk"],
            arrays["residual"],
            float(arrays["typical"][0]),
        )


def _directions(features: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Centre, principal directions and inverse penalised sums of squares of features."""
    centre = features.mean(axis=0)
    _, values, directions = np.linalg.svd(features - centre, full_matrices=False)
    keep = max(1, min(DIRECTIONS, int((values > values[0] * 1e-6).sum())))
    squares = values[:keep] ** 2
    return centre, directions[:keep].T, 1.0 / (squares + PENALTY * squares.mean() + 1e-12)
