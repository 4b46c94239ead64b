"""Noisy Student for the `cnn`: teacher, pseudo-labels, students under noise, a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from scipy.spatial import cKDTree

from deepspace.core.config import StudentConfig
from deepspace.core.errors import InputError
from deepspace.core.progress import log
from deepspace.data.targets import Target
from deepspace.io.section import Section
from deepspace.models.base import Arrays, FloatArray, learnable
from deepspace.models.cnn import CNN, Tools
from deepspace.models.cnn_training import Trainer
from deepspace.models.examples import Pseudo
from deepspace.models.student import LABELS, spread_evenly
from deepspace.models.unlabelled import Unlabelled, gap_points, thinned


class CNNStudent(CNN):
    """Noisy Student for a fine-tuned network (Xie et al., CVPR 2020; Monjo et al. 2022).

    The teacher labels tiles that nobody measured; the student learns from both under
    augmentation (and dropout, where the network has it), and becomes the teacher of the next
    round. The student is kept only if on spots held out inside the training data, which neither
    it nor its teachers learnt from, its correlation is higher than the teacher's by more than the
    standard error of that difference over spots. Not its loss: that falls by shrinkage alone.

    Parameters
    ----------
    tools
        As for `CNN`.
    student
        Rounds, tiles, labels and noise.
    pool
        Tiles of other slides than the training sections.

    Attributes
    ----------
    gate : dict
        ``teacher`` and ``student``: mean correlation on the held-out spots; ``needed``: gain
        that is no more than its standard error; ``round`` of the best student; ``kept``: which
        of the two predicts.
    """

    def __init__(
        self, tools: Tools, student: StudentConfig, pool: Sequence[Unlabelled] = ()
    ) -> None:
        super().__init__(tools)
        self.student, self.pool = student, tuple(pool)
        self.gate: dict[str, Any] = {}

    def fit(
        self, sections: Sequence[Section], target: Target, pseudo: Sequence[Pseudo] = ()
    ) -> Self:
        """Fit teacher and students on the measured spots of `sections`, and choose."""
        del pseudo  # a student makes its own
        sections, _ = learnable(sections, target)
        search = _changed(self.tools, refit=False)
        trainer = Trainer(search.pretrained, search.start, search.config, target)
        inside = trainer.inner_fold(sections).training(sections)
        teacher = CNN(search).fit(sections, target)
        found = self._rounds(teacher, search, sections, inside)
        if not any(model.best_epoch for model in found):
            log.info(
                "noisy student: no epoch of any student was better than its start, so that the "
                "pseudo-labels changed nothing"
            )
        best = int(np.argmax([model.shares.mean() for model in found]))
        gain = found[best].shares - teacher.shares
        doubt = float(gain.std(ddof=1)) / np.sqrt(len(gain))
        gated = self.student.gate and self.student.labels == "teacher"
        kept = "student" if gain.mean() > doubt or not gated else "teacher"
        self.gate = {
            "teacher": float(teacher.shares.mean()),
            "student": float(found[best].shares.mean()),
            "needed": doubt,
            "round": best + 1,
            "kept": kept,
        }
        log.info(
            "noisy student: correlation on held-out training data %.4f in round %d, teacher %.4f "
            "(a gain of %.4f is within its standard error); %s kept",
            self.gate["student"],
            best + 1,
            self.gate["teacher"],
            doubt,
            kept,
        )
        searched = [teacher, *(found[: best + 1] if kept == "student" else [])]
        chosen = searched[-1]
        if self.tools.config.cnn.refit:
            chosen = self._on_all(searched, sections)
        own = {k: v for k, v in vars(chosen).items() if k != "tools"}
        self.__dict__.update(own)
        return self

    def _rounds(
        self,
        teacher: CNN,
        tools: Tools,
        sections: Sequence[Section],
        inside: Sequence[Section],
    ) -> list[CNN]:
        """Students of every round; tiles come from the gaps of the sections `inside`."""
        noisy, tiles = _changed(tools, augment=self.student.augment), self._tiles(inside)
        found: list[CNN] = []
        for number in range(self.student.rounds):
            log.info("noisy student: round %d of %d", number + 1, self.student.rounds)
            pseudo = self._labelled(teacher, tiles, inside, number)
            teacher = CNN(noisy).fit(sections, teacher.target, pseudo)
            found.append(teacher)
        return found

    def _on_all(self, searched: Sequence[CNN], sections: Sequence[Section]) -> CNN:
        """The last of these, taught anew by its predecessors, all of them on all spots."""
        noisy, tiles = _changed(self.tools, augment=self.student.augment), self._tiles(sections)
        first, *students = searched
        chosen = CNN(self.tools).fit_like(sections, first.target, first)
        for number, student in enumerate(students):
            pseudo = self._labelled(chosen, tiles, sections, number)
            chosen = CNN(noisy).fit_like(sections, first.target, student, pseudo)
        return chosen

    def _tiles(self, inside: Sequence[Section]) -> list[Unlabelled]:
        """Tiles of the gaps and of the pool, shared evenly among the slides."""
        seed, student = self.tools.config.seed, self.student
        gaps = list(inside) if "gaps" in student.sources else []
        share = max(2, student.tiles // max(1, len(gaps) + len(self.pool)))
        found = [Unlabelled(s.slide, gap_points(s, tiles=share, seed=seed)) for s in gaps]
        for extra in self.pool:
            step = self.student.radius_um / 2 / extra.slide.require_mpp()
            found.append(replace(extra, coords=thinned(extra.coords, step, share, seed)))
        found = [tiles for tiles in found if len(tiles.coords)]
        if not found:
            raise InputError(
                'noisy student: no unlabelled tile; give [student] sources ("gaps", "sections" or '
                "a folder of slides) that have some"
            )
        return found

    def _labelled(
        self, teacher: CNN, tiles: Sequence[Unlabelled], inside: Sequence[Section], number: int
    ) -> list[Pseudo]:
        """Tiles with labels and weights; together they count `strength` times the spots."""
        student = self.student
        rng = np.random.default_rng([self.tools.config.seed, number])
        measured = sum(len(s.coords) for s in inside)
        values, certainty = [], []
        for part in tiles:
            reach = student.radius_um / part.slide.require_mpp()
            own = teacher.teach(part.slide, part.coords)
            values.append(neighbour_mean(own, part.coords, reach))
            sd = teacher.predict(part.slide, part.coords).sd
            certainty.append(1.0 / (sd**2).mean(axis=1))
        weights = np.concatenate(certainty) if student.confidence else None
        labels = LABELS[student.labels](np.concatenate(values), rng)
        counted = np.ones(len(labels)) if weights is None else weights
        if student.balance:
            counted = counted * spread_evenly(labels)
        counted = counted / counted.sum() * student.strength * measured
        ends = np.cumsum([len(part.coords) for part in tiles])[:-1]
        return [
            Pseudo(part.slide, part.coords, y, w)
            for part, y, w in zip(
                tiles, np.split(labels, ends), np.split(counted, ends), strict=True
            )
        ]

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Fitted state: that of a `CNN`, and what the gate found."""
        values, arrays = super().state()
        return {**values, "gate": self.gate}, arrays

    def restore(self, target: Target, values: Mapping[str, Any], arrays: Arrays) -> Self:
        """Take back what `state` gave."""
        super().restore(target, values, arrays)
        self.gate = dict(values["gate"])
        return self


def _changed(tools: Tools, **cnn: object) -> Tools:
    """Tools with some settings of the network changed."""
    config = tools.config
    return replace(
        tools, config=config.model_copy(update={"cnn": config.cnn.model_copy(update=cnn)})
    )


def neighbour_mean(values: FloatArray, coords: FloatArray, reach: float) -> FloatArray:
    """Mean over the other tiles within `reach` px, of a lone tile its own: expression is smooth."""
    found = values.copy()
    for row, near in enumerate(cKDTree(coords).query_ball_point(coords, reach)):
        others = [k for k in near if k != row]
        if others:
            found[row] = values[others].mean(axis=0)
    return found
