"""Encoders: from a name to something that turns patches into features."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepspace.core.errors import InputError, Problems
from deepspace.data.patches import PatchSpec
from deepspace.models.backbones import Backbone, check_layers, timm_zoo
from deepspace.models.dense import Maps, embed
from deepspace.models.encoder_rows import ENCODERS, Embed, NetworkRow, StatisticsRow
from deepspace.models.network import (
    MEAN_SD,
    VERSION,
    InputTransform,
    NetworkFeatures,
    Precision,
    Reading,
    parse_input,
)
from deepspace.models.network_maps import NetworkMaps
from deepspace.models.weights import (
    Weights,
    find_weights,
    load_into,
    random_seed,
    read_weights,
)

__all__ = [
    "ENCODERS",
    "TIMM",
    "Encoder",
    "Pretrained",
    "device_of",
    "load_encoder",
    "load_network",
    "needs_weights",
]

TIMM = "timm:"
Sampling = Literal["crop", "dense"]


class Encoder:
    """Turns patches into features.

    Parameters
    ----------
    name
        Row of `ENCODERS`, or `timm:NAME`.
    specs
        One patch per field of view; the features of several stand side by side.
    embed
        Features (b, d) float32 of patches (b, s, s, 3) uint8 of one field of view.
    field_names
        Names of those d features.
    identity
        All else that changes the features: weights, layers, precision.
    maps
        The encoder's map of a slide, where features are pooled from that instead of from crops.

    Attributes
    ----------
    maps : deepspace.models.dense.Maps or None
        As above.
    identity : dict
        As above; `weights` is the file that was loaded, `weights_sha256` its hash.

    Examples
    --------
    >>> encoder = load_encoder("colour", fov_um=(100, 300))
    >>> encoder.n_features, encoder.feature_names[3]
    (6, '300um_red')
    """

    def __init__(
        self,
        name: str,
        specs: tuple[PatchSpec, ...],
        embed: Embed,
        field_names: tuple[str, ...],
        identity: Mapping[str, Any],
        maps: Maps | None = None,
    ) -> None:
        self.name = name
        self.specs = specs
        self.maps = maps
        self.identity = dict(identity)
        self._embed = embed
        self._field_names = field_names

    def pooled_from(self, maps: Maps) -> Encoder:
        """The same encoder, its features pooled from a map of the slide."""
        identity = {**self.identity, "dense": maps.identity()}
        return Encoder(self.name, self.specs, partial(embed, maps=maps), maps.names, identity, maps)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of all features, those of the first field of view first."""
        return tuple(
            f"{spec.fov_um:g}um_{name}" for spec in self.specs for name in self._field_names
        )

    @property
    def n_features(self) -> int:
        """Number of features over all fields of view."""
        return len(self.specs) * len(self._field_names)

    @property
    def precision(self) -> str:
        """Arithmetic the features were computed in: ``fp32``, ``bf16`` or ``exact``."""
        return str(self.identity["precision"])

    @property
    def device(self) -> str:
        """Kind of device the features are computed on: ``cpu`` or ``cuda``."""
        return str(self.identity.get("device", "cpu"))

    def __call__(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of one field of view.

        Parameters
        ----------
        patches
            (b, s, s, 3) uint8 RGB, `s` as in `specs`.

        Returns
        -------
        ndarray
            (b, d) float32. A patch's row does not depend on the patches beside it.
        """
        sides = {spec.size_px for spec in self.specs}
        shape = patches.shape
        if (
            patches.dtype != np.uint8
            or len(shape) != 4
            or shape[3] != 3
            or not {*shape[1:3]} <= sides
        ):
            raise ValueError(
                f"encoder {self.name} takes uint8 patches (b, s, s, 3) with s in {sorted(sides)}, "
                f"not {patches.dtype} {shape}"
            )
        return self._embed(patches)

    def key(self) -> str:
        """Hash of everything that changes the features, but for rounding on another device."""
        content = {
            "encoder": self.name,
            "specs": [asdict(spec) for spec in self.specs],
            # where the weights lay and where they are multiplied does not change what they are
            **{k: value for k, value in self.identity.items() if k not in ("weights", "device")},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Pretrained:
    """A network with its public weights, and how it is read.

    Attributes
    ----------
    name
        Of the encoder.
    backbone
        The network, float32.
    reading
        Layers, pooling and input transform.
    specs
        One patch per field of view.
    weights
        What was loaded, with parts that the backbone has no place for.
    """

    name: str
    backbone: Backbone
    reading: Reading
    specs: tuple[PatchSpec, ...]
    weights: Weights

    def encoder(
        self, precision: Precision = "auto", device: str = "cpu", sampling: Sampling = "crop"
    ) -> Encoder:
        """Encoder that reads pooled layers of the network, which it takes as it is now."""
        size_px = self.specs[0].size_px
        network = NetworkFeatures(self.backbone, self.reading, size_px, precision, device)
        identity = {
            "version": VERSION,
            "weights": self.weights.origin,
            "weights_sha256": self.weights.sha256,
            "precision": network.precision,
            "device": torch.device(device).type,
            **asdict(self.reading),
        }
        encoder = Encoder(self.name, self.specs, network, network.feature_names, identity)
        if sampling == "crop":
            return encoder
        return encoder.pooled_from(NetworkMaps(self.name, network, size_px))


@dataclass(frozen=True)
class _Request:
    """What the user asked of an encoder, beside its name."""

    fov_um: tuple[float, ...] | None
    size_px: int | None
    weights: Path | str | None
    layers: tuple[int, ...] | None

    def specs(self, fov_um: tuple[float, ...], size_px: int) -> tuple[PatchSpec, ...]:
        """Patches asked for, or the defaults given."""
        size = size_px if self.size_px is None else self.size_px
        fields = fov_um if self.fov_um is None else self.fov_um
        return tuple(PatchSpec(float(fov), size) for fov in fields)


def load_encoder(
    name: str,
    *,
    fov_um: Sequence[float] | None = None,
    size_px: int | None = None,
    weights: Path | str | None = None,
    layers: Sequence[int | str] | None = None,
    precision: Precision = "auto",
    device: str = "cpu",
    sampling: Sampling = "crop",
) -> Encoder:
    """Load an encoder with its weights.

    Parameters
    ----------
    name
        A row of `ENCODERS`, or `timm:NAME` for any model of timm.
    fov_um
        Fields of view in micrometres; the encoder's own where left out.
    size_px
        Side of every patch in pixels; the encoder's own where left out.
    weights
        File or folder, see `deepspace.models.weights.find_weights`; `random:SEED` for a control
        with weights that were never trained.
    layers
        Layers to read, numbered as the backbone's class says, each pooled to mean and standard
        deviation; left out, the row's own, for the pathology models their published embedding.
    precision
        ``auto``, ``fp32`` or ``bf16``; see `deepspace.models.network.NetworkFeatures`.
    device
        Torch device.
    sampling
        ``crop`` or ``dense``; see `deepspace.models.dense`.

    Raises
    ------
    InputError
        If there is no such encoder or layer, no weights that fit it, or no map for it.

    Examples
    --------
    >>> load_encoder("stain").n_features
    192
    """
    request = _request(name, fov_um, size_px, weights, layers)
    row = ENCODERS.get(name)
    if isinstance(row, StatisticsRow):
        encoder = _load_statistics(name, row, request)
        return encoder if sampling == "crop" else encoder.pooled_from(row.maps())
    return _load_pretrained(name, request).encoder(precision, device, sampling)


def load_network(
    name: str,
    *,
    fov_um: Sequence[float] | None = None,
    size_px: int | None = None,
    weights: Path | str | None = None,
    layers: Sequence[int | str] | None = None,
) -> Pretrained:
    """Load the network of an encoder as it is, to be fine-tuned.

    Parameters are those of `load_encoder`.

    Raises
    ------
    InputError
        As `load_encoder` does, and if the encoder has no network.
    """
    if not needs_weights(name):
        able = ", ".join(key for key in ENCODERS if needs_weights(key))
        raise InputError(f"encoder {name} has no network to fine-tune; take {able}")
    return _load_pretrained(name, _request(name, fov_um, size_px, weights, layers))


def _request(
    name: str,
    fov_um: Sequence[float] | None,
    size_px: int | None,
    weights: Path | str | None,
    layers: Sequence[int | str] | None,
) -> _Request:
    if not name.startswith(TIMM) and name not in ENCODERS:
        raise InputError(f"there is no encoder {name!r}; take {', '.join(ENCODERS)} or {TIMM}NAME")
    if fov_um is not None and not len(fov_um):
        raise InputError(f"encoder {name}: no field of view; give one in micrometres, as 150")
    return _Request(
        None if fov_um is None else tuple(fov_um),
        size_px,
        weights,
        None if layers is None else _layer_numbers(name, layers),
    )


def _load_pretrained(name: str, request: _Request) -> Pretrained:
    if name.startswith(TIMM):
        return _load_timm(name, request)
    row = ENCODERS[name]
    if isinstance(row, StatisticsRow):
        raise TypeError(f"{name} has no network")
    return _load_network(name, row, request)


def needs_weights(name: str) -> bool:
    """Whether an encoder has weights to load; `stain` and `colour` have none."""
    return not isinstance(ENCODERS.get(name), StatisticsRow)


def _layer_numbers(name: str, layers: Sequence[int | str]) -> tuple[int, ...]:
    """Numbers of layers given as `5`, `"5"` or `"layer5"`."""
    found = []
    for layer in layers:
        match = re.fullmatch(r"[a-z_]*(\d+)", str(layer))
        if match is None:
            raise InputError(f"encoder {name}: layer {layer!r} is not a number")
        found.append(int(match.group(1)))
    return tuple(found)


def _load_statistics(name: str, row: StatisticsRow, request: _Request) -> Encoder:
    problems = Problems(f"encoder {name}")
    if request.weights is not None:
        problems.add(f"has no weights; leave out weights {request.weights}")
    if request.layers is not None:
        problems.add(f"has no layers; leave out layers {list(request.layers)}")
    problems.raise_if_any()
    specs = request.specs(row.fov_um, row.size_px)
    identity = {"version": row.version, "precision": "exact"}
    return Encoder(name, specs, row.embed, row.names, identity)


def _load_network(name: str, row: NetworkRow, request: _Request) -> Pretrained:
    transform = row.transform
    seed = random_seed(request.weights)
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = row.build({})
        used = Weights({}, str(request.weights), str(request.weights))
    else:
        used = read_weights(find_weights(name, row.source, request.weights))
        state = row.rename(used.state)
        with torch.device("meta"):
            backbone = row.build(state)
        load_into(backbone, state, used.origin, row.ignore)
        if "input" in used.metadata:
            transform = parse_input(used.metadata["input"], used.origin)
    if request.layers is None:
        reading = Reading(row.layers, row.pooling, transform)
    else:
        layers = check_layers(name, backbone.layers, request.layers)
        reading = Reading(layers, MEAN_SD, transform)
    return Pretrained(name, backbone, reading, request.specs(row.fov_um, row.size_px), used)


def _load_timm(name: str, request: _Request) -> Pretrained:
    """Any model of timm: its middle layer, pooled, at its own mean and standard deviation."""
    seed = random_seed(request.weights)
    model_name = name.removeprefix(TIMM)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        backbone = timm_zoo.create(model_name, pretrained=request.weights is None)
    if seed is not None:
        used = Weights({}, str(request.weights), str(request.weights))
    elif request.weights is None:
        used = Weights({}, _hash_state(backbone.model.state_dict()), "the hub, by timm")
    else:
        used = read_weights(Path(request.weights))
        load_into(backbone.model, used.state, used.origin, backbone.ignore)
    middle = (len(backbone.layers) // 2,)
    layers = check_layers(
        name, backbone.layers, middle if request.layers is None else request.layers
    )
    transform = InputTransform.unit(backbone.mean, backbone.sd)
    reading = Reading(layers, MEAN_SD, transform)
    specs = request.specs((150.0, 400.0), backbone.size_px)
    return Pretrained(name, backbone, reading, specs, used)


def _hash_state(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode() + state[key].cpu().numpy().tobytes())
    return digest.hexdigest()


def device_of(name: str) -> str:
    """Torch device of a configuration: ``auto`` is a GPU where there is one.

    Raises
    ------
    InputError
        If a GPU is asked for and there is none that torch can use.
    """
    able = torch.cuda.is_available()
    if name == "cuda" and not able:
        raise InputError(
            "device cuda: torch sees no GPU here (no driver, or a CPU build of torch); take "
            "--device cpu, or --device auto for a GPU where there is one"
        )
    return ("cuda" if able else "cpu") if name == "auto" else name
