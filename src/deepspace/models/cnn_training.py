"""Training of a `cnn`: choose the number of epochs inside the training data, then train on all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import nn

from deepspace.core.config import Config
from deepspace.core.errors import Problems
from deepspace.core.metrics import correlation_shares
from deepspace.data.cache import ArrayCache, content_key
from deepspace.data.splits import Fold, SplitOptions, make_folds, widest_step
from deepspace.data.targets import Target
from deepspace.io.section import Section
from deepspace.models import distributed
from deepspace.models.augment import GROUPS, augment
from deepspace.models.base import FloatArray
from deepspace.models.checkpoint import make_room
from deepspace.models.cnn_steps import Refresh, Validation, forward
from deepspace.models.encoders import Pretrained, device_of
from deepspace.models.examples import Material, PatchReader, Rows
from deepspace.models.loop import Examples, History, LoopConfig, Steps, train_network
from deepspace.models.losses import LOSSES, Loss
from deepspace.models.network import fast_bf16
from deepspace.models.neural_linear import HeldOutSpots, NeuralLinear
from deepspace.models.probe import Extractor, Probe
from deepspace.models.scaling import SCALINGS, Scaling, as_it_is
from deepspace.models.trainable import HEADS, TrainableNetwork

# losses that fit each kind of target, its own first
TARGET_LOSSES = {"expression": ("smooth_l1", "mse"), "clusters": ("cross_entropy",)}
BLOCKS = 4
SPOT_FOLDS = 5
# raised when the same settings would train another network
VERSION = 2
# settings that do not change a training, or that its rows and epochs already tell
ELSEWHERE = {"refit", "validation", "epochs", "checkpoint_minutes"}


@dataclass(frozen=True)
class Fitted:
    """A trained network.

    `pretrained` holds the trained backbone; `rows` are the measured spots that it learnt from and
    `held_out` those that early stopping watched, with the labels of all rows.
    """

    network: TrainableNetwork
    pretrained: Pretrained
    scaling: Scaling
    temperature: float
    history: History
    rows: Rows
    held_out: Rows
    labels: NDArray[np.float32]

    def trained_tensors(self) -> dict[str, NDArray[Any]]:
        """What differs from the public weights, by name."""
        backbone = self.network.backbone
        found: dict[str, torch.Tensor] = {
            n: p for n, p in backbone.named_parameters() if p.requires_grad
        }
        if self.network.batch_norm:
            found |= dict(backbone.named_buffers())
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in found.items()}


def history_rows(phase: str, fitted: Fitted) -> list[dict[str, Any]]:
    """A training as rows of a table; `phase` is ``search`` or ``refit``."""
    return [
        {"phase": phase, **{k: None if np.isnan(v) else v for k, v in row.items()}}
        for row in fitted.history.rows
    ]


def check_cnn(pretrained: Pretrained, config: Config) -> None:
    """Tell everything that is wrong with the configuration of a `cnn`.

    Raises
    ------
    InputError
        If groups of augmentation are unknown, or settings contradict each other.
    """
    cnn, problems = config.cnn, Problems("[cnn]")
    kind = TARGET_LOSSES[config.target.kind]
    if cnn.loss not in ("auto", *kind):
        problems.add(
            f'loss = "{cnn.loss}" does not fit a target of {config.target.kind}; take {kind[0]}'
        )
    unknown = [group for group in cnn.augment if group not in GROUPS]
    if unknown:
        problems.add(f"augment has no group {', '.join(unknown)}; take some of {', '.join(GROUPS)}")
    if cnn.head == "own":
        if len(pretrained.specs) > 1:
            problems.add(
                'head = "own" takes one field of view; give [encoder] fov_um one, as [110]'
            )
        if config.encoder.standardise != "none":
            problems.add(
                'head = "own" has nothing to standardise; set [encoder] standardise = "none"'
            )
        if config.encoder.layers is not None:
            problems.add('head = "own" reads the deepest layer; leave out [encoder] layers')
        if cnn.start != "random":
            problems.add('head = "own" cannot start from the ridge; set start = "random"')
    problems.raise_if_any()


class Trainer:
    """Trains networks of one configuration for one target."""

    def __init__(
        self, pretrained: Pretrained, start: Extractor, config: Config, target: Target
    ) -> None:
        self.pretrained, self.start, self.config, self.target = pretrained, start, config, target
        self.device = device_of(config.device)
        name = target.loss if config.cnn.loss == "auto" else config.cnn.loss
        self.loss: Loss = LOSSES[name]
        self.classifies = name == "cross_entropy"
        precision = config.cnn.precision
        fast = precision == "auto" and fast_bf16(torch.device(self.device))
        self.bf16 = precision == "bf16" or fast

    def reader(self, cache: ArrayCache | None) -> PatchReader:
        """Reader of this network's patches."""
        macenko = self.config.encoder.stain_normalisation == "macenko"
        return PatchReader(self.pretrained.specs, macenko=macenko, cache=cache)

    def inner_fold(self, sections: Sequence[Section]) -> Fold:
        """What early stopping holds out: one of the folds of the configured split, by the seed."""
        wish, seed = self.config.cnn.validation, self.config.seed
        how = wish if wish == "spot" else widest_step(sections, wish)
        spots = min(len(s.coords) for s in sections)
        number = SPOT_FOLDS if how == "spot" else max(2, min(BLOCKS, spots // 15))
        fov_um = max(spec.fov_um for spec in self.pretrained.specs)
        folds = make_folds(sections, how, SplitOptions(number, fov_um, seed))
        return folds[seed % len(folds)]

    def search(
        self,
        material: Material,
        sections: Sequence[Section],
        fold: Fold,
        cache: ArrayCache | None,
    ) -> Fitted:
        """Train with early stopping on the spots that `fold` holds out."""
        train, test = material.rows(sections, fold.train), material.rows(sections, fold.test)
        scaling = self._scaling(material, train)
        probe = self._ridge(fold.training(sections))
        temperature = 1.0
        if probe is not None and self.classifies:
            temperature = _temperature(probe, fold.testing(sections), self.target)
        return self._train(material, (train, test), scaling, probe, temperature, cache)

    def refit(
        self,
        material: Material,
        sections: Sequence[Section],
        epochs: int,
        temperature: float,
        cache: ArrayCache | None,
    ) -> Fitted:
        """Train on all spots for so many epochs, the best that a search found."""
        train = np.arange(material.measured)
        scaling = self._scaling(material, train)
        probe = self._ridge(sections)
        parts = (train, train[:0])
        return self._train(material, parts, scaling, probe, temperature, cache, epochs)

    def _scaling(self, material: Material, rows: Rows) -> Scaling:
        """Fitted on training spots alone."""
        number = material.section[rows]
        values = [material.values[rows[number == k]] for k in np.unique(number)]
        return as_it_is(values) if self.classifies else SCALINGS[self.config.cnn.scale](values)

    def _ridge(self, sections: Sequence[Section]) -> Probe | None:
        """`probe` on the network as it is, if the last layer starts from it."""
        if self.config.cnn.start == "random":
            return None
        return Probe(self.start, self.config.probe, self.config.seed).fit(
            sections, self.target.wide
        )

    def _labels(self, material: Material, train: Rows, scaling: Scaling) -> NDArray[np.float32]:
        """Labels of all rows; a slide's level is that of its training spots, else of its own."""
        labels = np.empty_like(material.values)
        spots = np.arange(material.measured)
        for number in np.unique(material.section):
            own = spots[material.section[spots] == number]
            known = np.intersect1d(own, train)
            level = material.values[known if len(known) else own].mean(axis=0) if len(own) else 0.0
            labels[own] = scaling.labels(material.values[own], np.asarray(level))
        # a teacher's values lie about the common level already
        extra = material.values[material.measured :]
        labels[material.measured :] = scaling.labels(extra, scaling.offset)
        return labels.astype(np.float32)

    def _train(
        self,
        material: Material,
        parts: tuple[Rows, Rows],
        scaling: Scaling,
        probe: Probe | None,
        temperature: float,
        cache: ArrayCache | None,
        epochs: int | None = None,
    ) -> Fitted:
        """Train on the first rows, watch the second; without any, keep the last of `epochs`."""
        train, test = parts
        pretrained, network = self._network(material)
        if probe is not None:
            _start_from(network, probe, scaling, temperature)
        labels = self._labels(material, train, scaling)
        weights = np.zeros(len(labels), np.float32)
        weights[train] = 1.0
        weights[material.measured :] = material.weights[material.measured :]
        examples = Examples(material.patches, labels, weights, material.section)
        loop = self._loop_config(epochs)
        refresh = Refresh(material.lattices, self.bf16)
        steps = Steps(
            self.loss,
            lambda x, seeds: augment(x, self.config.cnn.augment, seeds),
            Validation(examples, test, self.loss, len(self.target.names), self.bf16)
            if len(test)
            else None,
            refresh if self.config.encoder.standardise == "section" else _nothing,
        )
        key = self._key(material, labels, weights, test, loop)
        path = None if cache is None else cache.folder / "training" / f"{key}.safetensors"
        history = train_network(network, examples, loop, steps, checkpoint=path, key=key)
        if path is not None and distributed.is_main():
            make_room(path.parent)
        return Fitted(network, pretrained, scaling, temperature, history, train, test, labels)

    def _network(self, material: Material) -> tuple[Pretrained, TrainableNetwork]:
        """A new network on a copy of the public weights."""
        cnn = self.config.cnn
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            pretrained = HEADS[cnn.head](self.pretrained)
            network = TrainableNetwork(
                pretrained,
                len(material.lattices),
                material.values.shape[1],
                batch_norm=cnn.batch_norm == "trained",
            )
        network.release(cnn.trainable)
        return pretrained, network

    def _loop_config(self, epochs: int | None) -> LoopConfig:
        cnn = self.config.cnn
        return LoopConfig(
            epochs=cnn.epochs if epochs is None else epochs,
            batch=cnn.batch,
            accumulate=cnn.accumulate,
            learning_rate=cnn.learning_rate,
            head_learning_rate=cnn.head_learning_rate,
            weight_decay=cnn.weight_decay,
            patience=cnn.patience,
            seed=self.config.seed,
            precision="bf16" if self.bf16 else "fp32",
            checkpoint_minutes=cnn.checkpoint_minutes,
            device=self.device,
        )

    def _key(
        self,
        material: Material,
        labels: NDArray[np.float32],
        weights: NDArray[np.float32],
        test: Rows,
        loop: LoopConfig,
    ) -> str:
        """Hash of everything that determines a training, and of nothing else."""
        encoder = self.config.encoder.model_dump(mode="json", exclude={"weights"})
        return content_key(
            {
                "version": [VERSION, torch.__version__, distributed.world_size()],
                "cnn": self.config.cnn.model_dump(mode="json", exclude=ELSEWHERE),
                "probe": self.config.probe.model_dump(mode="json"),
                "loop": {k: v for k, v in vars(loop).items() if k != "checkpoint_minutes"},
                "encoder": encoder,
                "weights": self.pretrained.weights.sha256,
                "names": list(self.target.names),
                "material": material.identity,
                "labels": labels,
                "counted": weights,
                "watched": test,
            }
        )

    def features(self, fitted: Fitted, material: Material, rows: Rows) -> FloatArray:
        """Standardised features of a trained network at some rows, (len(rows), d)."""
        return forward(
            fitted.network, material.patches, material.section, rows, bf16=self.bf16
        ).seen

    def uncertainty(self, fitted: Fitted, material: Material) -> tuple[NeuralLinear, FloatArray]:
        """What the held-out spots tell of a trained network: errors, and share in correlation.

        The shares, one per held-out spot, are those of `correlation_shares` for the targets that
        were asked for.
        """
        rows = fitted.held_out
        found = forward(fitted.network, material.patches, material.section, rows, bf16=self.bf16)
        values = self.loss.activate(torch.from_numpy(found.outputs)).numpy()
        error = (values - fitted.labels[rows]) * fitted.scaling.spread
        held_out = HeldOutSpots(found.seen, error.astype(np.float64) ** 2)
        names = len(self.target.names)
        shares = correlation_shares(fitted.labels[rows, :names], values[:, :names])
        return NeuralLinear.of(self.features(fitted, material, fitted.rows), held_out), shares


def _nothing(network: nn.Module) -> None:
    """Features that are not standardised have no statistics."""


def _temperature(probe: Probe, sections: Sequence[Section], target: Target) -> float:
    """Factor that turns ridge values of indicators into logits, best on held-out spots."""
    values = np.concatenate([probe.predict(s.slide, s.coords).mean for s in sections])
    labels = np.concatenate([target.encode(s.require_counts()) for s in sections])

    def loss(factor: float) -> float:
        logits = torch.from_numpy(factor * values)
        return float(-(torch.from_numpy(labels) * logits.log_softmax(1)).sum())

    return float(minimize_scalar(loss, bounds=(0.1, 50.0), method="bounded").x)


@torch.no_grad()
def _start_from(
    network: TrainableNetwork, probe: Probe, scaling: Scaling, temperature: float
) -> None:
    """Give the last layer the ridge solution, in the units of the labels."""
    weights = temperature * probe.coefficients / scaling.spread
    level = temperature * (probe.y_mean - scaling.offset) / scaling.spread
    network.head.weight.copy_(torch.from_numpy(weights.T))
    network.head.bias.copy_(torch.from_numpy(level - probe.x_mean @ weights))
