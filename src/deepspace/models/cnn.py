"""`cnn`: a fine-tuned network, the method of DeepSpaCE (Monjo et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from deepspace.core.config import Config
from deepspace.core.errors import InputError
from deepspace.core.progress import log
from deepspace.data.cache import ArrayCache
from deepspace.data.targets import Target
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.models import distributed
from deepspace.models.base import Arrays, FloatArray, Prediction, learnable
from deepspace.models.cnn_training import Fitted, Trainer, history_rows
from deepspace.models.encoders import Pretrained, device_of
from deepspace.models.examples import LATTICE_POINTS, Material, Pseudo
from deepspace.models.features import FeatureExtractor
from deepspace.models.losses import LOSSES
from deepspace.models.neural_linear import NeuralLinear
from deepspace.models.probe import Extractor, level_variance, measurement_noise
from deepspace.models.scaling import Scaling
from deepspace.models.trainable import HEADS

TRAINED = "network."


@dataclass(frozen=True)
class Tools:
    """What a `CNN` is built with.

    Attributes
    ----------
    pretrained
        The network with its public weights.
    start
        Features of the network as it is, for the ridge that the last layer starts from.
    config
        Of everything; `cnn`, `probe`, `encoder`, `seed` and `device` are used.
    cache
        Where patches and checkpoints are kept.
    """

    pretrained: Pretrained
    start: Extractor
    config: Config
    cache: ArrayCache | None


@dataclass(frozen=True)
class Task:
    """What is learnt: patches and labels of sections reduced to their labelled spots."""

    trainer: Trainer
    sections: Sequence[Section]
    material: Material

    def spots(self) -> list[NDArray[np.int64]]:
        """Rows of the measured spots of each section."""
        ends = np.cumsum([len(s.coords) for s in self.sections])
        return [r.astype(np.int64) for r in np.split(np.arange(ends[-1]), ends[:-1])]


class CNN:
    """A convolutional network fine-tuned on patches around the measured spots.

    Its last layer is linear in the network's features, so uncertainty is that of a linear model
    on features (`NeuralLinear`), with the residual variance of spots that were held out inside
    the training data.

    References
    ----------
    Monjo et al., Scientific Reports 12:4133 (2022).
    """

    def __init__(self, tools: Tools) -> None:
        self.tools = tools

    def fit(
        self, sections: Sequence[Section], target: Target, pseudo: Sequence[Pseudo] = ()
    ) -> Self:
        """Train on the measured spots of `sections`, and on pseudo-labelled points.

        Pseudo-labels never take part in validation.
        """
        task = self._task(sections, target, pseudo)
        self._search(task)
        if self.tools.config.cnn.refit:
            self._refit(task, self)
        return self

    def fit_like(
        self,
        sections: Sequence[Section],
        target: Target,
        searched: CNN,
        pseudo: Sequence[Pseudo] = (),
    ) -> Self:
        """Train on all spots for as many epochs as `searched` found best.

        What it found on spots that it held out, errors and limits, is kept.
        """
        self._refit(self._task(sections, target, pseudo), searched)
        return self

    def _task(self, sections: Sequence[Section], target: Target, pseudo: Sequence[Pseudo]) -> Task:
        """Patches and labels, and what the labels alone tell."""
        self.target = target
        sections, goal = learnable(sections, target)
        trainer = Trainer(self.tools.pretrained, self.tools.start, self.tools.config, goal)
        distributed.setup(trainer.device)
        with distributed.main_first():
            reader = trainer.reader(self.tools.cache)
            material = Material.of(sections, goal.wide, reader, pseudo)
        seed = self.tools.config.seed
        self.noise = np.mean([measurement_noise(s, goal, seed) for s in sections], axis=0)
        return Task(trainer, sections, material)

    def _search(self, task: Task) -> None:
        """Train with early stopping on spots held out inside the training data."""
        trainer, names = task.trainer, len(self.target.names)
        fold = trainer.inner_fold(task.sections)
        log.info("cnn: early stopping watches %s, inside the training data", fold.name)
        searched = trainer.search(task.material, task.sections, fold, self.tools.cache)
        self.history = history_rows("search", searched)
        self.best_epoch = searched.history.best_epoch
        self.validation_loss = searched.history.rows[self.best_epoch]["loss"]
        linear, self.shares = trainer.uncertainty(searched, task.material)
        self.linear = replace(linear, residual=linear.residual[:names])
        self.searched_rows = len(searched.rows)
        # errors on a whole section held out tell of its level as well, unless labels are centred
        told = not searched.scaling.centred and not fold.train.keys() & fold.test.keys()
        levels = [task.material.values[rows, :names].mean(axis=0) for rows in task.spots()]
        self.between = np.zeros(names) if told else level_variance(np.stack(levels))
        self._take(searched)

    def _refit(self, task: Task, searched: CNN) -> None:
        """Train on all spots; `searched` may be this model itself."""
        log.info("cnn: training on all training data, %d epochs", searched.best_epoch)
        final = task.trainer.refit(
            task.material,
            task.sections,
            searched.best_epoch,
            searched.temperature,
            self.tools.cache,
        )
        features = task.trainer.features(final, task.material, final.rows)
        self.linear = searched.linear.onto(features, searched.searched_rows)
        self.history = searched.history + history_rows("refit", final)
        self.validation_loss, self.between = searched.validation_loss, searched.between
        self._take(final)

    def _take(self, fitted: Fitted) -> None:
        """Keep what prediction needs of a trained network."""
        network = fitted.network
        self.scaling, self.temperature = fitted.scaling, fitted.temperature
        self.weights = network.head.weight.detach().cpu().numpy().astype(np.float64)
        self.bias = network.head.bias.detach().cpu().numpy().astype(np.float64)
        self.trained = fitted.trained_tensors()
        self._build(fitted.pretrained)

    def _build(self, pretrained: Pretrained) -> None:
        """Features of the trained network, standardised as those of any encoder."""
        config = self.tools.config
        encoder = pretrained.encoder(config.encoder.precision, device_of(config.device))
        self.extractor = FeatureExtractor(
            encoder,
            standardise=config.encoder.standardise,
            stain_normalisation=config.encoder.stain_normalisation,
            reference_points=LATTICE_POINTS,
        )

    def predict(self, slide: Slide, coords: FloatArray) -> Prediction:
        """Predict at `coords`, shape (points, 2)."""
        X = self.extractor(slide, coords)
        mean = self._values(X, len(self.target.names))
        grown = self.linear.variance(X)
        latent = np.maximum(self.linear.residual - self.noise, 0.0) + grown + self.between
        return Prediction(
            mean=mean,
            sd=np.sqrt(self.linear.residual + grown + self.between),
            sd_latent=np.sqrt(latent),
        )

    def teach(self, slide: Slide, coords: FloatArray) -> FloatArray:
        """Values of all targets that were learnt, ``target.wide``, shape (points, names)."""
        return self._values(self.extractor(slide, coords), len(self.weights))

    def _values(self, X: FloatArray, names: int) -> FloatArray:
        """Values of the first `names` targets; the others are not computed along."""
        scaling = replace(
            self.scaling, offset=self.scaling.offset[:names], spread=self.scaling.spread[:names]
        )
        outputs = torch.from_numpy(X @ self.weights[:names].T.copy() + self.bias[:names])
        return scaling.values(LOSSES[self.target.loss].activate(outputs).numpy())

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Fitted state: JSON values and arrays; of the targets only those asked for."""
        names = len(self.target.names)
        arrays: Arrays = {
            "weights": self.weights[:names],
            "bias": self.bias[:names],
            "offset": self.scaling.offset[:names],
            "spread": self.scaling.spread[:names],
            "noise": self.noise,
            "between": self.between,
            **self.linear.arrays(),
            **{TRAINED + name: value for name, value in self.trained.items()},
        }
        values = {
            "centred": self.scaling.centred,
            "temperature": self.temperature,
            "history": self.history,
            "validation_loss": self.validation_loss,
        }
        return values, arrays

    def restore(self, target: Target, values: Mapping[str, Any], arrays: Arrays) -> Self:
        """Take back what `state` gave."""
        self.target = target
        self.weights, self.bias = arrays["weights"], arrays["bias"]
        self.noise, self.between = arrays["noise"], arrays["between"]
        self.scaling = Scaling(arrays["offset"], arrays["spread"], values["centred"])
        self.temperature, self.history = values["temperature"], values["history"]
        self.validation_loss = values["validation_loss"]
        self.linear = NeuralLinear.from_arrays(arrays)
        prefix = len(TRAINED)
        self.trained = {k[prefix:]: v for k, v in arrays.items() if k.startswith(TRAINED)}
        pretrained = HEADS[self.tools.config.cnn.head](self.tools.pretrained)
        own: dict[str, torch.Tensor] = dict(pretrained.backbone.named_parameters())
        own |= dict(pretrained.backbone.named_buffers())
        missing = [name for name in self.trained if name not in own]
        if missing:
            raise InputError(f"the model holds tensors this network has not: {missing[:5]}")
        wrong = [n for n, v in self.trained.items() if own[n].shape != v.shape]
        if wrong:
            raise InputError(
                f"the model holds tensors of other shapes than this network: {wrong[:5]}"
            )
        with torch.no_grad():
            for name, value in self.trained.items():
                own[name].copy_(torch.from_numpy(value))
        self._build(pretrained)
        return self
