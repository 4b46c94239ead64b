"""`train`: evaluate honestly, fit on everything measured, save with what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, fisher_exact, norm
from sklearn.metrics import f1_score, matthews_corrcoef

from deepspace.core.classification import most_probable
from deepspace.core.config import Config
from deepspace.core.files import atomic_folder, check_output
from deepspace.core.progress import log
from deepspace.core.provenance import input_hashes, provenance
from deepspace.data.splits import widest_step
from deepspace.data.targets import fit_target
from deepspace.io.section import Section
from deepspace.models import distributed
from deepspace.models.base import SavablePredictor
from deepspace.models.registry import MODELS, Workbench
from deepspace.models.store import EncoderCard, GeneCard, ModelCard, TrainingCard, write_model
from deepspace.workflows.cluster_scoring import pooled
from deepspace.workflows.cohort import (
    Cohort,
    cohort_root,
    default_cache,
    prepare_cohort,
    source_files,
)
from deepspace.workflows.figures import write_history
from deepspace.workflows.scoring import (
    CEILING,
    INNER,
    SCORINGS,
    Evaluation,
    evaluate_sections,
    gene_means,
    model_label,
)

# predictable is what has this held-out correlation, at this false discovery rate
LEAST_SCORE = 0.2
FDR = 0.05
# splits that score a model where nothing was measured
HONEST = ("auto", "patient", "section", "block")


@dataclass
class Trained:
    """A fitted model with its card and the honest evaluation that the card quotes."""

    predictor: SavablePredictor
    card: ModelCard
    evaluation: Evaluation


def train(
    sheet: Cohort,
    out: Path | str | None = None,
    *,
    model: str | None = None,
    config: Config | None = None,
    overwrite: bool = False,
) -> Trained:
    """Train a model on the measured sections of a cohort sheet and save it.

    Parameters
    ----------
    sheet : Path, str or sequence of Section
        Cohort sheet (CSV), one Space Ranger ``outs/`` folder, or sections in memory.
    out : Path or str, optional
        Folder to write, nothing without it: ``model.json`` and ``weights.safetensors``,
        and how a network was trained, ``history.csv`` and ``history.png``.
    model : str, optional
        Key of the table of models; the configured one if not given.
    config : Config, optional
        Everything else.
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
        check_output(out, overwrite=overwrite, marker="model.json")
    model = model or config.model
    config = config.model_copy(update={"model": model})
    ready = prepare_cohort(sheet, [Workbench.of(config, default_cache())], [model], out)
    (bench,) = ready.benches
    trained = train_sections(ready.sections, bench, model, root=cohort_root(sheet))
    trained.card.scores["quality_control"] = ready.report
    if out is not None and distributed.is_main():
        with atomic_folder(out) as folder:
            write_model(folder, trained.predictor, trained.card)
            write_history(trained.card, folder)
    return trained


def train_sections(
    sections: Sequence[Section],
    bench: Workbench,
    model: str = "probe",
    *,
    root: Path | None = None,
) -> Trained:
    """Train on measured sections that passed quality control; nothing is written.

    Paths in the provenance are relative to `root`, the folder of the cohort sheet.
    """
    scoring = SCORINGS[bench.config.target.kind]
    sections, goal = scoring.prepare(sections, bench.config.target)
    how = _honest_split(sections, bench.config)
    split = bench.config.split.model_copy(update={"how": how})
    config = bench.config.model_copy(update={"split": split, "target": goal})
    bench = replace(bench, config=config)
    log.info("scores come from held-out data, split by %s", how)
    evaluation = evaluate_sections(sections, [bench], [model], compare=False)
    log.info("fitting %s on %d sections", model, len(sections))
    # the same choice of penalties as in the evaluation, whose scores the model carries
    predictor = MODELS[model](bench.bridging(INNER[how]))
    predictor.fit(sections, scoring.align(fit_target(sections, goal), evaluation.target, sections))
    card = model_card(predictor, model, bench, sections, evaluation, root or Path.cwd())
    return Trained(predictor, card, evaluation)


def _honest_split(sections: Sequence[Section], config: Config) -> str:
    """Split for the scores that a model carries: never random spots, and one that is possible."""
    how = config.split.how
    if how not in HONEST:
        log.info("split by %s does not score a new section; an honest split does instead", how)
        how = "auto"
    found = widest_step(sections, how)
    if how not in ("auto", found):
        log.info("no second %s to hold out: split by %s instead", how, found)
    return found


def model_card(
    predictor: SavablePredictor,
    model: str,
    bench: Workbench,
    sections: Sequence[Section],
    evaluation: Evaluation,
    root: Path,
) -> ModelCard:
    """Card of a model fitted on `sections`, with the scores of `evaluation`."""
    config = bench.config
    encoder = bench.extractor(config.encoder).encoder
    values, _ = predictor.state()
    target, _ = predictor.target.state()
    field, cards = CARDS[config.target.kind]
    columns = cards(evaluation, model_label(model, config), predictor.target.names)
    card = ModelCard(
        model=model,
        kind=config.target.kind,
        target=target,
        encoder=EncoderCard(
            **bench.describe_encoder(),
            fov_um=tuple(s.fov_um for s in encoder.specs),
            patch_px=tuple(s.size_px for s in encoder.specs),
        ),
        training=tuple(
            TrainingCard(
                section=s.section,
                patient=s.patient,
                spots=len(s.coords),
                slide_sha256=s.slide.content_hash(),
                mpp=s.slide.require_mpp(),
                mpp_source=s.slide.mpp_source,
            )
            for s in sections
        ),
        scores=evaluation.summary,
        provenance=provenance(
            "train",
            config.model_dump(mode="json"),
            input_hashes(source_files(sections), root),
            config.seed,
        ),
        state=values,
    )
    return card.model_copy(update={field: columns})


def gene_cards(scores: pd.DataFrame, model: str, genes: Sequence[str]) -> tuple[GeneCard, ...]:
    """Held-out score and verdict of each gene.

    A gene is predictable if it was scored in every held-out section, its mean held-out Pearson
    correlation is at least 0.2, and that is above 0 by Fisher's z test with
    Benjamini-Hochberg at 5 %. The test takes spots as independent, which neighbouring spots are
    not: it is a filter against chance in small cohorts, not a guaranteed false discovery rate.
    """
    chosen = scores[scores["model"] == model]
    means = gene_means(scores, model).reindex(list(genes))
    known = chosen.dropna(subset="pearson")
    seen = known.groupby("gene")["section"].nunique().reindex(list(genes)).fillna(0).to_numpy()
    degrees = (known["spots"] - 3).groupby(known["gene"]).sum().reindex(list(genes))
    r = means["pearson"].fillna(0.0).clip(-0.999, 0.999).to_numpy()
    z = np.arctanh(r) * np.sqrt(degrees.fillna(1.0).clip(lower=1.0).to_numpy())
    rejected = false_discovery_control(norm.sf(z)) <= FDR
    good = rejected & (r >= LEAST_SCORE) & (seen == scores["section"].nunique())
    return tuple(
        GeneCard(
            name=gene,
            score=_number(row["pearson"]),
            ceiling=_number(row[CEILING]),
            predictable=bool(ok),
        )
        for gene, (_, row), ok in zip(genes, means.iterrows(), good, strict=True)
    )


def cluster_cards(
    evaluation: Evaluation, model: str, clusters: Sequence[str]
) -> tuple[GeneCard, ...]:
    """Held-out F1 score and verdict of each cluster.

    A cluster is predictable if being called it and being it are correlated (phi coefficient) by at
    least 0.2 over all held-out spots, and that is above 0 by Fisher's exact test with
    Benjamini-Hochberg at 5 %; the caution of `gene_cards` about neighbouring spots holds.
    """
    found = pooled(evaluation.held_out, model)
    if found is None:
        return tuple(
            GeneCard(name=n, score=None, ceiling=None, predictable=False) for n in clusters
        )
    truth, probabilities, names = found
    called = most_probable(probabilities, names)
    pairs = [(truth == name, called == name) for name in clusters]
    tables = [[[np.sum((a == x) & (b == y)) for y in (1, 0)] for x in (1, 0)] for a, b in pairs]
    p = [fisher_exact(table, alternative="greater").pvalue for table in tables]
    phi = np.array([matthews_corrcoef(a, b) for a, b in pairs])
    good = (false_discovery_control(p) <= FDR) & (phi >= LEAST_SCORE)
    return tuple(
        GeneCard(
            name=name,
            score=_number(f1_score(a, b, zero_division=0.0)) if a.any() else None,
            ceiling=None,
            predictable=bool(ok),
        )
        for name, (a, b), ok in zip(clusters, pairs, good, strict=True)
    )


Cards = Callable[[Evaluation, str, Sequence[str]], tuple[GeneCard, ...]]

# where the card of a model keeps them, and how they are made
CARDS: dict[str, tuple[str, Cards]] = {
    "expression": ("genes", lambda found, model, names: gene_cards(found.scores, model, names)),
    "clusters": ("clusters", cluster_cards),
}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
