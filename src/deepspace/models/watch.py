"""What a model knows of its training images: usual tiles, their measures and resolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from deepspace.core.config import EncoderConfig
from deepspace.data.image_checks import Ranges
from deepspace.data.patches import PatchSpec
from deepspace.models.base import Arrays
from deepspace.models.features import FeatureExtractor
from deepspace.models.novelty import Novelty
from deepspace.models.registry import Workbench

# one field of view told odd tiles as well as two, at half the cost (decision in benchmarks)
OWN = EncoderConfig(name="stain", fov_um=(150.0,))


def _as_it_is(encoder: EncoderConfig) -> EncoderConfig:
    # normalised stains would hide another stain
    return encoder.model_copy(update={"stain_normalisation": "none"})


# encoders whose own features tell odd tiles, and cost nothing because they are computed anyway;
# features of networks are made to overlook blur and stain, so beside them `OWN` watches
SHARED: dict[str, Callable[[EncoderConfig], EncoderConfig]] = {"stain": _as_it_is}


def watching(bench: Workbench) -> FeatureExtractor:
    """Extractor of the features that tell odd tiles, for the encoder of `bench`."""
    encoder = bench.config.encoder
    shared = SHARED.get(encoder.name)
    own = OWN.model_copy(update={"sampling": encoder.sampling})
    return bench.extractor(own if shared is None else shared(encoder))


@dataclass(frozen=True)
class Watch:
    """Tells which tiles are unlike the training tiles, and why.

    Attributes
    ----------
    extractor : FeatureExtractor
        Gives the raw features that `novelty` was fitted on.
    novelty : Novelty
        Which tiles are odd.
    ranges : Ranges
        Of the measures that tell why.
    coarsest_mpp : float
        Of the training slides.
    """

    extractor: FeatureExtractor
    novelty: Novelty
    ranges: Ranges
    coarsest_mpp: float

    @property
    def spec(self) -> PatchSpec:
        """Patches that the measures are taken on."""
        return min(self.extractor.encoder.specs, key=lambda spec: spec.fov_um)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """JSON values and arrays."""
        values, arrays = self.novelty.state()
        more = {"ranges": self.ranges.state(), "coarsest_mpp": self.coarsest_mpp}
        return {**values, **more, "encoder": self.extractor.encoder.key()}, arrays

    @classmethod
    def restore(cls, values: Mapping[str, Any], arrays: Arrays, bench: Workbench) -> Self:
        """Take back what `state` gave, on a bench with the configuration of the model.

        Raises
        ------
        ValueError
            If the features would be others than those it was fitted on.
        """
        extractor = watching(bench)
        if extractor.encoder.key() != values["encoder"]:
            raise ValueError("features for odd images changed since the model was trained")
        return cls(
            extractor,
            Novelty.restore(values, arrays),
            Ranges.restore(values["ranges"]),
            float(values["coarsest_mpp"]),
        )
