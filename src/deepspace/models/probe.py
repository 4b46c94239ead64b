"""`probe`: ridge regression from frozen image features to genes or clusters, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np

from deepspace.core.config import ProbeConfig
from deepspace.core.progress import log_once
from deepspace.data.splits import Fold, SplitOptions, make_folds, widest_step
from deepspace.data.targets import Target
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.models.base import Arrays, FloatArray, Prediction, learnable
from deepspace.models.ridge import (
    Group,
    InnerFold,
    Spectrum,
    held_out_errors,
    principal_components,
    total_gram,
)

BLOCKS = 4
NOISE_SPOTS = 500
ARRAYS = ("x_mean", "y_mean", "variance", "noise", "between", "leverage_shares", "coefficients")


class Extractor(Protocol):
    """Features at points of a slide; the part of `FeatureExtractor` that models need."""

    @property
    def fov_um(self) -> float:
        """Widest field of view, in micrometres."""
        ...

    def __call__(self, slide: Slide, coords: FloatArray) -> FloatArray:
        """Features at `coords` (points, 2), shape (points, features)."""
        ...


class Probe:
    """Ridge on image features, with penalties chosen on left-out sections.

    Genes vary together, so a penalty is chosen for each principal component of the training
    targets: components that the image explains are shrunk little, the others (mostly noise)
    much. ``penalty_for = "gene"`` chooses one per gene instead. Penalties have the least squared
    error on left-out patients, sections or blocks (`ProbeConfig.bridge`), never on random spots.
    Features and targets are centred within each section, so that differences of depth or stain
    between sections are not learnt.

    The predictive variance is the gene's held-out residual variance, plus the part due to the
    leverage of the point, which grows where the image is unlike the training images, plus the
    variance of the gene's level between sections (unknown, so 0, with one training section).

    Clusters are regressed as indicators, which `ClusterTarget.decode` turns to probabilities.

    Parameters
    ----------
    extractor : Extractor
        Features of the image around a point.
    config : ProbeConfig
        Path of penalties and what is left out to choose among them.
    seed : int
        Seed of the thinning that estimates the measurement noise, and of blocks.
    """

    def __init__(self, extractor: Extractor, config: ProbeConfig, seed: int = 0) -> None:
        self.extractor = extractor
        self.config = config
        self.seed = seed

    def fit(self, sections: Sequence[Section], target: Target) -> Self:
        """Fit on the measured spots of `sections`."""
        self.target = target
        sections, target = learnable(sections, target)
        self._fit(sections, target.wide)
        self._keep(len(target.names))
        self.noise = self._noise(sections, target)
        return self

    def _noise(self, sections: Sequence[Section], target: Target) -> FloatArray:
        """Variance of the measurement noise, shape (names,)."""
        noise: FloatArray = np.mean(
            [measurement_noise(s, target, self.seed) for s in sections], axis=0
        )
        return noise

    def _fit(self, sections: Sequence[Section], target: Target) -> None:
        X = {s.section: self.extractor(s.slide, s.coords) for s in sections}
        Y = {s.section: self._labels(s, target) for s in sections}
        self.x_mean = np.mean([x.mean(axis=0) for x in X.values()], axis=0)
        levels = np.stack([y.mean(axis=0) for y in Y.values()])
        self.y_mean = levels.mean(axis=0)
        self.between = level_variance(levels)
        self.bridge = widest_step(sections, self.config.bridge)
        if self.config.bridge not in ("auto", self.bridge):
            log_once(
                f"penalties: no second {self.config.bridge} in the training data, so chosen by "
                f"{self.bridge}"
            )
        folds = [_inner_fold(f, X, Y) for f in self._folds(sections)]
        groups = [(X[k] - X[k].mean(axis=0), Y[k] - Y[k].mean(axis=0)) for k in X]
        self._solve(groups, folds)

    def _keep(self, names: int) -> None:
        """Drop all but the first targets: the others only helped to find the components."""
        for array in ("y_mean", "between", "variance", "leverage_shares", "coefficients"):
            setattr(self, array, getattr(self, array)[..., :names])

    def _folds(self, sections: Sequence[Section]) -> list[Fold]:
        """What is left out in turn to choose penalties."""
        # small sections get fewer blocks, so that each has spots enough to tell a penalty
        spots = min(len(s.coords) for s in sections)
        options = SplitOptions(max(2, min(BLOCKS, spots // 15)), self.extractor.fov_um, self.seed)
        return make_folds(sections, self.bridge, options)

    def _labels(self, section: Section, target: Target) -> FloatArray:
        return target.encode(section.require_counts())

    def _solve(self, groups: list[Group], folds: list[InnerFold]) -> None:
        """Penalties, coefficients and held-out variance."""
        basis = self._basis(groups)
        rotated = [_rotate(fold, basis) for fold in folds]
        spectra = [Spectrum.of(total_gram(fold.train)) for fold in rotated]
        error = held_out_errors(rotated, spectra, self.config.penalties)
        rows = sum(_rows(fold.test) for fold in folds)
        index = error.argmin(axis=0)
        chosen = np.asarray(self.config.penalties)[index]
        # share of each penalty's components in the variance of each gene
        shares = np.zeros((len(self.config.penalties), len(basis)))
        component_variance = error[index, np.arange(len(index))] / rows
        np.add.at(shares, index, ((basis**2) * component_variance).T)
        self.leverage_shares = shares
        squared, leverage = self._held_out(folds, spectra, basis, chosen)
        # most of the held-out error is there at the centre of the training data too
        total = squared / rows
        self.variance = np.maximum(total - leverage.mean(axis=0) @ shares, 0.1 * total)
        self.spectrum = Spectrum.of(total_gram([(x, y @ basis) for x, y in groups]))
        self.coefficients = self.spectrum.coefficients(chosen) @ basis.T

    def _basis(self, groups: list[Group]) -> FloatArray:
        """Directions of the targets that get a penalty each, shape (names, directions)."""
        return BASES[self.config.penalty_for](groups)

    def _held_out(
        self,
        folds: list[InnerFold],
        spectra: list[Spectrum],
        basis: FloatArray,
        chosen: FloatArray,
    ) -> tuple[FloatArray, FloatArray]:
        """Squared error per gene, and leverage (rows, penalties), of the inner folds."""
        squared = np.zeros(len(basis))
        leverage = []
        for fold, spectrum in zip(folds, spectra, strict=True):
            weights = spectrum.coefficients(chosen) @ basis.T
            for x, y in fold.test:
                squared += ((y - x @ weights) ** 2).sum(axis=0)
                leverage.append(self._leverage(spectrum, x))
        return squared, np.concatenate(leverage)

    def _leverage(self, spectrum: Spectrum, X: FloatArray) -> FloatArray:
        penalties = self.config.penalties
        return np.stack([spectrum.leverage(X, penalty) for penalty in penalties], axis=1)

    def predict(self, slide: Slide, coords: FloatArray) -> Prediction:
        """Predict at `coords`, shape (points, 2)."""
        X = self.extractor(slide, coords) - self.x_mean
        leverage = self._leverage(self.spectrum, X)
        own = leverage @ self.leverage_shares + self.between
        # what the noise explains is not uncertainty of the expression itself
        latent = np.maximum(self.variance - self.noise, 0.0) + own
        return Prediction(
            mean=self.y_mean + X @ self.coefficients,
            sd=np.sqrt(self.variance + own),
            sd_latent=np.sqrt(latent),
        )

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Fitted state: JSON values and arrays."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        arrays |= {"eigenvectors": self.spectrum.vectors, "eigenvalues": self.spectrum.values}
        values = {"bridge": self.bridge, "scale": self.spectrum.scale}
        return values, arrays

    def restore(self, target: Target, values: Mapping[str, Any], arrays: Arrays) -> Self:
        """Take back what `state` gave."""
        self.target = target
        self.bridge = values["bridge"]
        for name in ARRAYS:
            setattr(self, name, arrays[name])
        eigenvalues = arrays["eigenvalues"]
        nothing = np.empty((len(eigenvalues), 0))
        self.spectrum = Spectrum(arrays["eigenvectors"], eigenvalues, nothing, values["scale"])
        return self


def level_variance(levels: FloatArray) -> FloatArray:
    """Variance of the level of a new section, from the levels (sections, names) of others.

    The image does not tell it. One section says nothing of it: zeros.
    """
    if len(levels) < 2:
        return np.zeros(levels.shape[1])
    variance: FloatArray = levels.var(axis=0, ddof=1) * (1.0 + 1.0 / len(levels))
    return variance


def measurement_noise(section: Section, target: Target, seed: int) -> FloatArray:
    """Variance of the measurement noise per name; a few hundred spots tell it well enough."""
    counts = section.require_counts()
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(counts.n_obs)[:NOISE_SPOTS])
    return target.noise_variance(counts[rows], seed)


# what a penalty is chosen for, as directions in gene space (genes, directions)
BASES: dict[str, Callable[[list[Group]], FloatArray]] = {
    "component": principal_components,
    "gene": lambda groups: np.eye(groups[0][1].shape[1]),
}


def _rotate(fold: InnerFold, basis: FloatArray) -> InnerFold:
    return InnerFold(
        [(x, y @ basis) for x, y in fold.train], [(x, y @ basis) for x, y in fold.test]
    )


def _rows(groups: list[Group]) -> int:
    return sum(len(x) for x, _ in groups)


def _inner_fold(fold: Fold, X: dict[str, FloatArray], Y: dict[str, FloatArray]) -> InnerFold:
    """Centre every section on its own training rows, or on its own rows where it has none."""
    train, test = [], []
    for name, rows in fold.train.items():
        x, y = X[name][rows], Y[name][rows]
        train.append((x - x.mean(axis=0), y - y.mean(axis=0)))
    for name, rows in fold.test.items():
        base = fold.train.get(name, rows)
        x, y = X[name][rows], Y[name][rows]
        test.append((x - X[name][base].mean(axis=0), y - Y[name][base].mean(axis=0)))
    return InnerFold(train, test)
