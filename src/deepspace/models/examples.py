"""What a network learns from: patches of several sections as one table, with their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepspace.core.progress import counter
from deepspace.data.cache import ArrayCache
from deepspace.data.coords import reference_points
from deepspace.data.patches import READING, PatchSpec, read_patches
from deepspace.data.stain import StainNormaliser
from deepspace.data.targets import Target
from deepspace.data.tissue import tissue_mask
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.models.base import FloatArray

Patches = NDArray[np.uint8]
Rows = NDArray[np.int64]

# points of a slide that its features are standardised over while the network changes
LATTICE_POINTS = 100


@dataclass(frozen=True)
class Pseudo:
    """Points without measurement, with values that a teacher gave them.

    Attributes
    ----------
    slide, coords
        Where, (n, 2) x and y in full-resolution pixels.
    values : ndarray, shape (n, names)
        In units of the target.
    weights : ndarray, shape (n,)
        What they count, beside 1 of a measured spot.
    """

    slide: Slide
    coords: FloatArray
    values: FloatArray
    weights: FloatArray


class PatchTable:
    """Patches of several sections, read as one array by row numbers.

    Parameters
    ----------
    parts
        Arrays (n, f, s, s, 3) uint8, in memory or mapped from files.
    """

    def __init__(self, parts: Sequence[Patches]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: NDArray[np.int64]) -> Patches:
        """Patches of some rows, (len(rows), f, s, s, 3)."""
        rows = np.asarray(rows)
        found = np.empty((len(rows), *self._parts[0].shape[1:]), np.uint8)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(which):
            here = which == number
            found[here] = self._parts[number][rows[here] - self._starts[number]]
        return found


class PatchReader:
    """Reads the patches of all fields of view at points of a slide.

    Parameters
    ----------
    specs
        One per field of view, of one size in pixels.
    macenko
        Whether stains are normalised.
    cache
        Where patches are kept, mapped from a file; without it they are held in memory.
    """

    def __init__(
        self, specs: Sequence[PatchSpec], *, macenko: bool, cache: ArrayCache | None
    ) -> None:
        self.specs, self.macenko, self.cache = tuple(specs), macenko, cache

    def __call__(self, slide: Slide, coords: FloatArray) -> Patches:
        """Patches (n, f, s, s, 3) uint8 at `coords` (n, 2)."""
        side = self.specs[0].size_px
        shape = (len(coords), len(self.specs), side, side, 3)
        if self.cache is None:
            held = np.empty(shape, np.uint8)
            self._fill(held, slide, coords)
            return held
        recipe = {
            "kind": f"training patches {READING}",
            "slide": slide.content_hash(),
            "mpp": slide.require_mpp(),
            "specs": [asdict(spec) for spec in self.specs],
            "macenko": self.macenko,
            "coords": np.ascontiguousarray(coords),
        }
        return self.cache.mapped(recipe, shape, np.uint8, lambda a: self._fill(a, slide, coords))

    def lattice(self, slide: Slide) -> Patches:
        """Patches at the points of a slide that its features are standardised over."""
        points = reference_points(slide, tissue_mask(slide), at_most=LATTICE_POINTS)
        return self(slide, points)

    def _fill(self, out: NDArray[Any], slide: Slide, coords: FloatArray) -> None:
        stains = StainNormaliser.fit(slide, tissue_mask(slide)) if self.macenko else None
        with counter(len(coords) * len(self.specs), f"patches of {slide.path.name}") as bar:
            for field, spec in enumerate(self.specs):
                for index, patches in read_patches(slide, coords, spec):
                    out[index, field] = patches if stains is None else stains.apply(patches)
                    bar.update(len(index))


@dataclass(frozen=True)
class Material:
    """Patches and values of everything that is learnt from; measured spots come first.

    Attributes
    ----------
    patches : PatchTable
        n rows (f, s, s, 3).
    values : ndarray, shape (n, names)
        In units of the target.
    section : ndarray, shape (n,)
        Number of the slide, position in `lattices`.
    weights : ndarray, shape (n,)
        1 for measured spots.
    measured : int
        How many rows are measured spots.
    lattices : tuple
        Per slide the patches that its features are standardised over.
    identity : dict
        All of this in short, for the key of checkpoints.
    """

    patches: PatchTable
    values: FloatArray
    section: Rows
    weights: FloatArray
    measured: int
    lattices: tuple[Patches, ...]
    identity: dict[str, Any]

    @classmethod
    def of(
        cls,
        sections: Sequence[Section],
        target: Target,
        reader: PatchReader,
        pseudo: Sequence[Pseudo],
    ) -> Material:
        """Read the patches of measured spots and of pseudo-labelled points."""
        slides = [s.slide for s in sections]
        numbers = {slide.content_hash(): k for k, slide in reversed(list(enumerate(slides)))}
        for extra in pseudo:
            if extra.slide.content_hash() not in numbers:
                numbers[extra.slide.content_hash()] = len(slides)
                slides.append(extra.slide)
        values = [target.encode(s.require_counts()) for s in sections]
        places = [(s.slide, s.coords) for s in sections] + [(p.slide, p.coords) for p in pseudo]
        section = [np.full(len(v), k) for k, v in enumerate(values)]
        section += [np.full(len(p.coords), numbers[p.slide.content_hash()]) for p in pseudo]
        measured = sum(len(v) for v in values)
        weights = np.concatenate([np.ones(measured), *(p.weights for p in pseudo)])
        values += [p.values for p in pseudo]
        return cls(
            PatchTable([reader(slide, coords) for slide, coords in places]),
            np.concatenate(values),
            np.concatenate(section).astype(np.int64),
            weights,
            measured,
            tuple(reader.lattice(slide) for slide in slides),
            {
                "slides": [[s.content_hash(), s.require_mpp()] for s, _ in places],
                "coords": [np.ascontiguousarray(coords) for _, coords in places],
            },
        )

    def rows(self, sections: Sequence[Section], masks: Mapping[str, NDArray[np.bool_]]) -> Rows:
        """Rows of the measured spots that `masks` choose in each section."""
        whole = [masks.get(s.section, np.zeros(len(s.coords), dtype=np.bool_)) for s in sections]
        return np.flatnonzero(np.concatenate(whole))
