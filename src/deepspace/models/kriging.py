"""`kriging`: the image and everything that was measured around a point, in one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from deepspace.core.config import KrigingConfig
from deepspace.core.progress import log
from deepspace.data.splits import Fold, SplitOptions, make_folds, widest_step
from deepspace.data.targets import Target
from deepspace.data.transforms import total_counts
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.models.base import Arrays, FloatArray, Prediction, SavablePredictor, learnable
from deepspace.models.calibration import Calibration, calibrate, left_out
from deepspace.models.covariance import Covariance
from deepspace.models.field import (
    Estimate,
    Field,
    Group,
    Points,
    Solving,
    Spots,
    group_edges,
    learn_groups,
    principal_directions,
)
from deepspace.models.neighbours import NOWHERE, Places
from deepspace.models.probe import Extractor, level_variance, measurement_noise
from deepspace.registration.stack import Located, Place, Stack, block_of_section, place_of
from deepspace.registration.transform import Transform

IntArray = NDArray[np.int64]

# directions of the features that take part
FEATURES = 192
# spots of a part of the likelihood, and most parts
PATCH, PATCHES = 600, 3
# at this correlation with the nearest spot neighbours begin to tell, and at this they fully do
FIRST_REACH, FULL_REACH = 0.01, 0.05
# blocks left out in turn where there is one section
BLOCKS = 4
# sections or blocks that are left out for the calibration
CALIBRATION_FOLDS = 6
# least share of the variance of a measurement that is left for what is measured itself
LEAST_LATENT = 0.05
ARRAYS = ("offset", "between", "basis", "leftover", "noise", "x_mean", "projection")


@dataclass(frozen=True)
class ImageTerm:
    """What kriging takes from the image.

    Attributes
    ----------
    build : callable
        Makes the predictor that stands where nothing was measured around.
    extractor : Extractor, optional
        Its features, if it is linear in features that are not learnt: they are then weighed
        together with the neighbours. Without, the neighbours tell what the predictor leaves
        when it is fitted without their section.
    constant : bool
        The image tells nothing; without an extractor, nothing is left out either.
    """

    build: Callable[[], SavablePredictor]
    extractor: Extractor | None = None
    constant: bool = False

    @property
    def apart(self) -> bool:
        """Whether the neighbours are learnt on what the image leaves."""
        return self.extractor is None and not self.constant


@dataclass(frozen=True)
class _Labels:
    """What is kriged of each spot (spots, names), less the offset, and its thinness (spots,)."""

    values: FloatArray
    thinness: FloatArray


class Kriging:
    """Image term plus a Gaussian process over place and depth.

    Genes are kriged as principal components, grouped by how much they vary; each group has a
    covariance of its own, learnt by marginal likelihood (`Covariance`). Where the image term is
    linear in fixed features these are part of it, so that image and neighbours are weighed
    against each other (universal kriging; Cressie, Statistics for Spatial Data, 1993, ch. 3.4);
    otherwise the residuals of left-out sections are kriged (regression kriging).

    Where nothing measured is in reach (`FIRST_REACH`), and on slides that are not in the stack,
    the prediction is that of the image term.

    Parameters
    ----------
    image : ImageTerm
        What the image tells.
    stack : Stack, optional
        Where the sections lie. Without, every section is alone.
    config : KrigingConfig
        Sizes.
    seed : int
        Of blocks, of the order of the spots and of the noise estimate.
    """

    def __init__(
        self, image: ImageTerm, stack: Stack | None, config: KrigingConfig, seed: int = 0
    ) -> None:
        self.term = image
        self.stack = stack
        self.config = config
        self.seed = seed

    def fit(self, sections: Sequence[Section], target: Target) -> Self:
        """Fit the image term, then what the neighbours add."""
        self.target = target
        self.image = self.term.build().fit(sections, target)
        sections, goal = learnable(sections, target)
        self.stack = _with_all(self.stack, sections)
        places = [self.stack.locate(s.slide, s.coords) for s in sections]
        located = [found for found in places if found is not None]  # `_with_all` left none out
        self.blocks = list(dict.fromkeys(found.block for found in located))
        self.homes = list(dict.fromkeys(s.slide.content_hash() for s in sections))
        folds = self._folds(sections)
        labels = self._labels(sections, goal, folds)
        self.noise = np.mean([measurement_noise(s, goal, self.seed) for s in sections], axis=0)
        features = self._learn_features(sections)
        values = self._learn_basis(labels, len(goal.names))
        self.spots = self._spots(sections, located, features, values)
        self.groups = learn_groups(self.spots, group_edges(values.shape[1]), self._patches())
        for group in self.groups:
            log.debug("kriging: components %s: %s", group.columns, group.covariance.describe())
        self.field = Field(self.spots, self.groups, self._solving())
        thinness = np.concatenate([goal.thinness(s.require_counts()) for s in sections])
        known = np.concatenate(labels)[:, : len(goal.names)] - self.offset
        self.calibration = self._calibrate(sections, folds, _Labels(known, thinness))
        log.info("kriging: %s", self.calibration.describe())
        return self

    def _solving(self) -> Solving:
        return Solving(self.config.exact, self.config.neighbours, self.seed)

    def _folds(self, sections: Sequence[Section]) -> list[Fold]:
        """Sections in turn, or blocks of a single one."""
        spots = min(len(s.coords) for s in sections)
        options = SplitOptions(max(2, min(BLOCKS, spots // 15)), 0.0, self.seed)
        return make_folds(sections, widest_step(sections, "section"), options)

    def _labels(
        self, sections: Sequence[Section], goal: Target, folds: Sequence[Fold]
    ) -> list[FloatArray]:
        """What is kriged, of every section (spots, names and others)."""
        if not self.term.apart:
            return [goal.wide.encode(s.require_counts()) for s in sections]
        labels = {s.section: goal.encode(s.require_counts()) for s in sections}
        for part in left_out(self.term.build, sections, goal, folds):
            labels[part.section.section][part.rows] -= part.prediction.mean
        return [labels[s.section] for s in sections]

    def _learn_features(self, sections: Sequence[Section]) -> list[FloatArray]:
        """Leading directions of the features, of unit mean squared norm."""
        if self.term.extractor is None:
            self.x_mean, self.projection = np.zeros(0), np.zeros((0, 0))
            return [np.zeros((len(s.coords), 0)) for s in sections]
        X = [self.term.extractor(s.slide, s.coords) for s in sections]
        self.x_mean = np.mean([x.mean(axis=0) for x in X], axis=0)
        centred = np.concatenate([x - x.mean(axis=0) for x in X])
        directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :FEATURES]
        size = np.sqrt(np.mean(((centred @ directions) ** 2).sum(axis=1)))
        self.projection = directions / max(float(size), 1e-12)
        return [(x - self.x_mean) @ self.projection for x in X]

    def _learn_basis(self, labels: Sequence[FloatArray], names: int) -> FloatArray:
        """Principal components of the labels within sections; values of all spots in them."""
        levels = np.stack([y.mean(axis=0) for y in labels])
        offset = np.zeros_like(levels[0]) if self.term.apart else levels.mean(axis=0)
        centred = np.concatenate([y - y.mean(axis=0) for y in labels])
        most = min(self.config.components, len(centred) - len(labels), centred.shape[1])
        basis = principal_directions(centred, most, self.seed)
        self.offset, self.basis = offset[:names], basis[:names]
        self.between = level_variance(levels)[:names]
        left = centred[:, :names] - (centred @ basis) @ self.basis.T
        self.leftover = (left**2).mean(axis=0)
        return np.concatenate([(y - offset) @ basis for y in labels])

    def _spots(
        self,
        sections: Sequence[Section],
        located: Sequence[Located],
        features: Sequence[FloatArray],
        values: FloatArray,
    ) -> Spots:
        depths = [total_counts(s.require_counts()) for s in sections]
        typical = float(np.median(np.concatenate(depths)))
        return Spots(
            block=np.concatenate(
                [np.full(len(x.xyz), self.blocks.index(x.block)) for x in located]
            ),
            places=Places(
                np.concatenate([x.xyz for x in located]),
                np.concatenate([np.full(len(s.coords), self._home(s.slide)) for s in sections]),
            ),
            thinness=typical / np.maximum(np.concatenate(depths), 1.0),
            features=np.concatenate(features),
            values=values,
        )

    def _home(self, slide: Slide) -> int:
        digest = slide.content_hash()
        return self.homes.index(digest) if digest in self.homes else NOWHERE

    def _patches(self) -> list[IntArray]:
        """Spots around a few centres, that the likelihood looks at; all of a small block."""
        rng = np.random.default_rng(self.seed)
        found = []
        for block in np.unique(self.spots.block):
            rows = np.flatnonzero(self.spots.block == block)
            if len(rows) <= PATCH:
                found.append(rows)
                continue
            xy = self.spots.places.xyz[rows, :2]
            for centre in rng.choice(len(rows), PATCHES, replace=False):
                near = np.argsort(((xy - xy[centre]) ** 2).sum(axis=1), kind="stable")
                found.append(np.sort(rows[near[:PATCH]]))
        if len(found) > PATCHES:
            found = [found[k] for k in np.sort(rng.choice(len(found), PATCHES, replace=False))]
        return found

    def _calibrate(
        self, sections: Sequence[Section], folds: Sequence[Fold], labelled: _Labels
    ) -> Calibration:
        """Factors of the sd from spots left out of the neighbours, among those of the patches."""
        ends = np.cumsum([0, *(len(s.coords) for s in sections)])
        start = {s.section: int(k) for s, k in zip(sections, ends, strict=False)}
        looked_at = np.unique(np.concatenate(self._patches()))
        whole = widest_step(sections, "section") == "section"
        errors, sds, numbers = [], [], []
        for number, fold in enumerate(folds[:CALIBRATION_FOLDS]):
            train, test = (
                np.intersect1d(_rows(masks, start), looked_at) for masks in (fold.train, fold.test)
            )
            if not len(train):
                continue
            for error, sd in self._without(train, test, labelled, whole=whole):
                errors.append(error)
                sds.append(sd)
                numbers.append(np.full(len(error), number))
        if not sum(len(part) for part in errors):
            return Calibration.none(len(self.target.names))
        told = np.concatenate(sds)
        by = self.explained()
        found = calibrate(np.concatenate(errors), told, np.concatenate(numbers), by)
        alone = [
            self.image.predict(s.slide, s.coords[own]).sd
            for s, k in zip(sections, ends, strict=False)
            if len(own := looked_at[(looked_at >= k) & (looked_at < k + len(s.coords))] - k)
        ]
        size = np.mean((told * found.factor) ** 2, axis=0) / np.mean(np.concatenate(alone) ** 2, 0)
        # the image alone is no surer than image and neighbours
        return replace(found, image_factor=np.sqrt(np.maximum(size, 1.0)))

    def _without(
        self, train: IntArray, test: IntArray, labelled: _Labels, *, whole: bool
    ) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Errors and sd (spots, names) of `test` from `train` alone, for every block.

        `whole` sections are left out: their level is not known, and does not tell the mean of the
        levels either.
        """
        spots = self.spots[train]
        shift, genes_shift = (
            np.zeros(values.shape[1]) if self.term.apart else _mean_level(values, spots.places.home)
            for values in (spots.values, labelled.values[train])
        )
        field = Field(replace(spots, values=spots.values - shift), self.groups, self._solving())
        for block in field.blocks:
            rows = test[self.spots.block[test] == block]
            places = self.spots.places[rows]
            if whole:
                places = Places(places.xyz, np.full(len(rows), NOWHERE))
            points = Points(block, places, self.spots.features[rows])
            mean, variance, latent = self._genes(field.at(points), places.home)
            noise = (variance - latent) * labelled.thinness[rows, None]
            yield labelled.values[rows] - genes_shift - mean, np.sqrt(latent + noise)

    def explained(self) -> FloatArray:
        """Share of each gene's variance that varies over the tissue, shape (names,)."""
        share = np.concatenate([g.covariance.sill * g.scale**2 for g in self.groups])
        rest = (self.basis**2) @ self._component_noise() + self.leftover
        told: FloatArray = (self.basis**2) @ share
        return np.asarray(told / np.maximum(told + rest, 1e-12))

    def _component_noise(self) -> FloatArray:
        """Noise variance of every component at a spot of typical depth."""
        one = np.ones(1)
        noise = [g.covariance.noise(one) * g.scale**2 for g in self.groups]
        return np.concatenate(noise)

    def _genes(self, found: Estimate, home: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Components to genes: mean, variance of a measurement, and of what is measured."""
        squares = (self.basis**2).T
        told = found.variance @ squares
        told += np.where((home == NOWHERE)[:, None], self.between, 0.0)
        variance = told + self._component_noise() @ squares + self.leftover
        latent = np.maximum(variance - self.noise, LEAST_LATENT * variance)
        return found.mean @ self.basis.T, variance, latent

    def predict(self, slide: Slide, coords: FloatArray) -> Prediction:
        """Predict at `coords`, shape (points, 2)."""
        home = np.full(len(coords), self._home(slide))
        return self._predict(slide, coords, None, home)

    def predict_at_depth(self, slide: Slide, coords: FloatArray, z_um: float) -> Prediction:
        """Predict as if the points of a slide lay at depth `z_um`, at no section's level."""
        return self._predict(slide, coords, z_um, np.full(len(coords), NOWHERE))

    def _predict(
        self, slide: Slide, coords: FloatArray, z_um: float | None, home: IntArray
    ) -> Prediction:
        image = self.image.predict(slide, coords)
        wide = self.calibration.image_factor
        image = replace(image, sd=image.sd * wide, sd_latent=image.sd_latent * wide)
        located = self.stack.locate(slide, coords) if self.stack else None
        if located is None or located.block not in self.blocks or not len(coords):
            return image
        xyz = located.xyz.copy()
        if z_um is not None:
            xyz[:, 2] = z_um
        features = np.zeros((len(coords), 0))
        if self.term.extractor is not None:
            features = (self.term.extractor(slide, coords) - self.x_mean) @ self.projection
        points = Points(self.blocks.index(located.block), Places(xyz, home), features)
        found = self.field.at(points)
        mean, variance, latent = self._genes(found, home)
        mean = mean + (image.mean if self.term.apart else self.offset)
        near = np.clip((found.reach - FIRST_REACH) / (FULL_REACH - FIRST_REACH), 0.0, 1.0)[:, None]
        factor = self.calibration.factor**2
        return Prediction(
            mean=np.where(near > 0, near * mean + (1 - near) * image.mean, image.mean),
            sd=_blend(near, variance * factor, image.sd),
            sd_latent=_blend(near, latent * factor, image.sd_latent),
            ood=image.ood,
        )

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Fitted state: JSON values and arrays."""
        image, arrays = self.image.state()
        arrays = {f"image.{name}": array for name, array in arrays.items()}
        stack, own = (self.stack or Stack(())).state()
        arrays |= {f"stack.{name}": array for name, array in own.items()}
        arrays |= {name: getattr(self, name) for name in ARRAYS}
        arrays |= {
            "xyz": self.spots.places.xyz,
            "home": self.spots.places.home,
            "block": self.spots.block,
            "thinness": self.spots.thinness,
            "features": self.spots.features.astype(np.float32),
            "values": self.spots.values.astype(np.float32),
            "scale": np.concatenate([g.scale for g in self.groups]),
            "covariance": np.stack([g.covariance.log for g in self.groups]),
            "factor": self.calibration.factor,
            "image_factor": self.calibration.image_factor,
        }
        values = {
            "image": image,
            "stack": stack,
            "blocks": self.blocks,
            "homes": self.homes,
            "edges": [0, *(g.columns.stop for g in self.groups)],
            "covariance": [g.covariance.describe() for g in self.groups],
            "calibrated_on": self.calibration.held_out,
        }
        return values, arrays

    def restore(self, target: Target, values: Mapping[str, Any], arrays: Arrays) -> Self:
        """Take back what `state` gave."""
        self.target = target
        self.image = self.term.build().restore(target, values["image"], _under("image.", arrays))
        self.stack = Stack.restore(values["stack"], _under("stack.", arrays))
        self.blocks, self.homes = list(values["blocks"]), list(values["homes"])
        for name in ARRAYS:
            setattr(self, name, arrays[name])
        self.spots = Spots(
            block=arrays["block"],
            places=Places(arrays["xyz"], arrays["home"]),
            thinness=arrays["thinness"],
            features=arrays["features"].astype(np.float64),
            values=arrays["values"].astype(np.float64),
        )
        edges = values["edges"]
        self.groups = [
            Group(slice(start, stop), arrays["scale"][start:stop], Covariance(log))
            for start, stop, log in zip(edges[:-1], edges[1:], arrays["covariance"], strict=True)
        ]
        self.calibration = Calibration(
            arrays["factor"], values["calibrated_on"], arrays["image_factor"]
        )
        self.field = Field(self.spots, self.groups, self._solving())
        return self


def _with_all(stack: Stack | None, sections: Sequence[Section]) -> Stack:
    """The stack, and sections that it does not hold alone."""
    places: tuple[Place, ...] = () if stack is None else stack.places
    known = {place.slide_sha256 for place in places}
    alone = [
        place_of(s, Transform.identity(), block_of_section(s))
        for s in sections
        if s.slide.content_hash() not in known
    ]
    return Stack((*places, *alone))


def _mean_level(values: FloatArray, home: IntArray) -> FloatArray:
    """Mean over sections of their mean values, shape (columns,)."""
    level: FloatArray = np.mean([values[home == k].mean(axis=0) for k in np.unique(home)], axis=0)
    return level


def _rows(masks: Mapping[str, NDArray[np.bool_]], start: Mapping[str, int]) -> IntArray:
    found = [np.flatnonzero(mask) + start[name] for name, mask in masks.items()]
    return np.sort(np.concatenate(found)).astype(np.int64)


def _blend(near: FloatArray, variance: FloatArray, sd: FloatArray) -> FloatArray:
    """Standard deviation between that of the field and that of the image term."""
    return np.where(near > 0, np.sqrt(near * variance + (1 - near) * sd**2), sd)


def _under(prefix: str, arrays: Arrays) -> Arrays:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
