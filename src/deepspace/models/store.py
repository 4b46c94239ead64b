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

from deepspace.core.config import Config, EncoderConfig, saved_config
from deepspace.core.errors import InputError
from deepspace.core.strict import StrictModel
from deepspace.data.cache import ArrayCache
from deepspace.data.targets import TARGETS
from deepspace.models.base import Arrays, SavablePredictor
from deepspace.models.registry import MODELS, Workbench
from deepspace.models.watch import Watch

SCHEMA_VERSION = 1
# arrays of the target have a prefix, those of the model none
TARGET = "target."
NOVELTY = "novelty."
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

    The score of a gene is its Pearson correlation, that of a cluster its F1 score; `low` and
    `high` are its 95 % interval over sections. See `deepspace.workflows.verdicts`.
    """

    name: str
    score: float | None
    low: float | None = None
    high: float | None = None
    ceiling: float | None
    p_value: float | None = None
    q_value: float | None = None
    verdict: Literal["predictable", "weak", "no"]

    @model_validator(mode="before")
    @classmethod
    def _yes_or_no(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Models saved before there were verdicts say whether a gene is predictable."""
        if "predictable" not in values:
            return values
        kept = {key: value for key, value in values.items() if key != "predictable"}
        # of those it is not known whether they are weak or nothing
        return {**kept, "verdict": "predictable" if values["predictable"] else "weak"}

    @property
    def predictable(self) -> bool:
        """Whether it may be believed."""
        return self.verdict == "predictable"


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
    novelty: dict[str, Any] | None = None
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


def write_model(folder: Path, predictor: SavablePredictor, card: ModelCard, watch: Watch) -> None:
    """Write ``model.json`` and ``weights.safetensors`` into a folder that the caller renames."""
    _, own = predictor.state()
    known, usual = watch.state()
    own = own | {NOVELTY + name: array for name, array in usual.items()}
    _, target = predictor.target.state()
    target = target | {NAMES: _digest(predictor.target.names)}
    arrays = own | {TARGET + name: array for name, array in target.items()}
    weights = save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
    found = {"novelty": known, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    card = card.model_copy(update=found)
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
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise InputError(
            f"{folder}: {found}; the model comes first: give the folder that train wrote, then the "
            "cohort sheet"
        )
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
    folder: Path,
    *,
    cache: ArrayCache | None = None,
    weights: Path | None = None,
    device: str | None = None,
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
    device : str, optional
        Where networks run, ``cpu``, ``cuda`` or ``auto``; left out, where the model was trained.

    Raises
    ------
    InputError
        If the folder is damaged, or the encoder here would give other features than the one
        the model was trained with.
    """
    card = read_card(folder)
    config = card.config.with_values(device=device)
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
    rest = _under(TARGET, arrays)
    parts = (TARGET, NOVELTY)
    own = {name: array for name, array in arrays.items() if not name.startswith(parts)}
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


def load_watch(folder: Path, *, cache: ArrayCache | None = None) -> Watch:
    """Read what a model knows of its training images.

    Raises
    ------
    InputError
        If the folder is damaged, or the features would be others than at training.
    """
    card = read_card(folder)
    if card.novelty is None:
        raise InputError(f"{folder}: knows nothing of its training images; train the model again")
    bench = Workbench.of(card.config.model_copy(update={"encoder": card.encoder.config}), cache)
    arrays = _under(NOVELTY, _read_arrays(folder / "weights.safetensors", card.weights_sha256))
    try:
        return Watch.restore(card.novelty, arrays, bench)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{folder}: damaged ({what}); train the model again") from error


def _under(prefix: str, arrays: Arrays) -> Arrays:
    """Arrays whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


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
