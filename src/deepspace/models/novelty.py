"""How unlike the training tiles a tile is, with a limit calibrated on held-out sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from deepspace.models.base import Arrays, FloatArray

FALSE_ALARMS = 0.05
# share of the variance that is given to single directions; the rest is one residual term
EXPLAINED = 0.8
# robust standard deviations beyond which a feature says no more than "far out"
CLIP = 8.0
LEAST_TILES = 10
# bounds of the share of odd tiles that is still usual: few sections tell it badly
MOST_SHARE = 0.3
LEAST_SHARE = 0.1

Held = Literal["patient", "section", "block"]

# what the calibration cannot know
CAUTIONS: dict[Held, str] = {
    "patient": "",
    "section": "; slides of other patients or laboratories give more false alarms",
    "block": "; one section tells nothing of others, which give more false alarms",
}


@dataclass(frozen=True)
class Space:
    """Where the training tiles lie in the space of features.

    Features are centred and scaled by median and interquartile range, cut at `CLIP`, and split
    into the leading principal components and a remainder. With components ``t`` of variance
    ``v``, and a remainder ``r`` of mean variance ``w`` per direction, the squared distance is

        sum_i t_i^2 / v_i + |r|^2 / w

    the Mahalanobis distance under probabilistic PCA (Tipping & Bishop, J. R. Stat. Soc. B 61:611,
    1999), which sees both an unusual mixture of usual things and things never seen.

    Attributes
    ----------
    centre, spread : ndarray, shape (features,)
        Median and robust standard deviation.
    mean : ndarray, shape (features,)
        Mean after scaling and cutting.
    axes : ndarray, shape (features, components)
        Directions of the components.
    variances : ndarray, shape (components + 1,)
        Of the components, and of a direction of the remainder.
    """

    centre: FloatArray
    spread: FloatArray
    mean: FloatArray
    axes: FloatArray
    variances: FloatArray

    @classmethod
    def of(cls, features: FloatArray) -> Self:
        """Describe training tiles, `features` of shape (tiles, features)."""
        centre = np.median(features, axis=0)
        quartiles = np.percentile(features, [25, 75], axis=0)
        spread = (quartiles[1] - quartiles[0]) / 1.349
        # where most tiles have one value, as shares of rare things do, the others tell the scale
        spread = np.maximum(spread, 0.2 * features.std(axis=0))
        spread[spread <= 1e-6 * (np.abs(centre) + 1e-3)] = np.inf
        scaled = np.clip((features - centre) / spread, -CLIP, CLIP)
        mean = scaled.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(scaled.T, bias=True).reshape(len(mean), -1))
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        total = values.sum()
        if total <= 0:
            raise ValueError("all tiles have the same features")
        k = int(np.searchsorted(np.cumsum(values) / total, EXPLAINED)) + 1
        k = min(k, len(values) - 1)
        rest = max(float(values[k:].mean()), 1e-6 * total / len(values))
        return cls(centre, spread, mean, vectors[:, :k].copy(), np.append(values[:k], rest))

    def distance(self, features: FloatArray) -> FloatArray:
        """Distance of tiles, shape (tiles,); that of a tile depends on it alone."""
        scaled = np.clip((features - self.centre) / self.spread, -CLIP, CLIP) - self.mean
        # a product for every row: one for all of them may round a row by its neighbours
        parts = (scaled[:, None, :] @ self.axes)[:, 0]
        rest = np.maximum((scaled**2).sum(axis=1) - (parts**2).sum(axis=1), 0.0)
        inner = (parts**2 / self.variances[:-1]).sum(axis=1)
        distance: FloatArray = np.sqrt(inner + rest / self.variances[-1])
        return distance


@dataclass(frozen=True)
class Novelty:
    """Tells odd tiles, with 5 % false alarms on average over sections that were left out.

    Every training section is left out in turn and its tiles are measured against the others; the
    limit is the 95 % quantile of these held-out distances, all sections weighing the same
    (cross-conformal prediction; Vovk, Ann. Math. Artif. Intell. 74:9, 2015). With one section,
    blocks of it are left out: that tells nothing of how sections differ, so a new section gives
    more false alarms. With three patients or more, patients are left out.

    Attributes
    ----------
    space : Space
        Of all training tiles.
    calibration : ndarray, shape (tiles,)
        Held-out distances, ascending.
    weights : ndarray, shape (tiles,)
        Their weights, of sum 1.
    limit : float
        Distance above which a tile is odd.
    held : {"patient", "section", "block"}
        What was left out.
    shares : tuple of float
        Share of odd tiles in everything left out, by the limit from the others.
    """

    space: Space
    calibration: FloatArray
    weights: FloatArray
    limit: float
    held: Held
    shares: tuple[float, ...]

    @classmethod
    def fit(
        cls,
        groups: Sequence[FloatArray],
        held: Held = "section",
        lattices: Sequence[FloatArray] | None = None,
    ) -> Self:
        """Learn what is usual.

        Parameters
        ----------
        groups : sequence of ndarray, shape (tiles, features)
            Raw features of the training tiles, an array for every section; for every block where
            there is one section. Not standardised within sections, which would hide a blurred or
            otherwise stained slide.
        held : {"patient", "section", "block"}
            What a group is.
        lattices : sequence of ndarray, shape (tiles, features), optional
            Tiles spread evenly over the tissue of every group, edges and all: what `shares` are
            of. Left out, they are of the training tiles.

        Raises
        ------
        ValueError
            If there are fewer than two groups, or one has hardly any tiles.
        """
        small = [len(group) for group in groups if len(group) < LEAST_TILES]
        if len(groups) < 2 or small:
            raise ValueError(
                f"{len(groups)} groups of tiles, sizes below {LEAST_TILES}: {small}; at least two "
                f"groups of {LEAST_TILES} tiles are needed"
            )
        spaces = [
            Space.of(np.concatenate([g for j, g in enumerate(groups) if j != i]))
            for i in range(len(groups))
        ]
        found = [space.distance(group) for space, group in zip(spaces, groups, strict=True)]
        spread = groups if lattices is None else lattices
        even = [space.distance(tiles) for space, tiles in zip(spaces, spread, strict=True)]
        distances, weights = _pool(found)
        return cls(
            Space.of(np.concatenate(list(groups))),
            distances,
            weights,
            _limit(distances, weights),
            held,
            _held_out_shares(found, even),
        )

    def distance(self, features: FloatArray) -> FloatArray:
        """Distance of tiles in units of the limit, shape (tiles,): above 1 a tile is odd."""
        return self.space.distance(features) / self.limit

    def p_value(self, distance: FloatArray) -> FloatArray:
        """Share of held-out training tiles at least as far out, shape (tiles,).

        Parameters
        ----------
        distance : ndarray, shape (tiles,)
            As `distance` gives it.
        """
        after = len(self.calibration) - np.searchsorted(
            self.calibration, distance * self.limit, side="left"
        )
        tail = np.append(0.0, np.cumsum(self.weights[::-1]))[after]
        n = len(self.calibration)
        # the tile itself is one of those that could have come
        p: FloatArray = (n * tail + 1.0) / (n + 1.0)
        return p

    @property
    def most_odd(self) -> float:
        """Share of odd tiles that a slide like the training slides hardly exceeds.

        Upper end of the 95 % prediction interval for the share of a further section, from those
        held out; kept within 0.1 and 0.3, because few sections tell it badly.
        """
        shares, n = np.asarray(self.shares), len(self.shares)
        reach = stats.t.ppf(0.975, n - 1) * shares.std(ddof=1) * np.sqrt(1 + 1 / n)
        return float(np.clip(shares.mean() + reach, LEAST_SHARE, MOST_SHARE))

    def basis(self) -> str:
        """What the calibration rests on, in words."""
        listed = ", ".join(f"{share:.0%}" for share in self.shares)
        text = f"{len(self.shares)} held-out {self.held}s (odd tiles: {listed})"
        return text + CAUTIONS[self.held]

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Fitted state: JSON values and arrays."""
        arrays = {f.name: getattr(self.space, f.name) for f in fields(Space)}
        arrays |= {"calibration": self.calibration, "weights": self.weights}
        values = {"limit": self.limit, "held": self.held, "shares": list(self.shares)}
        return values, arrays

    @classmethod
    def restore(cls, values: Mapping[str, Any], arrays: Arrays) -> Self:
        """Take back what `state` gave."""
        space = Space(**{f.name: arrays[f.name] for f in fields(Space)})
        return cls(
            space,
            arrays["calibration"],
            arrays["weights"],
            float(values["limit"]),
            values["held"],
            tuple(values["shares"]),
        )


def _pool(found: Sequence[FloatArray]) -> tuple[FloatArray, FloatArray]:
    """All distances, ascending, and their weights: every group weighs the same."""
    distances = np.concatenate(list(found))
    weights = np.concatenate([np.full(len(d), 1.0 / (len(found) * len(d))) for d in found])
    order = np.argsort(distances, kind="stable")
    return distances[order], weights[order]


def _limit(distances: FloatArray, weights: FloatArray) -> float:
    """Conformal quantile: the smallest distance that few enough are above, one more included."""
    n = len(distances)
    level = min((1.0 - FALSE_ALARMS) * (n + 1) / n, 1.0)
    row = min(int(np.searchsorted(np.cumsum(weights), level - 1e-12)), n - 1)
    return float(distances[row])


def _held_out_shares(found: list[FloatArray], even: list[FloatArray]) -> tuple[float, ...]:
    """Share of odd tiles among those of `even`, by limits that never saw their group."""
    shares = []
    for i, own in enumerate(even):
        limit = _limit(*_pool(found[:i] + found[i + 1 :]))
        shares.append(float((own > limit).mean()))
    return tuple(shares)


def evenly(tiles: int, at_most: int) -> NDArray[np.int64]:
    """Rows spread evenly over `tiles`, no more than `at_most`.

    Examples
    --------
    >>> evenly(5, 10).tolist(), evenly(10, 4).tolist()
    ([0, 1, 2, 3, 4], [0, 3, 6, 9])
    """
    return np.unique(np.linspace(0, tiles - 1, min(tiles, at_most)).round().astype(np.int64))
