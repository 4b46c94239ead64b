"""How much a split flatters: one model under every split that a cohort allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from deepspace.core.errors import InputError
from deepspace.core.progress import log
from deepspace.io.section import Section
from deepspace.models.registry import MODELS, Workbench
from deepspace.workflows.trial import INNER, Trial

# from the most flattering to the hardest, with what each of them tells
MEANING = {
    "spot": "random spots, as many papers do: neighbours of a held-out spot are known (LEAKS)",
    "block": "regions of a section, learnt from the rest of it across a gap",
    "section": "whole sections, learnt from the others",
    "patient": "whole patients, learnt from the others",
}


def leak_gap(sections: Sequence[Section], bench: Workbench, model: str) -> list[dict[str, Any]]:
    """Score one model under random spots, blocks, sections and patients.

    Returns
    -------
    list of dict
        A row a split: `model`, `split`, `meaning`, `folds`, the scores that the summary of an
        evaluation has for a model, and `note` where the sections do not allow this split.
    """
    log.info("leak gap: %s under every split", model)
    return [_row(sections, bench, model, how) for how in MEANING]


def _row(sections: Sequence[Section], bench: Workbench, model: str, how: str) -> dict[str, Any]:
    row: dict[str, Any] = {"model": model, "split": how, "meaning": MEANING[how]}
    split = bench.config.split.model_copy(update={"how": how})
    bench = replace(bench, config=bench.config.model_copy(update={"split": split}))
    try:
        trial = Trial.of(sections, [bench], how)
        held_out = trial.run({model: partial(MODELS[model], bench.bridging(INNER[how]))})
        scores = trial.scoring.table(held_out, how)
        found = trial.scoring.summarise(scores, trial.config, how, len(trial.folds))
    except InputError as error:
        return row | {"folds": None, "note": str(error)}
    own = {k: v for k, v in found["models"][model].items() if not isinstance(v, dict)}
    return row | {"folds": len(trial.folds), **own, "note": None}
