"""One way to hold spots out: folds, the targets of each, and what predictors say there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepspace.core.config import Config, TargetConfig
from deepspace.core.errors import InputError
from deepspace.core.progress import log
from deepspace.data.clusters import ClusterTarget, prepare_clusters
from deepspace.data.splits import Fold, SplitOptions, make_folds, widest_step
from deepspace.data.targets import ExpressionTarget, Target, fit_target
from deepspace.io.section import Section
from deepspace.models import distributed
from deepspace.models.base import Predictor
from deepspace.models.registry import BASELINES, CLUSTER_BASELINES, Baseline, Workbench
from deepspace.workflows.cluster_scoring import (
    HeldOutClusters,
    better_clusters,
    cluster_table,
    empty_clusters,
    fill_clusters,
    named_alike,
    summarise_clusters,
)
from deepspace.workflows.expression_scoring import (
    HeldOut,
    better_expression,
    empty_expression,
    fill_expression,
    score_table,
    summarise_expression,
)
from deepspace.workflows.points import share_ahead

FloatArray = NDArray[np.float64]
Builder = Callable[[], Predictor]
# told of every fitted predictor: its name, the number of the fold, the training sections
Watcher = Callable[[str, int, list[Section], Predictor], None]
TargetT = TypeVar("TargetT")
SlotT = TypeVar("SlotT")

# what an inner choice leaves out, so that it bridges the distance of the outer split
INNER = {
    "section": "section",
    "patient": "patient",
    "block": "block",
    "blob": "section",
    "alternate": "section",
    "spot": "section",
}


@dataclass(frozen=True)
class Scoring(Generic[TargetT, SlotT]):
    """How a kind of target is held out and scored.

    `prepare` settles on the whole cohort what is no choice of a fold; `align` gives the columns
    of a fold's target the meaning they have in the first fold's; `empty` makes the slot of a
    section and `fill` enters one fold's predictions; `table` scores, `summarise` sums up;
    `better` tells spot by spot how much better one model is than another; `chance` whether
    scores of moved labels tell what chance can do.
    """

    baselines: Mapping[str, Baseline]
    prepare: Callable[[Sequence[Section], TargetConfig], tuple[Sequence[Section], TargetConfig]]
    align: Callable[[TargetT, TargetT, Sequence[Section]], TargetT]
    empty: Callable[[Section, TargetT, Config, NDArray[np.int64]], SlotT]
    fill: Callable[[SlotT, str, Predictor, Fold, TargetT], None]
    table: Callable[[dict[str, SlotT], str], pd.DataFrame]
    summarise: Callable[[pd.DataFrame, Config, str, int], dict[str, Any]]
    better: Callable[[SlotT, str, str], FloatArray | None]
    chance: bool


_EXPRESSION: Scoring[ExpressionTarget, HeldOut] = Scoring(
    baselines=BASELINES,
    prepare=lambda sections, config: (sections, config),
    align=lambda target, first, training: target,
    empty=empty_expression,
    fill=fill_expression,
    table=score_table,
    summarise=summarise_expression,
    better=better_expression,
    chance=True,
)
_CLUSTERS: Scoring[ClusterTarget, HeldOutClusters] = Scoring(
    baselines=CLUSTER_BASELINES,
    prepare=prepare_clusters,
    align=named_alike,
    empty=empty_clusters,
    fill=fill_clusters,
    table=cluster_table,
    summarise=summarise_clusters,
    better=better_clusters,
    chance=False,
)
SCORINGS: dict[str, Scoring[Any, Any]] = {"expression": _EXPRESSION, "clusters": _CLUSTERS}


@dataclass(frozen=True)
class Trial:
    """A cohort divided into folds.

    Attributes
    ----------
    sections : sequence of Section
        Measured sections, all spots.
    config : Config
        With the target that holds for all folds.
    how : str
        Key of `deepspace.data.splits.SPLITS`.
    folds : list of Fold
    targets : list of Target
        Of each fold, fitted on its training spots alone.
    scoring : Scoring
        Of this kind of target.
    slots : dict
        Empty slots of the sections that were run already.
    """

    sections: Sequence[Section]
    config: Config
    how: str
    folds: list[Fold]
    targets: list[Target]
    scoring: Scoring[Any, Any]
    # the noise ceiling of a section takes longer than many a fit
    slots: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, sections: Sequence[Section], benches: Sequence[Workbench], how: str | None = None
    ) -> Trial:
        """Divide a cohort, fit the targets, encode every spot once.

        The configured split holds unless `how` names one.

        Raises
        ------
        InputError
            If the sections do not allow this split, or the target cannot be fitted.
        """
        scoring = SCORINGS[benches[0].config.target.kind]
        sections, goal = scoring.prepare(sections, benches[0].config.target)
        config = benches[0].config.model_copy(update={"target": goal})
        how = how or resolved_split(sections, config)
        gap_um = _gap_um(benches) if how == "block" else 0.0
        folds = make_folds(sections, how, SplitOptions(config.split.folds, gap_um, config.seed))
        # what is wrong with the target is told before hours of encoding
        targets: list[Target] = []
        for fold in folds:
            training = fold.training(sections)
            target = fit_target(training, goal)
            targets.append(scoring.align(target, targets[0] if targets else target, training))
        with distributed.main_first():
            remember(sections, benches)
        return cls(sections, config, how, folds, targets, scoring)

    def run(self, builders: Mapping[str, Builder], watch: Watcher | None = None) -> dict[str, Any]:
        """What predictors say of every spot that is held out, a slot per section id."""
        held_out: dict[str, Any] = {}
        for number, (fold, target) in enumerate(zip(self.folds, self.targets, strict=True), 1):
            training = fold.training(self.sections)
            if watch is not None:
                log.info("fold %d of %d: %s held out", number, len(self.folds), fold.name)
            for name, build in builders.items():
                predictor = build().fit(training, target)
                if watch is not None:
                    watch(name, number, training, predictor)
                for section in self.sections:
                    if section.section in fold.test:
                        if section.section not in held_out:
                            held_out[section.section] = self._slot(section, target)
                        slot = held_out[section.section]
                        slot.fold[fold.test[section.section]] = number
                        self.scoring.fill(slot, name, predictor, fold, target)
        return held_out

    def _slot(self, section: Section, target: Target) -> Any:
        if section.section not in self.slots:
            own = np.zeros(len(section.coords), np.int64)
            for number, fold in enumerate(self.folds, 1):
                if section.section in fold.test:
                    own[fold.test[section.section]] = number
            self.slots[section.section] = self.scoring.empty(section, target, self.config, own)
        return self.slots[section.section].emptied()


def resolved_split(sections: Sequence[Section], config: Config) -> str:
    """The configured split; ``auto`` is the widest step that the sections allow."""
    how = config.split.how
    return widest_step(sections) if how == "auto" else how


def remember(sections: Sequence[Section], benches: Sequence[Workbench]) -> None:
    """Encode every spot once, so that folds only pick rows."""
    for bench in benches:
        extractor = bench.extractor(bench.config.encoder)
        share_ahead(extractor, sections)
        for section in sections:
            extractor.remember(section.slide, section.coords)
            bench.colour.remember(section.slide, section.coords)


def _gap_um(benches: Sequence[Workbench]) -> float:
    """Gap of blocks: as configured, at least the widest field of view."""
    widest = max(b.extractor(b.config.encoder).fov_um for b in benches)
    wish = benches[0].config.split.gap_um
    if wish is not None and wish < widest:
        raise InputError(
            f"[split] gap_um = {wish:g} is less than the field of view of {widest:g} um: patches "
            "of training and test spots would overlap; leave it out or raise it"
        )
    return widest if wish is None else wish
