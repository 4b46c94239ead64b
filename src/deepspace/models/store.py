"""Saved models: a folder with `model.json` and `weights.safetensors`, nothing executable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError, model_validator
from safetensors.numpy import load, save

from deepspace.core.config import Config, EncoderConfig, StrictModel, saved_config
from deepspace.core.errors import InputError
from deepspace.data.cache import ArrayCache
from deepspace.data.targets import TARGETS
from deepspace.models.base import Arrays, SavablePredictor
from deepspace.models.registry import MODELS, Workbench

SCHEMA_VERSION = 1
# arrays of the target have a prefix, those of the model none
TARGET = "target."
NAMES = "names"


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
    slide_sha256: str
    mpp: float
    mpp_source: str | None


class GeneCard(StrictModel):
    """One gene or cluster: how well it was predicted where it was held out, and could be.

    The score of a gene is its Pearson correlation, that of a cluster its F1 score.
    """

    name: str
    score: float | None
    ceiling: float | None
    predictable: bool


class ModelCard(StrictModel):
    """Content of `model.json`; `target` is what its row of `TARGETS` restores it from."""

    schema_version: Literal[1] = 1
    model: str
    kind: Literal["expression", "clusters"] = "expression"
    target: dict[str, Any]
    genes: tuple[GeneCard, ...] = ()
    clusters: tuple[GeneCard, ...] = ()
    encoder: EncoderCard
    training: tuple[TrainingCard, ...]
    scores: dict[str, Any]
    provenance: dict[str, Any]
    state: dict[str, Any]
    weights_sha256: str = ""

    @model_validator(mode="before")
    @classmethod
    def _first_layout(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Models saved before there were clusters name the parts of the target one by one."""
        if "target" in values or "transform" not in values:
            return values
        parts = ("transform", "depth", "spots")
        kept = {key: value for key, value in values.items() if key not in parts}
        return {**kept, "target": {key: values[key] for key in parts if key in values}}

    @property
    def columns(self) -> tuple[GeneCard, ...]:
        """Genes or clusters, in the order that they are predicted in."""
        return {"expression": self.genes, "clusters": self.clusters}[self.kind]

    @property
    def config(self) -> Config:
        """Configuration that the model was trained with."""
        return saved_config(self.provenance["config"])


def write_model(folder: Path, predictor: SavablePredictor, card: ModelCard) -> None:
    """Write ``model.json`` and ``weights.safetensors`` into a folder that the caller renames."""
    _, own = predictor.state()
    _, target = predictor.target.state()
    target = target | {NAMES: _digest(predictor.target.names)}
    arrays = own | {TARGET + name: array for name, array in target.items()}
    weights = save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
    card = card.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
    text = json.dumps(card.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
    (folder / "model.json").write_text(text, encoding="utf-8")
    (folder / "weights.safetensors").write_bytes(weights)


def read_card(folder: Path) -> ModelCard:
    """Read and check `model.json` alone.

    Raises
    ------
    InputError
        If the folder is not a model of this version of deepspace.
    """
    path = folder / "model.json"
    if (folder / "model" / path.name).is_file():
        raise InputError(f"{folder}: the model of this result is in {folder / 'model'}; give that")
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
        card = ModelCard.model_validate(values)
        saved_config(card.provenance["config"])
    except (
        json.JSONDecodeError,
        UnicodeDecodeError,
        ValidationError,
        AttributeError,
        KeyError,
    ) as error:
        raise InputError(f"{path}: damaged; train the model again ({error})") from error
    if card.model not in MODELS:
        raise InputError(
            f"{path}: made by model {card.model!r}, which this deepspace does not have "
            f"({', '.join(MODELS)}); install the version that made it"
        )
    return card


def load_model(
    folder: Path, *, cache: ArrayCache | None = None, weights: Path | None = None
) -> tuple[SavablePredictor, ModelCard]:
    """Read a model and rebuild its encoder.

    Parameters
    ----------
    folder : Path
        With what `write_model` wrote.
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
    elif not _found(encoder.weights):
        encoder = encoder.model_copy(update={"weights": None})
    bench = Workbench.of(config.model_copy(update={"encoder": encoder}), cache)
    found = bench.extractor(encoder).encoder.key()
    if found != card.encoder.key:
        raise InputError(
            f"{folder}: encoder {encoder.name} is not the one it was trained with (other weights, "
            "or another version of deepspace); give the same weights with --weights, or train again"
        )
    arrays = _read_arrays(folder / "weights.safetensors", card.weights_sha256)
    if "fractions" in arrays:  # as models from before there were clusters name it
        arrays[f"{TARGET}fractions"] = arrays.pop("fractions")
    own = {name: array for name, array in arrays.items() if not name.startswith(TARGET)}
    rest = {name.removeprefix(TARGET): arrays[name] for name in set(arrays) - set(own)}
    names = [column.name for column in card.columns]
    known = rest.pop(NAMES, None)
    if known is not None and not np.array_equal(known, _digest(names)):
        raise InputError(
            f"{folder}: model.json names other {card.kind} than weights.safetensors was written "
            "with; train the model again"
        )
    try:
        target = TARGETS[card.kind].restore(names, card.target, rest)
        return MODELS[card.model](bench).restore(target, card.state, own), card
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{folder}: damaged ({what}); train the model again") from error


def _digest(names: Sequence[str]) -> NDArray[np.uint8]:
    """Tells the columns of the weights, whatever happens to `model.json`."""
    return np.frombuffer(hashlib.sha256("\n".join(names).encode()).digest(), np.uint8)


def _found(weights: str | None) -> bool:
    return weights is None or weights.startswith("random:") or Path(weights).exists()


def _read_arrays(path: Path, digest: str) -> Arrays:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: missing; train the model again ({error})") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(f"{path}: damaged, or not of this model.json; train the model again")
    arrays: Arrays = load(content)
    return arrays
