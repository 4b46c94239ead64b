"""Literal tables of models and baselines: a new one is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deepspace.core.config import Config, EncoderConfig
from deepspace.data.cache import ArrayCache
from deepspace.models.base import Predictor, SavablePredictor
from deepspace.models.baselines import GeneMean, NearestSpot, ShuffledProbe
from deepspace.models.encoders import load_encoder
from deepspace.models.features import FeatureExtractor
from deepspace.models.probe import Probe


@dataclass(frozen=True)
class Workbench:
    """What models are built with: configuration and a cache, extractors made once."""

    config: Config
    cache: ArrayCache | None
    extractors: dict[EncoderConfig, FeatureExtractor]

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
                weights=None if encoder.weights is None else Path(encoder.weights),
                layers=encoder.layers,
                precision=encoder.precision,
            )
            self.extractors[encoder] = FeatureExtractor(
                loaded,
                standardise=encoder.standardise,
                stain_normalisation=encoder.stain_normalisation,
                cache=self.cache,
            )
        return self.extractors[encoder]

    @property
    def colour(self) -> FeatureExtractor:
        """Mean colour over the same fields of view as the configured encoder."""
        fov_um = (self.extractor(self.config.encoder).fov_um,)
        return self.extractor(EncoderConfig(name="colour", fov_um=fov_um))


def _probe(bench: Workbench) -> Probe:
    config = bench.config
    return Probe(bench.extractor(config.encoder), config.probe, config.seed)


def _shuffled(bench: Workbench) -> Probe:
    config = bench.config
    return ShuffledProbe(bench.extractor(config.encoder), config.probe, config.seed)


def _colour(bench: Workbench) -> Probe:
    return Probe(bench.colour, bench.config.probe, bench.config.seed)


MODELS: dict[str, Callable[[Workbench], SavablePredictor]] = {
    "probe": _probe,
}

BASELINES: dict[str, Callable[[Workbench], Predictor]] = {
    "gene mean": lambda bench: GeneMean(),
    "nearest spot": lambda bench: NearestSpot(),
    "colour ridge": _colour,
    "shuffled labels": _shuffled,
}
