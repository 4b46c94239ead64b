"""Noisy Student for the `probe`: self-training on tiles that nobody measured, in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from deepspace.core.config import ProbeConfig, StudentConfig
from deepspace.core.errors import InputError
from deepspace.core.metrics import pearson
from deepspace.core.progress import log
from deepspace.data.splits import Fold
from deepspace.data.targets import Target
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.models.base import Arrays, FloatArray, learnable
from deepspace.models.probe import Extractor, Probe
from deepspace.models.ridge import Group, InnerFold, Spectrum
from deepspace.models.unlabelled import (
    Tiles,
    Unlabelled,
    distance_to,
    gap_points,
    pitch_um,
    thinned,
    tissue_points,
)

__all__ = ["ProbeStudent", "StudentConfig", "Unlabelled", "gap_points", "tissue_points"]

# what `Probe` solves for, and what the gate therefore gives back to the teacher
SOLUTION = ("variance", "leverage_shares", "spectrum", "coefficients")
# parts of the range of the pseudo-labels that count alike
BINS = 10


@dataclass(frozen=True)
class Lesson:
    """What one round of pseudo-labels teaches.

    Attributes
    ----------
    metric : ndarray, shape (features, features)
        Features times this are what a plain ridge penalty is right for.
    coefficients : ndarray, shape (features, names)
        Solution of the pseudo-labels alone, which the student is shrunk to instead of to 0.
    """

    metric: FloatArray
    coefficients: FloatArray

    def residual(self, groups: Sequence[Group]) -> list[Group]:
        """What the measurements add to the pseudo-labels."""
        return [(x @ self.metric, y - x @ self.coefficients) for x, y in groups]

    def learnt(self, weights: FloatArray) -> FloatArray:
        """Coefficients of the student from those of the residual."""
        return self.coefficients + self.metric @ weights


@dataclass(frozen=True)
class Pull:
    """Unlabelled tiles, made ready to teach any labels of theirs.

    A student that minimises, for the measurements (X, Y), the pseudo-labels P of tiles U with
    covariance ``C = U'WU / sum(W)`` and the penalty `a`,

        |Y - XB|^2 + a (|B|^2 + strength * |P - UB|_W^2 / sum(W) / mean(diag(C)))

    is ``B = B0 + T G``: B0 solves the second term alone, ``T = (I + strength * C')^(-1/2)`` and
    G is the plain ridge from ``XT`` to ``Y - X B0``.

    Attributes
    ----------
    metric : ndarray, shape (features, features)
        T.
    answers : ndarray, shape (features, tiles)
        What gives B0 when multiplied by P.
    """

    metric: FloatArray
    answers: FloatArray

    @classmethod
    def of(cls, tiles: Sequence[Tiles], weights: FloatArray, strength: float) -> Pull:
        """Pull of tiles with `weights` (tiles,), of all slides one after the other.

        `strength` is relative to the ridge penalty's.
        """
        U = np.concatenate([t.x for t in tiles])
        weighted = U.T * (weights / weights.sum())
        covariance = weighted @ U
        pull = strength / max(float(np.trace(covariance)) / len(covariance), 1e-12)
        values, vectors = np.linalg.eigh(np.eye(len(covariance)) + pull * covariance)
        answers = (vectors / values) @ (vectors.T @ (pull * weighted))
        return cls((vectors / np.sqrt(values)) @ vectors.T, answers)

    @classmethod
    def nothing(cls, features: int) -> Pull:
        """Pull of no tiles: the student is a plain ridge."""
        return cls(np.eye(features), np.empty((features, 0)))

    def lesson(self, labels: FloatArray) -> Lesson:
        """What these labels (tiles, names) teach."""
        return Lesson(self.metric, self.answers @ labels)


def spread_evenly(labels: FloatArray) -> FloatArray:
    """Weights that make every tenth of the range of the labels' main direction count alike."""
    centred = labels - labels.mean(axis=0)
    along = centred @ np.linalg.eigh(centred.T @ centred)[1][:, -1]
    edges = np.linspace(along.min(), along.max(), BINS + 1)[1:-1]
    bins = np.digitize(along, edges)
    # a lone tile at the end of the range is not worth a hundred
    weights = 1.0 / np.maximum(np.bincount(bins, minlength=BINS), len(along) / 100)
    spread: FloatArray = weights[bins]
    return spread


# what the labels of the unlabelled tiles are; a control keeps each name's spread, the permuted
# one the relations between names too
LABELS: dict[str, Callable[[FloatArray, np.random.Generator], FloatArray]] = {
    "teacher": lambda labels, rng: labels,
    "permuted": lambda labels, rng: labels[rng.permutation(len(labels))],
    "random": lambda labels, rng: rng.permuted(labels, axis=0),
}


@dataclass(frozen=True)
class Pupil:
    """A model that labels tiles for its successor.

    Attributes
    ----------
    tiles : list of Tiles
        What it may learn from.
    pull : Pull
        Of these tiles, by the weights that the first teacher gives them.
    coefficients : ndarray, shape (features, names)
        What it has learnt so far.
    """

    tiles: list[Tiles]
    pull: Pull
    coefficients: FloatArray

    def lesson(self, labels: str, rng: np.random.Generator) -> Lesson:
        """Label the tiles in this way (a key of `LABELS`), and solve for the labels."""
        return self.pull.lesson(LABELS[labels](given(self.tiles, self.coefficients), rng))


def given(tiles: Sequence[Tiles], coefficients: FloatArray) -> FloatArray:
    """Prediction on the neighbours of each tile, of all slides together, (tiles, names)."""
    none = np.empty((0, coefficients.shape[1]))
    return np.concatenate([none, *(t.near @ (t.x @ coefficients) for t in tiles)])


class ProbeStudent(Probe):
    """Noisy Student for the `probe`, in closed form.

    After Xie et al. 2020 (Self-training with Noisy Student, CVPR) and Monjo et al. 2022: a
    teacher, the probe, labels tiles that nobody measured, a student learns from both, and
    becomes the teacher of the next round. The noise is in the image: a tile's pseudo-label is
    what the teacher predicts on the neighbouring tiles, because expression changes little over
    `radius_um` and what the image shows there does. The student so learns which features carry
    over to the neighbouring tile. A prediction still depends on its own tile alone.

    The pseudo-labels enter the ridge penalty (`Pull`), with penalties chosen anew for the
    student on the same left-out sections or blocks as the teacher's, which hold no
    pseudo-labels: the teacher of an inner fold never saw them, and no tile lies in them.

    Where the student's correlation on these left-out data is no better than the teacher's, the
    teacher is kept (`StudentConfig.gate`); a line of the log and `gate` tell.

    Parameters
    ----------
    extractor : Extractor
        Features of the image around a point.
    config : ProbeConfig
        Of the teacher and of every student.
    student : StudentConfig
        Rounds, tiles and their labels.
    pool : sequence of Unlabelled
        Tiles of other slides than the training sections. With the source ``gaps``, `fit` adds
        the gaps between the training spots.
    seed : int
        Seed of the probe, of the choice of tiles and of the control labels.

    Attributes
    ----------
    gate : dict
        ``teacher`` and ``student``: mean Pearson over names and left-out groups within the
        training data; ``kept``: which of the two predicts.
    """

    def __init__(
        self,
        extractor: Extractor,
        config: ProbeConfig,
        student: StudentConfig,
        pool: Sequence[Unlabelled] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(extractor, config, seed)
        self.student = student
        self.pool = tuple(pool)
        self.gate: dict[str, Any] = {}

    def fit(self, sections: Sequence[Section], target: Target) -> Self:
        """Fit teacher and students on the measured spots of `sections`, and choose."""
        self._sections, _ = learnable(sections, target)
        self._tiles = self._unlabelled()
        return super().fit(sections, target)

    def _unlabelled(self) -> list[Tiles]:
        """Tiles of the gaps and of the pool, with their features."""
        gaps = self._sections if "gaps" in self.student.sources else []
        share = max(2, self.student.tiles // max(1, len(gaps) + len(self.pool)))
        wanted = [
            (s.slide, gap_points(s, tiles=share, seed=self.seed), s.section) for s in gaps
        ] + [(u.slide, u.coords, None) for u in self.pool]
        found = []
        for slide, coords, section in wanted:
            points = thinned(coords, self._reach(slide) / 2, share, self.seed)
            if len(points):
                x = self.extractor(slide, points)
                found.append(Tiles.of(x, points, self._reach(slide), section))
        tiles = [t for t in found if t is not None]
        if not tiles:
            raise InputError(
                "noisy student: no two unlabelled tiles lie within "
                f"{self.student.radius_um:g} um of each other; widen [student] radius_um, add "
                'sources ("gaps", "sections" or a folder of slides), or train without a student'
            )
        log.info("noisy student: %d unlabelled tiles", sum(len(t.x) for t in tiles))
        return tiles

    def _reach(self, slide: Slide) -> float:
        return self.student.radius_um / slide.require_mpp()

    def _solve(self, groups: list[Group], folds: list[InnerFold]) -> None:
        """Teacher, rounds of students, gate."""
        self._directions: FloatArray | None = None
        super()._solve(groups, folds)
        self._directions = super()._basis(groups)
        teacher = {name: getattr(self, name) for name in SOLUTION}
        learnt = [self.coefficients, *self._inner]
        spectra = [self.spectrum, *self._spectra]
        pools = [self._tiles, *(self._seen_in(fold) for fold in self._folds(self._sections))]
        pupils = [
            Pupil(tiles, self._pull(tiles, w, spectrum), w)
            for tiles, w, spectrum in zip(pools, learnt, spectra, strict=True)
        ]
        names = len(self.target.names)
        scores = {"teacher": _score(folds, pupils[1:], names)}
        for number in range(self.student.rounds):
            pupils = self._round(groups, folds, pupils, number)
        scores["student"] = _score(folds, pupils[1:], names)
        better = scores["student"] > scores["teacher"]
        gated = self.student.gate and self.student.labels == "teacher"
        kept = "student" if better or not gated else "teacher"
        if kept == "teacher":
            self.__dict__.update(teacher)
        self.gate = {**scores, "kept": kept}
        log.info(
            "noisy student: correlation on left-out training data %.4f, teacher %.4f; %s kept",
            scores["student"],
            scores["teacher"],
            kept,
        )

    def _basis(self, groups: list[Group]) -> FloatArray:
        """The teacher's directions, in all rounds: those of what a student adds are noise."""
        return super()._basis(groups) if self._directions is None else self._directions

    def _seen_in(self, fold: Fold) -> list[Tiles]:
        """Tiles that a fold may learn from: none lies among the spots that it leaves out."""
        seen: list[Tiles | None] = []
        sections = {s.section: s for s in self._sections}
        for tiles in self._tiles:
            if tiles.section is None:
                seen.append(tiles)
            elif tiles.section in fold.train:
                section = sections[tiles.section]
                pitch = pitch_um(section) / section.slide.require_mpp()
                spots = section.coords[fold.train[tiles.section]]
                near = distance_to(spots, tiles.coords) <= pitch
                reach = self._reach(section.slide)
                seen.append(Tiles.of(tiles.x[near], tiles.coords[near], reach, tiles.section))
        return [tiles for tiles in seen if tiles is not None]

    def _round(
        self, groups: list[Group], folds: list[InnerFold], pupils: list[Pupil], number: int
    ) -> list[Pupil]:
        """Students of all data and of each inner fold; every one has its own teacher."""
        lessons = []
        for place, pupil in enumerate(pupils):
            rng = np.random.default_rng([self.seed, number, place])
            lessons.append(pupil.lesson(self.student.labels, rng))
        whole, *parts = lessons
        residual = [
            InnerFold(lesson.residual(fold.train), lesson.residual(fold.test))
            for lesson, fold in zip(parts, folds, strict=True)
        ]
        super()._solve(whole.residual(groups), residual)
        self.coefficients = whole.learnt(self.coefficients)
        self.spectrum = replace(self.spectrum, vectors=whole.metric @ self.spectrum.vectors)
        inner = [lesson.learnt(w) for lesson, w in zip(parts, self._inner, strict=True)]
        return [
            replace(p, coefficients=w)
            for p, w in zip(pupils, [self.coefficients, *inner], strict=True)
        ]

    def _held_out(
        self,
        folds: list[InnerFold],
        spectra: list[Spectrum],
        basis: FloatArray,
        chosen: FloatArray,
    ) -> tuple[FloatArray, FloatArray]:
        """As `Probe`'s, and remember what each fold learnt."""
        self._spectra = spectra
        self._inner = [s.coefficients(chosen) @ basis.T for s in spectra]
        return super()._held_out(folds, spectra, basis, chosen)

    def _pull(self, tiles: list[Tiles], teacher: FloatArray, spectrum: Spectrum) -> Pull:
        """Tiles weighed by what their teacher says of them; the weights stay in all rounds."""
        if not tiles:
            return Pull.nothing(len(teacher))
        labels = given(tiles, teacher)
        weights = np.ones(len(labels))
        if self.student.confidence:
            # share of the variance at a tile that there is at the spots as well
            leverage = self._leverage(spectrum, np.concatenate([t.x for t in tiles]))
            share = self.variance / (self.variance + leverage @ self.leverage_shares)
            weights = share.mean(axis=1)
        if self.student.balance:
            weights = weights * spread_evenly(labels)
        return Pull.of(tiles, weights, self.student.strength)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Fitted state: that of a `Probe`, and what the gate found."""
        values, arrays = super().state()
        return {**values, "gate": self.gate}, arrays

    def restore(self, target: Target, values: Mapping[str, Any], arrays: Arrays) -> Self:
        """Take back what `state` gave."""
        super().restore(target, values, arrays)
        self.gate = dict(values["gate"])
        return self


def _score(folds: Sequence[InnerFold], pupils: Sequence[Pupil], names: int) -> float:
    """Mean Pearson over the first names and left-out groups; one without a score counts 0."""
    found = [
        np.nan_to_num(pearson(y[:, :names], x @ pupil.coefficients[:, :names])).mean()
        for fold, pupil in zip(folds, pupils, strict=True)
        for x, y in fold.test
    ]
    return float(np.mean(found))
