"""The image term of a model, opened: what it sees of a tile, and what it makes of other tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from deepspace.core.errors import InputError
from deepspace.data.patches import PatchSpec, read_patch
from deepspace.data.stain import StainNormaliser
from deepspace.data.targets import Target
from deepspace.data.tissue import tissue_mask
from deepspace.io.slide import Slide
from deepspace.io.source import Image
from deepspace.models.base import FloatArray, Predictor
from deepspace.models.cnn import CNN
from deepspace.models.features import FeatureExtractor
from deepspace.models.kriging import Kriging
from deepspace.models.losses import LOSSES
from deepspace.models.probe import Probe

# a patch (s, s, 3) for each field of view
Tile = list[Image]


class Sight(FeatureExtractor):
    """Features of patches that were changed, standardised by the slide as it is."""

    @classmethod
    def of(cls, extractor: FeatureExtractor) -> Sight:
        """The same features as `extractor` gives."""
        sight = cls(
            extractor.encoder,
            standardise=extractor.standardise,
            stain_normalisation=extractor.stain_normalisation,
            cache=extractor.cache,
            reference_points=extractor.reference_points,
        )
        sight._known, sight._scales = extractor._known, extractor._scales
        return sight

    @property
    def specs(self) -> tuple[PatchSpec, ...]:
        """Fields of view."""
        return self.encoder.specs

    def tile(self, slide: Slide, point: FloatArray) -> Tile:
        """What the encoder sees around a point (2,)."""
        patches = [read_patch(slide, float(point[0]), float(point[1]), s) for s in self.specs]
        if self.stain_normalisation == "none":
            return patches
        key = self._slide_key(slide)
        if key not in self._stains:
            self._stains[key] = StainNormaliser.fit(slide, tissue_mask(slide))
        return [self._stains[key].apply(patch[None])[0] for patch in patches]

    def scale(self, slide: Slide) -> tuple[FloatArray, FloatArray]:
        """What features are standardised by on this slide: centre and spread."""
        if self.standardise == "none":
            return np.zeros(self.encoder.n_features), np.ones(self.encoder.n_features)
        return self._section_scale(slide)


@dataclass(frozen=True)
class ImageModel:
    """Image term of a model, opened.

    Attributes
    ----------
    term : Probe or CNN
        The predictor of which it is.
    sight : Sight
        Its features.
    values : callable
        From standardised features (n, features) to values of the target (n, names).
    """

    term: Probe | CNN
    sight: Sight
    values: Callable[[FloatArray], FloatArray]

    @property
    def target(self) -> Target:
        """What it predicts."""
        return self.term.target

    def decoded(self, slide: Slide, raw: FloatArray) -> FloatArray:
        """Prediction (n, names) as it is given to users, from features as encoded (n, features)."""
        mean, spread = self.sight.scale(slide)
        return self.target.decode(self.values((raw - mean) / spread))


def _values_of_probe(probe: Probe) -> Callable[[FloatArray], FloatArray]:
    return lambda X: probe.y_mean + (X - probe.x_mean) @ probe.coefficients


def _values_of_cnn(cnn: CNN) -> Callable[[FloatArray], FloatArray]:
    names = len(cnn.target.names)
    activate = LOSSES[cnn.target.loss].activate

    def values(X: FloatArray) -> FloatArray:
        outputs = torch.from_numpy(X @ cnn.weights[:names].T + cnn.bias[:names])
        found: FloatArray = activate(outputs).numpy().astype(np.float64)
        return cnn.scaling.offset[:names] + found * cnn.scaling.spread[:names]

    return values


def open_model(predictor: Predictor) -> ImageModel:
    """Image term of a predictor; of `kriging` what it takes from the image alone.

    Raises
    ------
    InputError
        If the predictor does not look at the image.
    """
    term = predictor.image if isinstance(predictor, Kriging) else predictor
    if isinstance(term, Probe) and isinstance(term.extractor, FeatureExtractor):
        return ImageModel(term, Sight.of(term.extractor), _values_of_probe(term))
    if isinstance(term, CNN):
        return ImageModel(term, Sight.of(term.extractor), _values_of_cnn(term))
    raise InputError(
        "this model does not look at the image, so there is nothing to explain; train one with "
        "--model probe, cnn or kriging with an image term"
    )
