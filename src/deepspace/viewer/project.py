"""What there is to look at: sections with their slides, point sets and layers."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepspace.core import keys
from deepspace.core.errors import Problems
from deepspace.core.progress import log
from deepspace.io.memory import slide_from_array
from deepspace.io.section import Section
from deepspace.io.slide import open_slide
from deepspace.output.maps import robust_limits
from deepspace.output.prediction_file import X
from deepspace.registration.stack import Place, Stack
from deepspace.viewer.columns import Column, Measured, ShownPrediction, Values
from deepspace.viewer.found import find, stack_of
from deepspace.viewer.registered import lay_over
from deepspace.viewer.tiles import TileSource

SPOTS = "spots"
PREDICTED, BOTH = "predicted", "both"
# a spot whose size nobody knows is drawn as large as Visium's
USUAL_SPOT_UM = 55.0


def opaque() -> str:
    """Identifier that tells nothing and cannot be guessed."""
    return secrets.token_urlsafe(9)


@dataclass
class PointSet:
    """Points of a section with everything that is known at them.

    Attributes
    ----------
    name : str
        ``spots``, ``between``, ``grid20``; ``measured`` for spots without a prediction.
    values : Values
        Their predictions, or their measurements.
    measured : ndarray of int, shape (points,), or None
        Row of each point among the section's measurements, -1 where it has none.
    measurements : Measured or None
    diameter_px : float
        That a point is drawn with, full-resolution pixels.
    kind : str
        ``expression`` or ``clusters``.
    """

    name: str
    values: Values
    diameter_px: float
    kind: str = "expression"
    measurements: Measured | None = None
    measured: NDArray[np.int64] | None = None
    id: str = field(default_factory=opaque)

    def __post_init__(self) -> None:
        self.genes = {str(name): k for k, name in enumerate(self.values.var.index)}

    @property
    def layers(self) -> list[str]:
        """Names of what can be shown."""
        found = []
        if X in self.values.layers:
            found += [PREDICTED]
        if self._has_measured:
            found += [keys.MEASURED]
        if len(found) == 2:
            found += [BOTH]
        found += [name for name in (keys.SD,) if name in self.values.layers]
        obs = self.values.obs
        found += [name for name in (keys.OOD, keys.CLUSTER) if name in obs]
        return found

    @property
    def _has_measured(self) -> bool:
        return keys.MEASURED in self.values.layers or self.measurements is not None

    @property
    def clusters(self) -> list[str] | None:
        """Names of the clusters that points are in."""
        if keys.CLUSTER not in self.values.obs:
            return None
        return [str(name) for name in self._labels().cat.categories]

    def _labels(self) -> pd.Series[Any]:
        return self.values.obs[keys.CLUSTER].astype("category")

    def layer(self, name: str, gene: str | None) -> Column:
        """Values of a layer at all points, shape (points,).

        Raises
        ------
        KeyError
            If there is no such layer or gene.
        """
        if name not in self.layers:
            raise KeyError(name)
        plain = {keys.CLUSTER: self._cluster_codes, keys.OOD: self._odd}
        if name in plain:
            return plain[name]()
        if gene not in self.genes:
            raise KeyError(gene)
        of_gene = {
            PREDICTED: lambda g: self.values.column(X, self.genes[g]),
            keys.SD: lambda g: self.values.column(keys.SD, self.genes[g]),
            keys.MEASURED: self._measurement,
            BOTH: self._both,
        }
        return of_gene[name](str(gene))

    def limits(self, layer: str, gene: str | None, values: Column) -> tuple[float, float]:
        """Range to show values in.

        What was measured gives the range of predictions too: on a scale of its own a prediction
        that is too flat looks right.
        """
        expression = {PREDICTED, keys.MEASURED, BOTH}
        if layer in expression and keys.MEASURED in self.layers:
            measured = self.layer(keys.MEASURED, gene)
            values = measured if np.isfinite(measured).any() else values
        return robust_limits(values.astype(np.float64))

    def _cluster_codes(self) -> Column:
        codes = self._labels().cat.codes.to_numpy(np.float32)
        return np.where(codes < 0, np.nan, codes).astype(np.float32)

    def _odd(self) -> Column:
        obs = self.values.obs
        name = keys.OOD_DISTANCE if keys.OOD_DISTANCE in obs else keys.OOD
        return obs[name].to_numpy(np.float32)

    def _measurement(self, gene: str) -> Column:
        if keys.MEASURED in self.values.layers:
            return self.values.column(keys.MEASURED, self.genes[gene])
        assert self.measurements is not None
        found = np.full(len(self.values.coords), np.nan, np.float32)
        column = self.measurements.genes.get(gene)
        if column is None or self.measured is None:
            return found
        there = self.measured >= 0
        own = self.measurements.column(keys.MEASURED, column)
        found[there] = own[self.measured[there]]
        return found

    def _both(self, gene: str) -> Column:
        """What was measured; predictions where nothing was, or where the spot failed."""
        measured, predicted = self._measurement(gene), self.layer(PREDICTED, gene)
        good = np.isfinite(measured)
        if keys.MEASURED in self.values.obs:
            good &= self.values.obs[keys.MEASURED].to_numpy(bool)
        return np.where(good, measured, predicted).astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "id": self.id,
            "name": self.name,
            "points": len(self.values.coords),
            "diameter_px": self.diameter_px,
            "layers": self.layers,
            "clusters": self.clusters,
            "kind": self.kind,
            "genes": len(self.genes),
        }


@dataclass
class ViewImage:
    """A slide that is shown."""

    name: str
    tiles: TileSource
    id: str = field(default_factory=opaque)


@dataclass
class ViewSection:
    """A section: its slide, other images, and its points."""

    name: str
    z_um: float | None
    image: ViewImage
    others: list[ViewImage]
    sets: list[PointSet]
    spots: Measured | None = None
    reliable: NDArray[np.bool_] | None = None  # which of the spots have not failed
    id: str = field(default_factory=opaque)

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        tiles = self.image.tiles
        return {
            "id": self.id,
            "name": self.name,
            "z_um": self.z_um,
            "mpp": tiles.mpp,
            "width": tiles.width,
            "height": tiles.height,
            "image": self.image.id,
            "ihc": [{"id": other.id, "name": other.name} for other in self.others],
            "sets": [one.describe() for one in self.sets],
        }


@dataclass
class Project:
    """All that a viewer shows, by opaque identifiers."""

    title: str
    sections: list[ViewSection]
    stack: Stack | None = None

    def place(self, name: str) -> Place | None:
        """Where a section lies in its block, if it was registered."""
        places = () if self.stack is None else self.stack.places
        return next((place for place in places if place.section == name), None)

    def __post_init__(self) -> None:
        self.sets = {one.id: (section, one) for section in self.sections for one in section.sets}
        self.images = {
            image.id: image
            for section in self.sections
            for image in (section.image, *section.others)
        }


def open_project(
    path: Path | str,
    *,
    sheet: Path | str | None = None,
    ihc: Mapping[str, Path | str] | None = None,
) -> Project:
    """Find what there is to look at.

    Parameters
    ----------
    path : Path or str
        Folder of ``complete``, ``demo`` or a cohort of ``predict``; one prediction; or a cohort
        sheet or section, whose slides and measurements are shown.
    sheet : Path or str, optional
        Cohort sheet with the slides; a folder of ``complete`` knows its own.
    ihc : mapping of str to Path, optional
        Stained neighbour of a section, by the section's name; shown as it lies on it.

    Raises
    ------
    InputError
        If nothing can be shown.
    """
    path = Path(path)
    files, known, folder = find(path, sheet)
    by_section: dict[str, list[ShownPrediction]] = {name: [] for name in known}
    for one in files:
        by_section.setdefault(one.section, []).append(one)
        if one.section in known:  # its slide is shown instead
            one.forget_pictures()
    sections = [
        _section(name, known.get(name), predictions) for name, predictions in by_section.items()
    ]
    _add_ihc(sections, ihc or {})
    project = Project(path.resolve().name, sections, stack_of(folder))
    for section in sections:
        place = project.place(section.name)
        if section.z_um is None and place is not None:
            section.z_um = place.z_um
    sections.sort(key=lambda s: (s.z_um is None, s.z_um or 0.0))
    return project


def _section(name: str, section: Section | None, files: Sequence[ShownPrediction]) -> ViewSection:
    if section is None:
        tiles, measured = _copy_of_slide(files[0]), None
        log.info("%s: its slide is not known, the copy in the file is shown; give --sheet", name)
    else:
        tiles = TileSource(section.slide)
        measured = None if section.counts is None else Measured(section.counts)
    sets = [_point_set(file, measured) for file in files]
    if not any(one.name == SPOTS for one in sets) and measured is not None and section is not None:
        diameter = (section.spot_diameter_um or USUAL_SPOT_UM) / (tiles.mpp or 1.0)
        rows = np.arange(len(measured.coords))
        sets.insert(0, PointSet(keys.MEASURED, measured, diameter, "expression", measured, rows))
    order = {SPOTS: 0, keys.MEASURED: 0, "between": 1}
    sets.sort(key=lambda one: order.get(one.name, 2))
    z_um = None if section is None else section.z_um
    image = ViewImage("H&E", tiles)
    return ViewSection(name, z_um, image, [], sets, measured, _reliable(sets, measured))


def _reliable(sets: list[PointSet], measured: Measured | None) -> NDArray[np.bool_] | None:
    """Which measured spots have not failed, as the prediction at the spots says."""
    if measured is None:
        return None
    good = np.ones(len(measured.coords), np.bool_)
    for one in sets:
        if one.name == SPOTS and one.measured is not None and keys.MEASURED in one.values.obs:
            there = one.measured >= 0
            worked = one.values.obs[keys.MEASURED].to_numpy(bool)
            if worked.any():  # a prediction that never saw the counts marks none
                good[one.measured[there]] = worked[there]
    return good


def _copy_of_slide(file: ShownPrediction) -> TileSource:
    """Picture inside a prediction, as large as the slide that its points lie on."""
    scale = float(file.library["scalefactors"]["tissue_hires_scalef"])
    mpp = file.library.get("metadata", {}).get("mpp")
    image = np.asarray(file.library["images"]["hires"])
    copy = slide_from_array(image, float(mpp or 1.0) / scale, file.path, "the prediction")
    return TileSource(copy, 1.0 / scale)


def _point_set(file: ShownPrediction, measured: Measured | None) -> PointSet:
    record = json.loads(file.uns[keys.UNS]["provenance"])
    rows = None
    kind = str(record.get("target", "expression"))
    if kind != "expression":
        measured = None  # counts are no probabilities of clusters
    if measured is not None:
        rows = pd.Index(measured.obs.index.astype(str)).get_indexer(file.obs.index.astype(str))
        if (rows < 0).all():
            measured = None
    return PointSet(
        name=str(record.get("at", SPOTS)).replace(":", ""),
        values=file,
        diameter_px=file.diameter_px,
        kind=kind,
        measurements=measured,
        measured=rows,
    )


def _add_ihc(sections: list[ViewSection], ihc: Mapping[str, Path | str]) -> None:
    by_name = {section.name: section for section in sections}
    problems = Problems("--ihc")
    for name, path in ihc.items():
        if name not in by_name:
            problems.add(f"{name}={path}: no such section; there are {', '.join(by_name)}")
            continue
        with problems.collect():
            tiles, fits = lay_over(name, open_slide(path), by_name[name].image.tiles)
            text = Path(path).stem if fits else f"{Path(path).stem} (not registered)"
            by_name[name].others.append(ViewImage(text, tiles))
    problems.raise_if_any()
