"""Literal tables of models and baselines: a new one is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deepspace.core.config import Config, EncoderConfig
from deepspace.core.errors import InputError
from deepspace.data.cache import ArrayCache
from deepspace.io.section import Section
from deepspace.models.augment import check_groups
from deepspace.models.base import Predictor, SavablePredictor
from deepspace.models.baselines import (
    GeneMean,
    NearestColours,
    NearestSpot,
    QuickProbe,
    ShuffledProbe,
    TissueDomains,
)
from deepspace.models.cnn import CNN, Tools
from deepspace.models.cnn_student import CNNStudent
from deepspace.models.cnn_training import check_cnn
from deepspace.models.encoders import Encoder, Pretrained, device_of, load_encoder, load_network
from deepspace.models.examples import LATTICE_POINTS
from deepspace.models.features import FeatureExtractor
from deepspace.models.kriging import ImageTerm, Kriging
from deepspace.models.probe import Probe
from deepspace.models.student import ProbeStudent
from deepspace.models.unlabelled import Unlabelled
from deepspace.registration.stack import Stack

# field of view at which mean colour alone predicts best (docs/decisions/006-fields-of-view.md)
COLOUR_UM = 220.0


@dataclass(frozen=True)
class Workbench:
    """What models are built with: configuration and a cache, extractors made once.

    `pool` are tiles of slides without measurement, for students; `stack` is where the serial
    sections lie, for models that use measured neighbours.
    """

    config: Config
    cache: ArrayCache | None
    extractors: dict[EncoderConfig, FeatureExtractor]
    pool: tuple[Unlabelled, ...] = ()
    networks: dict[EncoderConfig, Pretrained] = field(default_factory=dict)
    stack: Stack | None = None

    @classmethod
    def of(cls, config: Config, cache: ArrayCache | None = None) -> Workbench:
        """Workbench with no extractor made yet."""
        return cls(config, cache, {})

    def extractor(self, encoder: EncoderConfig) -> FeatureExtractor:
        """Extractor of `encoder`; its weights are loaded the first time."""
        if encoder not in self.extractors:
            loaded = load_encoder(
                encoder.name,
                fov_um=encoder.fov_um,
                weights=encoder.weights,
                layers=encoder.layers,
                size_px=encoder.size_px,
                precision=encoder.precision,
                device=device_of(self.config.device),
                sampling=encoder.sampling,
            )
            self.extractors[encoder] = FeatureExtractor(
                loaded,
                standardise=encoder.standardise,
                stain_normalisation=encoder.stain_normalisation,
                cache=self.cache,
            )
        return self.extractors[encoder]

    def network(self) -> Pretrained:
        """Network of the configured encoder with its public weights; loaded the first time."""
        encoder = self.config.encoder
        if encoder not in self.networks:
            self.networks[encoder] = load_network(
                encoder.name,
                fov_um=encoder.fov_um,
                size_px=encoder.size_px,
                weights=encoder.weights,
                layers=encoder.layers,
            )
        return self.networks[encoder]

    def bridging(self, step: str) -> Workbench:
        """The same bench, its penalties chosen over `step` unless the configuration says."""
        if self.config.probe.bridge != "auto":
            return self
        config = self.config.with_values(probe={"bridge": step})
        return replace(self, config=config)

    def check(self, models: Sequence[str]) -> None:
        """Refuse unknown models and missing weights before any data are read."""
        unknown = [model for model in models if model not in MODELS]
        if unknown:
            raise InputError(f"--model {', '.join(unknown)}: not one of {', '.join(MODELS)}")
        for model in models:
            CHECKS.get(model, _nothing_to_check)(self)
        self.extractor(self.config.encoder)

    def describe_encoder(self) -> dict[str, Any]:
        """Configuration of the encoder as it was really used, and the key of its features."""
        encoder = self.extractor(self.config.encoder).encoder
        config = _resolved(self.config.encoder, encoder).model_dump(mode="json")
        return {"config": config, "key": encoder.key()}

    @property
    def colour(self) -> FeatureExtractor:
        """Mean colour over its best field of view, no wider than the configured encoder's."""
        widest = self.extractor(self.config.encoder).fov_um
        return self.extractor(EncoderConfig(name="colour", fov_um=(min(COLOUR_UM, widest),)))


def _resolved(config: EncoderConfig, encoder: Encoder) -> EncoderConfig:
    """Configuration with the precision that was used: another machine might choose another."""
    if encoder.precision not in ("fp32", "bf16"):
        return config
    return config.model_copy(update={"precision": encoder.precision})


def _nothing_to_check(bench: Workbench) -> None:
    """Any configuration of this model is a good one."""


def _check_cnn(bench: Workbench) -> None:
    if bench.config.encoder.sampling != "crop":
        raise InputError(
            f"[encoder] sampling is {bench.config.encoder.sampling!r}: a network is fine-tuned on "
            'crops; take sampling = "crop", or --model probe'
        )
    check_cnn(bench.network(), bench.config)


def _check_student(bench: Workbench) -> None:
    check_groups(bench.config.student.augment)


def _check_cnn_student(bench: Workbench) -> None:
    _check_cnn(bench)
    _check_student(bench)


def _tools(bench: Workbench) -> Tools:
    config = bench.config
    start = bench.extractor(config.encoder).over(LATTICE_POINTS)
    return Tools(bench.network(), start, config, bench.cache)


def _cnn(bench: Workbench) -> CNN:
    return CNN(_tools(bench))


def _cnn_student(bench: Workbench) -> CNNStudent:
    return CNNStudent(_tools(bench), bench.config.student, bench.pool)


def _probe_student(bench: Workbench) -> ProbeStudent:
    config = bench.config
    extractor = bench.extractor(config.encoder)
    return ProbeStudent(extractor, config.probe, config.student, bench.pool, config.seed)


def _probe(bench: Workbench) -> Probe:
    config = bench.config
    return Probe(bench.extractor(config.encoder), config.probe, config.seed)


def _image_of_probe(bench: Workbench) -> ImageTerm:
    extractor = bench.extractor(bench.config.encoder)
    return ImageTerm(lambda: _probe(bench), extractor)


# what kriging takes from the image: keys of `KrigingConfig.image`
IMAGE_TERMS: dict[str, Callable[[Workbench], ImageTerm]] = {
    "probe": _image_of_probe,
    "cnn": lambda bench: ImageTerm(lambda: _cnn(bench)),
    "none": lambda bench: ImageTerm(GeneMean, constant=True),
}


def _kriging(bench: Workbench) -> Kriging:
    config = bench.config
    image = IMAGE_TERMS[config.kriging.image](bench)
    return Kriging(image, bench.stack, config.kriging, config.seed)


def without_image(bench: Workbench) -> Kriging:
    """Kriging of what was measured around, whatever the image shows."""
    return _kriging(replace(bench, config=bench.config.with_values(kriging={"image": "none"})))


def shuffled(bench: Workbench) -> Probe:
    """`probe` on labels shuffled among the spots of a section."""
    config = bench.config
    return ShuffledProbe(bench.extractor(config.encoder), config.probe, config.seed)


def for_chance(bench: Workbench) -> Probe:
    """`probe` without the spread of its predictions, for what chance can do."""
    config = bench.config
    return QuickProbe(bench.extractor(config.encoder), config.probe, config.seed)


def _colour(bench: Workbench) -> Probe:
    return Probe(bench.colour, bench.config.probe, bench.config.seed)


MODELS: dict[str, Callable[[Workbench], SavablePredictor]] = {
    "probe": _probe,
    "cnn": _cnn,
    "probe-student": _probe_student,
    "cnn-student": _cnn_student,
    "kriging": _kriging,
}

# faults of a model's configuration that can be told before any data are read
CHECKS: dict[str, Callable[[Workbench], None]] = {
    "cnn": _check_cnn,
    "probe-student": _check_student,
    "cnn-student": _check_cnn_student,
}

# who a student learns from, and is compared with
TEACHERS = {"probe-student": "probe", "cnn-student": "cnn"}

# pseudo-labels that teach nothing; a student that gains from these gains from something else
CONTROLS = ("permuted", "random")

# what a baseline is made of: the bench, and all sections that are learnt from and scored
Baseline = Callable[[Workbench, Sequence[Section]], Predictor]
ORACLE = "tissue-domain oracle"
SHUFFLED = "shuffled labels"
WITHOUT_IMAGE = "kriging without image"

BASELINES: dict[str, Baseline] = {
    "gene mean": lambda bench, sections: GeneMean(),
    "nearest spot": lambda bench, sections: NearestSpot(),
    WITHOUT_IMAGE: lambda bench, sections: without_image(bench),
    "colour ridge": lambda bench, sections: _colour(bench),
    ORACLE: lambda bench, sections: TissueDomains(sections, bench.config.target),
    SHUFFLED: lambda bench, sections: shuffled(bench),
}

CLUSTER_BASELINES: dict[str, Baseline] = {
    "majority class": lambda bench, sections: GeneMean(),
    "nearest spot": lambda bench, sections: NearestSpot(),
    WITHOUT_IMAGE: lambda bench, sections: without_image(bench),
    "nearest colours": lambda bench, sections: NearestColours(bench.colour),
    SHUFFLED: lambda bench, sections: shuffled(bench),
}
