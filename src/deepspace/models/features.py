"""Features at points of a slide: read patches, encode, standardise, remember."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deepspace.core.progress import counter
from deepspace.data.cache import ArrayCache
from deepspace.data.coords import reference_points
from deepspace.data.patches import READING, PatchSpec, read_patches
from deepspace.data.stain import StainNormaliser
from deepspace.data.tissue import tissue_mask
from deepspace.io.slide import Slide
from deepspace.models.allocator import freed_memory_reused
from deepspace.models.dense import compact_groups, dense_features
from deepspace.models.encoders import Encoder

FloatArray = NDArray[np.float64]

# raised when tissue mask, lattice or stain normalisation change, so that old entries rest
LATTICE = 1
# points that are encoded at once, as crops and from a map
BLOCK, DENSE_BLOCK = 512, 4096
# a feature whose spread is less than this part of the typical one is silent; the least of stain,
# VGG16 and DINOv2 on her2st and mob is 0.005
SILENT = 1e-4
# most points that are encoded for several requests at once
SHARED_POINTS = 65536


class FeatureExtractor:
    """Features of an encoder, comparable between sections.

    Parameters
    ----------
    encoder : Encoder
        Turns patches into features; one set of features per field of view, side by side.
    standardise : {"section", "none"}
        ``section``: subtract the mean and divide by the standard deviation that each feature
        has over a fixed lattice on that slide's tissue. This removes the stain shift between
        sections, and depends on the slide alone, never on the points asked for.
    stain_normalisation : {"none", "macenko"}
        Whether patches are stain-normalised first.
    cache : ArrayCache, optional
        Where features are kept between runs.
    reference_points : int
        Most points of that lattice.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        standardise: Literal["section", "none"] = "section",
        stain_normalisation: Literal["none", "macenko"] = "none",
        cache: ArrayCache | None = None,
        reference_points: int = 400,
    ) -> None:
        self.encoder = encoder
        self.standardise = standardise
        self.stain_normalisation = stain_normalisation
        self.cache = cache
        self.reference_points = reference_points
        self._known: dict[tuple[str, float], tuple[dict[bytes, int], FloatArray]] = {}
        self._stains: dict[tuple[str, float], StainNormaliser] = {}
        self._bars = True  # one a field of view, unless there is one over all blocks
        self._scales: dict[tuple[str, float], tuple[FloatArray, FloatArray]] = {}
        self._shared: dict[tuple[str, float], tuple[dict[bytes, int], FloatArray]] = {}

    def over(self, reference_points: int) -> FeatureExtractor:
        """The same features, standardised over so many points at most."""
        other = FeatureExtractor(
            self.encoder,
            standardise=self.standardise,
            stain_normalisation=self.stain_normalisation,
            cache=self.cache,
            reference_points=reference_points,
        )
        other._known = self._known
        return other

    @property
    def fov_um(self) -> float:
        """Widest field of view, in micrometres."""
        return max(spec.fov_um for spec in self.encoder.specs)

    def __call__(self, slide: Slide, coords: FloatArray) -> FloatArray:
        """Features at `coords` (points, 2), shape (points, features)."""
        if self.standardise == "none":
            return self.raw(slide, coords)
        first = self._slide_key(slide) not in self._scales and len(coords) <= self._block
        # what training shared of a slide stays
        if first and self.cache is not None and self._points_shared(self.cache, slide) is None:
            self.share(slide, coords)
        mean, spread = self._section_scale(slide)
        return (self.raw(slide, coords) - mean) / spread

    def _section_scale(self, slide: Slide) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of every feature over the slide's reference points."""
        key = self._slide_key(slide)
        if key not in self._scales:
            reference = self.raw(slide, self.lattice(slide))
            spread, size = reference.std(axis=0), np.abs(reference).max(axis=0)
            # a feature that is constant on this slide carries nothing, nor does one that varies
            # by rounding: elsewhere it would count as huge
            told = spread > 1e-6 * size
            told[told] = spread[told] > SILENT * np.median(spread[told])
            spread[~told] = np.inf
            self._scales[key] = (reference.mean(axis=0), spread)
        return self._scales[key]

    def lattice(self, slide: Slide) -> FloatArray:
        """Reference points of a slide; finding the tissue anew costs seconds on a large image."""

        def find() -> FloatArray:
            return reference_points(slide, tissue_mask(slide), at_most=self.reference_points)

        if self.cache is None:
            return find()
        recipe = {"slide": self._slide_key(slide), "lattice": [LATTICE, self.reference_points]}
        return self.cache.get(recipe, find)

    def remember(self, slide: Slide, coords: FloatArray) -> None:
        """Encode these points once; `raw` then answers for any subset of them from memory."""
        coords = np.ascontiguousarray(coords, dtype=np.float64)
        key = self._slide_key(slide)
        if key in self._known and all(p.tobytes() in self._known[key][0] for p in coords):
            return
        features = self.raw(slide, coords)
        # several sections may share a scan
        rows, known = self._known.get(key, ({}, features[:0]))
        more = {point.tobytes(): len(known) + row for row, point in enumerate(coords)}
        self._known[key] = ({**rows, **more}, np.concatenate([known, features]))

    def share(self, slide: Slide, coords: FloatArray) -> None:
        """Encode points of later requests in one pass over the slide, and keep them in the cache.

        Where features come from a map, its windows are the cost, whoever asks for the points in
        them: these and the slide's own lattice are encoded together. Later requests for any of
        them, in this process or another, are answered from there. Without a map or a cache, or
        with very many points, nothing is done.

        Parameters
        ----------
        slide : Slide
        coords : ndarray, shape (points, 2)
            What several requests will ask for: spots, places between them.
        """
        if self.cache is None or self.encoder.maps is None or len(coords) > SHARED_POINTS:
            return
        points = np.unique(np.concatenate([coords, self.lattice(slide)]), axis=0)
        if self._are_shared(self.cache, slide, points):
            return
        for block, _ in self._blocks(self.cache, slide, points):
            if not self.cache.has(self._recipe(slide, points[block])):
                return  # nothing can be kept there: each request encodes its own
        self.cache.put(self._recipe(slide, None), points)
        self._shared.pop(self._slide_key(slide), None)

    def _are_shared(self, cache: ArrayCache, slide: Slide, coords: FloatArray) -> bool:
        known = self._points_shared(cache, slide)
        if known is None or any(point.tobytes() not in known[0] for point in coords):
            return False
        blocks = compact_groups(known[1], self._block)
        return all(cache.has(self._recipe(slide, known[1][block])) for block in blocks)

    def _from_shared(
        self, cache: ArrayCache, slide: Slide, coords: FloatArray
    ) -> FloatArray | None:
        """Features of points that `share` encoded; None where one of them is not there."""
        known = self._points_shared(cache, slide)
        if known is None:
            return None
        rows, points = known
        wanted = np.array([rows.get(point.tobytes(), -1) for point in coords])
        if wanted.min(initial=0) < 0:
            return None
        features = np.empty((len(coords), self.encoder.n_features))
        for block in compact_groups(points, self._block):
            asked = np.flatnonzero(np.isin(wanted, block))
            if not len(asked):
                continue
            stored = cache.peek(self._recipe(slide, points[block]))
            if stored is None:
                return None
            features[asked] = stored[np.searchsorted(block, wanted[asked])]
        return features

    def _points_shared(
        self, cache: ArrayCache, slide: Slide
    ) -> tuple[dict[bytes, int], FloatArray] | None:
        """Points that `share` encoded, and their rows by the bytes of their coordinates."""
        key = self._slide_key(slide)
        if key not in self._shared:
            points = cache.peek(self._recipe(slide, None))
            if points is None:
                return None
            self._shared[key] = ({p.tobytes(): row for row, p in enumerate(points)}, points)
        return self._shared[key]

    def raw(self, slide: Slide, coords: FloatArray) -> FloatArray:
        """Features as the encoder gives them, shape (points, features)."""
        coords = np.ascontiguousarray(coords, dtype=np.float64)
        rows, features = self._known.get(self._slide_key(slide), ({}, np.empty((0, 0))))
        found = [rows.get(point.tobytes(), -1) for point in coords] if rows else [-1]
        if min(found, default=-1) >= 0:
            return features[found]
        if self.cache is None:
            return self._encode(slide, coords).astype(np.float64)
        shared = self._from_shared(self.cache, slide, coords)
        if shared is not None:
            return shared
        features = np.empty((len(coords), self.encoder.n_features))
        for block, values in self._blocks(self.cache, slide, coords):
            features[block] = values
        return features

    def _blocks(
        self, cache: ArrayCache, slide: Slide, coords: FloatArray
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Features block by block, each kept once it is there: a kill loses one at most."""
        blocks = compact_groups(coords, self._block)
        many = len(blocks) > 1
        with counter(len(coords), f"{self.encoder.name} features", shown=many) as bar:
            self._bars = not many
            for block in blocks:
                own = coords[block]
                yield block, cache.get(self._recipe(slide, own), partial(self._encode, slide, own))
                bar.update(len(block))
            self._bars = True

    @property
    def _block(self) -> int:
        """Most points that are encoded at once; those of a map share its windows."""
        return BLOCK if self.encoder.maps is None else DENSE_BLOCK

    def _recipe(self, slide: Slide, coords: FloatArray | None) -> dict[str, Any]:
        """What features at points depend on; without points, the list of those that are shared."""
        return {
            "slide": self._slide_key(slide),
            "encoder": self.encoder.key(),
            "device": self.encoder.device,  # features differ in the last digits
            "stain_normalisation": self.stain_normalisation,
            "versions": [READING, LATTICE],
            "coords": "shared" if coords is None else coords,
        }

    @staticmethod
    def _slide_key(slide: Slide) -> tuple[str, float]:
        return slide.content_hash(), slide.require_mpp()

    def _encode(self, slide: Slide, coords: FloatArray) -> NDArray[np.float32]:
        normaliser = None
        if self.stain_normalisation == "macenko":
            key = self._slide_key(slide)
            if key not in self._stains:
                self._stains[key] = StainNormaliser.fit(slide, tissue_mask(slide))
            normaliser = self._stains[key]
        with freed_memory_reused():
            parts = [self._encode_spec(slide, coords, s, normaliser) for s in self.encoder.specs]
        return np.concatenate(parts, axis=1)

    def _encode_spec(
        self,
        slide: Slide,
        coords: FloatArray,
        spec: PatchSpec,
        normaliser: StainNormaliser | None,
    ) -> NDArray[np.float32]:
        label, maps = f"{self.encoder.name} {spec.fov_um:g} um", self.encoder.maps
        if maps is not None:
            return dense_features(slide, coords, spec, maps, normaliser=normaliser, label=label)
        width = self.encoder.n_features // len(self.encoder.specs)
        features = np.empty((len(coords), width), dtype=np.float32)
        with counter(len(coords), label, shown=self._bars) as bar:
            for index, patches in read_patches(slide, coords, spec):
                seen = patches if normaliser is None else normaliser.apply(patches)
                features[index] = self.encoder(seen)
                bar.update(len(index))
        return features
