"""Saved models: a folder with `model.json` and `weights.safetensors`, nothing executable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from deepspace.core.config import Config, EncoderConfig, StrictModel
from deepspace.core.errors import InputError
from deepspace.core.files import atomic_folder
from deepspace.data.cache import ArrayCache
from deepspace.data.targets import ExpressionTarget
from deepspace.models.base import SavablePredictor
from deepspace.models.registry import MODELS, Workbench

SCHEMA_VERSION = 1


class EncoderCard(StrictModel):
    """The encoder that made the features."""

    config: EncoderConfig
    key: str
    fov_um: tuple[float, ...]
    patch_px: tuple[int, ...]


class TrainingCard(StrictModel):
    """One section that the model learnt from."""

    section: str
    patient: str
    spots: int


class GeneCard(StrictModel):
    """One gene: how well it was predicted where it was held out, and how well it could be."""

    name: str
    score: float | None
    ceiling: float | None
    predictable: bool


class ModelCard(StrictModel):
    """Content of `model.json`."""

    schema_version: Literal[1] = 1
    model: str
    transform: str
    genes: tuple[GeneCard, ...]
    encoder: EncoderCard
    training: tuple[TrainingCard, ...]
    scores: dict[str, Any]
    provenance: dict[str, Any]
    state: dict[str, Any]

    @property
    def config(self) -> Config:
        """Configuration that the model was trained with."""
        return Config.model_validate(self.provenance["config"])


def save_model(folder: Path, predictor: SavablePredictor, card: ModelCard) -> None:
    """Write a model; the folder appears whole or not at all."""
    _, arrays = predictor.state()
    arrays = {**arrays, "fractions": predictor.target.fractions}
    with atomic_folder(folder) as temporary:
        text = json.dumps(card.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
        (temporary / "model.json").write_text(text, encoding="utf-8")
        contiguous = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        (temporary / "weights.safetensors").write_bytes(save(contiguous))


def read_card(folder: Path) -> ModelCard:
    """Read and check `model.json` alone.

    Raises
    ------
    InputError
        If the folder is not a model of this version of deepspace.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise InputError(
            f"{folder}: not a deepspace model (no model.json); make one with "
            "`deepspace train SHEET --out MODEL`"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"{path}: schema version {values.get('schema_version')}, this deepspace reads "
                f"{SCHEMA_VERSION}; train the model again or install the version that made it"
            )
        return ModelCard.model_validate(values)
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError, AttributeError) as error:
        raise InputError(f"{path}: damaged; train the model again ({error})") from error


def load_model(
    folder: Path, *, cache: ArrayCache | None = None, weights: Path | None = None
) -> tuple[SavablePredictor, ModelCard]:
    """Read a model and rebuild its encoder.

    Parameters
    ----------
    folder : Path
        What `save_model` wrote.
    cache : ArrayCache, optional
        Where features are kept.
    weights : Path, optional
        Encoder weights on this machine, when they are not where they were at training.

    Raises
    ------
    InputError
        If the folder is damaged, or the encoder here would give other features than the one
        the model was trained with.
    """
    card = read_card(folder)
    config = card.config
    encoder = card.encoder.config
    if weights is not None:
        encoder = encoder.model_copy(update={"weights": str(weights)})
    elif encoder.weights is not None and not Path(encoder.weights).exists():
        encoder = encoder.model_copy(update={"weights": None})
    bench = Workbench.of(config.model_copy(update={"encoder": encoder}), cache)
    found = bench.extractor(encoder).encoder.key()
    if found != card.encoder.key:
        raise InputError(
            f"{folder}: trained with another version of encoder {encoder.name} (other weights, "
            "layers, precision or library versions); give the same weights with --weights or "
            "train again"
        )
    try:
        arrays = load_file(folder / "weights.safetensors")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{folder}/weights.safetensors: damaged or missing; train the model again ({error})"
        ) from error
    names = tuple(gene.name for gene in card.genes)
    target = ExpressionTarget(names, card.transform, arrays.pop("fractions"))
    return MODELS[card.model](bench).restore(target, card.state, arrays), card
