"""`train`: evaluate honestly, fit on everything measured, save with what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, norm

from deepspace.core.config import Config
from deepspace.core.files import check_output
from deepspace.core.progress import log
from deepspace.core.provenance import input_hashes, provenance
from deepspace.data.targets import fit_target
from deepspace.io.section import Section
from deepspace.models.base import SavablePredictor
from deepspace.models.registry import MODELS, Workbench
from deepspace.models.store import EncoderCard, GeneCard, ModelCard, TrainingCard, save_model
from deepspace.workflows.cohort import default_cache, measured_after_qc, read_cohort
from deepspace.workflows.scoring import (
    CEILING,
    Evaluation,
    evaluate_sections,
    gene_means,
    model_label,
)

# a gene counts as predictable above this held-out correlation, at this false discovery rate
LEAST_SCORE = 0.2
FDR = 0.05


@dataclass
class Trained:
    """A fitted model with its card and the honest evaluation that the card quotes."""

    predictor: SavablePredictor
    card: ModelCard
    evaluation: Evaluation


def train(
    sheet: Path | str,
    out: Path | str,
    *,
    model: str = "probe",
    config: Config | None = None,
    overwrite: bool = False,
) -> Trained:
    """Train a model on the measured sections of a cohort sheet and save it.

    Parameters
    ----------
    sheet : Path or str
        Cohort sheet (CSV) or one Space Ranger ``outs/`` folder.
    out : Path or str
        Folder to write: ``model.json`` and ``weights.safetensors``.
    model : str
        Key of the table of models.
    config : Config, optional
        Everything else.
    overwrite : bool
        Replace `out` if it exists.

    Raises
    ------
    InputError
        If the cohort, the configuration or `out` is wrong.
    """
    sheet, out, config = Path(sheet), Path(out), config or Config()
    check_output(out, overwrite=overwrite)
    bench = Workbench.of(config, default_cache())
    bench.check([model])
    sections = measured_after_qc(read_cohort(sheet), config)
    trained = train_sections(sections, bench, model)
    save_model(out, trained.predictor, trained.card)
    return trained


def train_sections(sections: Sequence[Section], bench: Workbench, model: str = "probe") -> Trained:
    """Train on measured sections that passed quality control; nothing is written."""
    bench.check([model])
    config = bench.config
    if len(sections) == 1 and config.split.how == "section":
        log.info("one measured section: scores come from held-out blocks of it")
        config = config.with_values(split={"how": "block"})
        bench = Workbench(config, bench.cache, bench.extractors)
    evaluation = evaluate_sections(sections, [bench], [model])
    log.info("fitting %s on %d sections", model, len(sections))
    predictor = MODELS[model](bench)
    predictor.fit(sections, fit_target(sections, config.target))
    card = _card(predictor, model, bench, sections, evaluation)
    return Trained(predictor, card, evaluation)


def _card(
    predictor: SavablePredictor,
    model: str,
    bench: Workbench,
    sections: Sequence[Section],
    evaluation: Evaluation,
) -> ModelCard:
    config = bench.config
    encoder = bench.extractor(config.encoder).encoder
    files = [path for s in sections for path in s.sources.values()]
    values, _ = predictor.state()
    label = model_label(model, config)
    return ModelCard(
        model=model,
        transform=predictor.target.transform,
        genes=gene_cards(evaluation.scores, label, predictor.target.names),
        encoder=EncoderCard(
            config=config.encoder,
            key=encoder.key(),
            fov_um=tuple(s.fov_um for s in encoder.specs),
            patch_px=tuple(s.size_px for s in encoder.specs),
        ),
        training=tuple(
            TrainingCard(section=s.section, patient=s.patient, spots=len(s.coords))
            for s in sections
        ),
        scores=evaluation.summary,
        provenance=provenance(
            "train", config.model_dump(mode="json"), input_hashes(files), config.seed
        ),
        state=values,
    )


def gene_cards(scores: pd.DataFrame, model: str, genes: Sequence[str]) -> tuple[GeneCard, ...]:
    """Held-out score and verdict of each gene.

    A gene is predictable if its mean held-out Pearson correlation is at least 0.2 and above 0
    by Fisher's z test over all held-out spots, at a false discovery rate of 5 % over the genes
    (Benjamini & Hochberg 1995). Genes that were not chosen in every fold have no score.
    """
    means = gene_means(scores, model).reindex(list(genes))
    spots = scores[scores["model"] == model].groupby("section")["spots"].first()
    r = means["pearson"].fillna(0.0).clip(-0.999, 0.999).to_numpy()
    # one z a section, averaged: degrees of freedom add up over sections
    z = np.arctanh(r) * np.sqrt(max(float((spots - 3).sum()), 1.0))
    rejected = false_discovery_control(norm.sf(z)) <= FDR
    good = rejected & (r >= LEAST_SCORE)
    return tuple(
        GeneCard(
            name=gene,
            score=_number(row["pearson"]),
            ceiling=_number(row[CEILING]),
            predictable=bool(ok),
        )
        for gene, (_, row), ok in zip(genes, means.iterrows(), good, strict=True)
    )


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
