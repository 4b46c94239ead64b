"""`kriging`: the image and everything that was measured around a point, in one model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from deepspace.core.config import KrigingConfig
from deepspace.core.progress import log
from deepspace.data.splits import Fold, SplitOptions, make_folds, widest_step
from deepspace.data.targets import Target
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
from deepspace.models.turns import CALIBRATION_BLOCKS, PATCHES, Turns, patches
from deepspace.registration.stack import Located, Place, Stack, block_of_section, place_of
from deepspace.registration.transform import Transform

IntArray = NDArray[np.int64]

# directions of the features that take part
FEATURES = 192
# at this correlation with the nearest spot neighbours begin to tell, and at this they fully do
FIRST_REACH, FULL_REACH = 0.01, 0.05
# blocks left out in turn where there is one section
BLOCKS = 4
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
        self.homes = [s.slide.content_hash() for s in sections]
        labels = self._labels(sections, goal)
        self.noise = np.mean([measurement_noise(s, goal, self.seed) for s in sections], axis=0)
        features = self._learn_features(sections)
        values = self._learn_basis(labels, len(goal.names))
        self.spots = self._spots(sections, goal, located, features, values)
        looked_at = patches(self.spots, PATCHES, self.seed)
        self.groups = learn_groups(self.spots, group_edges(values.shape[1]), looked_at)
        for group in self.groups:
            log.debug("kriging: components %s: %s", group.columns, group.covariance.describe())
        self.field = Field(self.spots, self.groups, self._solving())
        known = np.concatenate(labels)[:, : len(goal.names)] - self.offset
        self.calibration = self._calibrate(sections, known)
        log.info("kriging: %s", self.calibration.describe())
        return self

    def _solving(self) -> Solving:
        return Solving(self.config.exact, self.config.neighbours, self.seed)

    def _folds(self, sections: Sequence[Section]) -> list[Fold]:
        """Sections in turn, or blocks of a single one."""
        spots = min(len(s.coords) for s in sections)
        options = SplitOptions(max(2, min(BLOCKS, spots // 15)), 0.0, self.seed)
        return make_folds(sections, widest_step(sections, "section"), options)

    def _labels(self, sections: Sequence[Section], goal: Target) -> list[FloatArray]:
        """What is kriged, of every section (spots, names and others)."""
        if not self.term.apart:
            return [goal.wide.encode(s.require_counts()) for s in sections]
        labels = {s.section: goal.encode(s.require_counts()) for s in sections}
        for part in left_out(self.term.build, sections, goal, self._folds(sections)):
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
        goal: Target,
        located: Sequence[Located],
        features: Sequence[FloatArray],
        values: FloatArray,
    ) -> Spots:
        return Spots(
            block=np.concatenate(
                [np.full(len(x.xyz), self.blocks.index(x.block)) for x in located]
            ),
            places=Places(
                np.concatenate([x.xyz for x in located]),
                np.repeat(np.arange(len(sections)), [len(s.coords) for s in sections]),
            ),
            thinness=np.concatenate([goal.thinness(s.require_counts()) for s in sections]),
            features=np.concatenate(features),
            values=values,
        )

    def _home(self, slide: Slide) -> int:
        """Training section that a point of the slide belongs to, as far as the slide tells."""
        digest = slide.content_hash()
        if digest not in self.homes or (self.stack and self.stack.shared(slide)):
            return NOWHERE
        return self.homes.index(digest)

    def _calibrate(self, sections: Sequence[Section], labels: FloatArray) -> Calibration:
        """Factors of the sd from spots that are left out of the neighbours in turn."""
        looked_at = np.concatenate(patches(self.spots, CALIBRATION_BLOCKS, self.seed))
        turns = Turns.of(self.spots, np.unique(looked_at), self.seed)
        errors, sds, groups = [], [], []
        for train, out in turns:
            for rows, error, sd in self._without(train, turns.rows[out], turns.whole[out], labels):
                errors.append(error)
                sds.append(sd)
                groups.append(turns.group[np.searchsorted(turns.rows, rows)])
        if not errors:
            log.warning("kriging: sd is not calibrated: there are too few spots to leave some out")
            return Calibration.none(len(self.target.names))
        told = np.concatenate(sds)
        found = calibrate(np.concatenate(errors), told, np.concatenate(groups), self.explained())
        # the image alone is no surer than image and neighbours
        alone = self._image_variance(sections, turns.rows)
        size = np.mean((told * found.factor) ** 2, axis=0) / alone
        return replace(found, image_factor=np.sqrt(np.maximum(size, 1.0)))

    def _without(
        self, train: IntArray, test: IntArray, whole: NDArray[np.bool_], labels: FloatArray
    ) -> Iterator[tuple[IntArray, FloatArray, FloatArray]]:
        """Rows of `test`, their errors and sd (rows, names) from `train` alone, by block.

        The level of a section that is left out as a `whole` is not known, and does not tell the
        mean of the levels either.
        """
        spots = self.spots[train]
        shift, genes_shift = (
            np.zeros(values.shape[1]) if self.term.apart else _mean_level(values, spots.places.home)
            for values in (spots.values, labels[train])
        )
        field = Field(replace(spots, values=spots.values - shift), self.groups, self._solving())
        home = np.where(whole, NOWHERE, self.spots.places.home[test])
        for block in sorted(field.blocks):
            own = self.spots.block[test] == block
            if not own.any():
                continue
            rows = test[own]
            places = Places(self.spots.places.xyz[rows], home[own])
            points = Points(block, places, self.spots.features[rows])
            mean, variance, latent = self._genes(field.at(points), places.home)
            noise = (variance - latent) * self.spots.thinness[rows, None]
            yield rows, labels[rows] - genes_shift - mean, np.sqrt(latent + noise)

    def _image_variance(self, sections: Sequence[Section], rows: IntArray) -> FloatArray:
        """Mean variance that the image term tells at some of the spots, shape (names,)."""
        total, start = np.zeros(len(self.target.names)), 0
        for section in sections:
            stop = start + len(section.coords)
            own = rows[(rows >= start) & (rows < stop)] - start
            if len(own):
                # features of whole sections are at hand
                sd = self.image.predict(section.slide, section.coords).sd[own]
                total += (sd**2).sum(axis=0)
            start = stop
        return total / len(rows)

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

    def without_neighbours(self) -> Kriging:
        """The same model for which every slide lies out of reach: its image term."""
        alone = copy.copy(self)
        alone.stack = None
        return alone

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


def _blend(near: FloatArray, variance: FloatArray, sd: FloatArray) -> FloatArray:
    """Standard deviation between that of the field and that of the image term."""
    return np.where(near > 0, np.sqrt(near * variance + (1 - near) * sd**2), sd)


def _under(prefix: str, arrays: Arrays) -> Arrays:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
