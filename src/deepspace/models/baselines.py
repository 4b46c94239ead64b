"""What every score is compared with."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from scipy.spatial import cKDTree
from sklearn.neighbors import KNeighborsRegressor

from deepspace.core.config import TargetConfig
from deepspace.core.errors import InputError
from deepspace.core.progress import log_once
from deepspace.data.targets import Target, fit_target
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.models.base import Arrays, FloatArray, Prediction, learnable
from deepspace.models.probe import Extractor, Probe

# what tissue domains are clustered by, whatever genes are predicted
DOMAIN_GENES = "variable:1000"


def _constant_sd(mean: FloatArray, sd: FloatArray) -> Prediction:
    spread = np.broadcast_to(sd, mean.shape).copy()
    return Prediction(mean, spread, spread)


class GeneMean:
    """Every gene (or cluster) at its mean over the training spots, everywhere."""

    def fit(self, sections: Sequence[Section], target: Target) -> Self:
        """Take the mean of the sections' means."""
        self.target = target
        sections, target = learnable(sections, target)
        values = [target.encode(s.require_counts()) for s in sections]
        self.mean = np.mean([v.mean(axis=0) for v in values], axis=0)
        self.sd = np.concatenate(values).std(axis=0)
        return self

    def predict(self, slide: Slide, coords: FloatArray) -> Prediction:
        """Predict at `coords`, shape (points, 2)."""
        return _constant_sd(np.tile(self.mean, (len(coords), 1)), self.sd)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Fitted state: JSON values and arrays."""
        return {}, {"mean": self.mean, "sd": self.sd}

    def restore(self, target: Target, values: Mapping[str, Any], arrays: Arrays) -> Self:
        """Take back what `state` gave."""
        self.target = target
        self.mean, self.sd = arrays["mean"], arrays["sd"]
        return self


class NearestSpot:
    """The measurement of the nearest training spot of the same section.

    Where no spot of that slide was in the training data the prediction is NaN: this baseline
    does not apply.
    """

    def fit(self, sections: Sequence[Section], target: Target) -> Self:
        """Remember coordinates and values."""
        self.target = target
        sections, target = learnable(sections, target)
        values = [target.encode(s.require_counts()) for s in sections]
        self.sd = np.concatenate(values).std(axis=0)
        slides: dict[str, list[tuple[FloatArray, FloatArray]]] = {}
        for section, value in zip(sections, values, strict=True):
            slides.setdefault(section.slide.content_hash(), []).append((section.coords, value))
        # one scan may hold several sections
        self.known = {
            slide: (
                cKDTree(np.concatenate([c for c, _ in parts])),
                np.concatenate([v for _, v in parts]),
            )
            for slide, parts in slides.items()
        }
        return self

    def predict(self, slide: Slide, coords: FloatArray) -> Prediction:
        """Predict at `coords`, shape (points, 2)."""
        found = self.known.get(slide.content_hash())
        if found is None:
            return _constant_sd(np.full((len(coords), len(self.sd)), np.nan), self.sd)
        tree, values = found
        return _constant_sd(values[tree.query(coords)[1]], self.sd)


class NearestColours:
    """Mean label of the training spots whose image has the most similar features.

    With mean colours as features and clusters as target, the share of each cluster among them is
    its probability: the classifier by k nearest neighbours.

    Parameters
    ----------
    extractor : Extractor
        Features of the image around a point.
    neighbours : int
        How many spots vote.
    """

    def __init__(self, extractor: Extractor, neighbours: int = 15) -> None:
        self.extractor = extractor
        self.neighbours = neighbours

    def fit(self, sections: Sequence[Section], target: Target) -> Self:
        """Remember features and labels."""
        self.target = target
        sections, target = learnable(sections, target)
        X = np.concatenate([self.extractor(s.slide, s.coords) for s in sections])
        Y = np.concatenate([target.encode(s.require_counts()) for s in sections])
        self.sd = Y.std(axis=0)
        self.known = KNeighborsRegressor(min(self.neighbours, len(X))).fit(X, Y)
        return self

    def predict(self, slide: Slide, coords: FloatArray) -> Prediction:
        """Predict at `coords`, shape (points, 2)."""
        return _constant_sd(self.known.predict(self.extractor(slide, coords)), self.sd)


class TissueDomains:
    """The mean of the training spots of a spot's own tissue domain: an oracle.

    Domains are the clusters of the training spots. Which one a held-out spot belongs to is told
    by its own counts, which no prediction may see: this says how much of a score is the level of
    a few domains, and nothing finer.

    Parameters
    ----------
    sections : sequence of Section
        All measured sections, the held-out ones too.
    config : TargetConfig
        How clusters are made.
    """

    def __init__(self, sections: Sequence[Section], config: TargetConfig) -> None:
        self.sections = sections
        self.config = config.model_copy(update={"kind": "clusters", "genes": DOMAIN_GENES})

    def fit(self, sections: Sequence[Section], target: Target) -> Self:
        """Cluster the training spots, take the mean of each cluster, ask every spot for its own."""
        self.target = target
        try:
            domains = fit_target(sections, self.config)
        except InputError as error:
            log_once(f"tissue-domain oracle: does not apply ({error})")
            self.sd = np.full(len(target.names), np.nan)
            self.known: dict[tuple[str, bytes], FloatArray] = {}
            return self
        inside = [domains.encode(s.require_counts()) for s in sections]
        values = [target.encode(s.require_counts()) for s in sections]
        member, value = np.concatenate(inside), np.concatenate(values)
        self.sd = value.std(axis=0)
        means = (member.T @ value) / np.maximum(member.sum(axis=0), 1.0)[:, None]
        self.known = {}
        for section in self.sections:
            share = domains.encode(section.require_counts())
            labelled = share.sum(axis=1, keepdims=True) > 0
            own = np.where(labelled, share @ means, value.mean(axis=0))
            digest = section.slide.content_hash()
            points = np.ascontiguousarray(section.coords, dtype=np.float64)
            self.known |= {(digest, xy.tobytes()): row for xy, row in zip(points, own, strict=True)}
        return self

    def predict(self, slide: Slide, coords: FloatArray) -> Prediction:
        """Predict at measured spots, shape (points, 2); NaN anywhere else."""
        digest, nothing = slide.content_hash(), np.full(len(self.sd), np.nan)
        points = np.ascontiguousarray(coords, dtype=np.float64)
        rows = [self.known.get((digest, xy.tobytes()), nothing) for xy in points]
        return _constant_sd(np.array(rows).reshape(len(coords), len(self.sd)), self.sd)


class QuickProbe(Probe):
    """A `Probe` that takes measurements as exact: its means are the same, its spread is not."""

    def _noise(self, sections: Sequence[Section], target: Target) -> FloatArray:
        """Zeros, shape (names,): to thin the counts would take longer than all the rest."""
        return np.zeros(len(target.names))


class ShuffledProbe(QuickProbe):
    """A `QuickProbe` whose training spots were shuffled within each section: it must score 0."""

    def _labels(self, section: Section, target: Target) -> FloatArray:
        values = super()._labels(section, target)
        # serial sections on one lattice must not be shuffled alike
        own = zlib.crc32(section.section.encode())
        return np.random.default_rng([self.seed, own]).permutation(values, axis=0)
