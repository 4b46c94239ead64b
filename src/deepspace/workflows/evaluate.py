"""`evaluate`: honest scores of a cohort, as tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepspace.core.config import Config, EncoderConfig
from deepspace.core.errors import InputError
from deepspace.core.files import atomic_folder, check_output
from deepspace.core.provenance import input_hashes, provenance
from deepspace.models import distributed
from deepspace.models.encoders import needs_weights
from deepspace.models.features import FeatureExtractor
from deepspace.models.registry import Workbench
from deepspace.workflows.cohort import (
    Cohort,
    cohort_root,
    default_cache,
    prepare_cohort,
    source_files,
)
from deepspace.workflows.figures import write_evaluation
from deepspace.workflows.novelty import fit_novelty
from deepspace.workflows.report import save_model, write_report
from deepspace.workflows.scoring import Evaluation, FoldModel, evaluate_sections
from deepspace.workflows.train import model_card


def evaluate(
    sheet: Cohort,
    out: Path | str | None = None,
    *,
    models: Sequence[str] | None = None,
    encoders: Sequence[str] | None = None,
    config: Config | None = None,
    keep_models: bool = False,
    overwrite: bool = False,
) -> Evaluation:
    """Score models on held-out data of a cohort and write tables and pictures.

    Parameters
    ----------
    sheet : Path, str or sequence of Section
        Cohort sheet (CSV), one Space Ranger ``outs/`` folder, or sections in memory.
    out : Path or str, optional
        Folder to write, nothing without it: ``scores.parquet`` and ``scores.csv`` (tidy),
        ``genes.csv`` with a verdict on each, ``leak_gap.csv``, ``summary.json``, ``scores.png``,
        ``genes.png``, ``maps-SECTION.png``, and ``report.html``, which holds all of it.
    models : sequence of str, optional
        Keys of the table of models; the configured one if not given.
    encoders : sequence of str, optional
        Encoders to compare; the configured one if not given.
    config : Config, optional
        Everything else.
    keep_models : bool
        Save the models of all folds under ``models/``.
    overwrite : bool
        Replace `out` if it exists.

    Raises
    ------
    InputError
        If the cohort, the configuration or `out` is wrong.
    """
    config = config or Config()
    if out is not None:
        out = Path(out)
        check_output(out, overwrite=overwrite, marker="summary.json")
    names = list(dict.fromkeys(models or [config.model]))
    ready = prepare_cohort(sheet, _benches(config, encoders), names, out)
    sections, benches = ready.sections, ready.benches
    found = evaluate_sections(sections, benches, names, keep=keep_models)
    found.summary["quality_control"] = ready.report
    found.summary["encoders"] = [bench.describe_encoder() for bench in benches]
    found.summary["provenance"] = provenance(
        "evaluate",
        benches[0].config.model_dump(mode="json"),
        input_hashes(source_files(sections), cohort_root(sheet)),
        config.seed,
    )
    if out is not None and distributed.is_main():
        with atomic_folder(out) as folder:
            write_evaluation(found, folder)
            for kept in found.fold_models:
                _save_fold(kept, found, folder / "models", cohort_root(sheet))
            write_report(folder)
    return found


def _save_fold(kept: FoldModel, found: Evaluation, folder: Path, root: Path) -> None:
    """Save one fold's model; its scores are those of all folds."""
    card = model_card(kept.predictor, kept.model, kept.bench, kept.training, found, root)
    name = kept.label.replace(" (", "-").rstrip(")").replace("/", "_")
    own = folder / f"{name}-fold{kept.number}"
    own.mkdir(parents=True)
    save_model(own, kept.predictor, card, fit_novelty(kept.training, kept.bench))


def _benches(config: Config, encoders: Sequence[str] | None) -> list[Workbench]:
    """One workbench per encoder; weights go to the encoders that need some."""
    cache = default_cache()
    shared: dict[EncoderConfig, FeatureExtractor] = {}
    names = list(dict.fromkeys(encoders or [config.encoder.name]))
    if len(names) == 1:
        return [Workbench(config.with_values(encoder={"name": names[0]}), cache, shared)]
    for option in ("fov_um", "fov_spots", "layers"):
        if getattr(config.encoder, option) is not None:
            raise InputError(
                f"[encoder] {option} cannot be shared by {', '.join(names)}; evaluate one encoder "
                "at a time with it, or leave it out"
            )
    benches = []
    for name in names:
        encoder = config.encoder.model_copy(update={"name": name})
        if not needs_weights(name):
            encoder = encoder.model_copy(update={"weights": None})
        benches.append(Workbench(config.model_copy(update={"encoder": encoder}), cache, shared))
    return benches
