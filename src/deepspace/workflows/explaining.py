"""Which tiles of a section are explained, and what is found of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.core.progress import log
from deepspace.data.tissue import tissue_mask
from deepspace.io.section import Section
from deepspace.models.attribution import (
    METHODS,
    Attribution,
    Settings,
    choose_methods,
    feature_group,
    window_side,
)
from deepspace.models.base import SavablePredictor
from deepspace.models.image_term import ImageModel, open_model
from deepspace.models.kriging import Kriging
from deepspace.models.probe import Probe
from deepspace.models.store import GeneCard, ModelCard
from deepspace.models.watch import Watch
from deepspace.workflows.figures import UNITS
from deepspace.workflows.novelty import check_points
from deepspace.workflows.points import points_at

FloatArray = NDArray[np.float64]

# more do not fit on a picture
MOST_GENES, MOST_POINTS = 20, 6
# grid where a section has no spots, micrometres
STRIDE_UM = 100.0

NEIGHBOURS = (
    "explained is the image term, which is what the model predicts far from measured spots; what "
    "neighbours add near them is not in the tile"
)


@dataclass(frozen=True)
class ExplainOptions:
    """Which tiles are explained, and how.

    Attributes
    ----------
    points : int
        Tiles a gene, from the highest to the lowest prediction, evenly by rank.
    at : sequence of (x, y)
        Tiles at these places instead, full-resolution pixels.
    methods : sequence of str
        Keys of `METHODS`; left out, the usual ones of the model.
    settings : Settings
        Of the maps.
    overlay : bool
        Contributions of feature groups at every spot of the section as well.
    weights : Path, optional
        Encoder weights, when they are not where they were at training.
    device : str, optional
        Where networks run, ``cpu``, ``cuda`` or ``auto``; left out, as at training.
    """

    points: int = 3
    at: Sequence[tuple[float, float]] = ()
    methods: Sequence[str] = ()
    settings: Settings = field(default_factory=Settings)
    overlay: bool = False
    weights: Path | None = None
    device: str | None = None


@dataclass(frozen=True)
class Explanation:
    """What `explain` found.

    Attributes
    ----------
    cases : DataFrame
        A row for each gene and tile: where it is, what is predicted, and for each method the
        prediction that it is compared with and what is missing of the sum.
    maps : dict
        For each method that makes maps an array (cases, n, n) over the widest field of view.
    features : DataFrame
        A row for each case and feature with its contribution; empty without that method.
    overlay : DataFrame
        A row for each spot, gene and feature group; empty unless asked for.
    record : dict
        Provenance.
    """

    cases: pd.DataFrame
    maps: dict[str, FloatArray]
    features: pd.DataFrame
    overlay: pd.DataFrame
    record: dict[str, Any]

    def groups(self) -> pd.DataFrame:
        """Contributions summed over groups of features, a row for each case and group."""
        names = ["case", "gene", "tile", "field", "group"]
        return self.features.groupby(names, sort=False)["contribution"].sum().reset_index()

    def summary(self) -> dict[str, Any]:
        """What was found, in plain values: a row for each gene and tile."""
        rows = []
        groups = self.groups() if len(self.features) else None
        for case in self.cases.to_dict("records"):
            row = {str(k): case[k] for k in ("gene", "tile", "point", "x", "y", "predicted")}
            if groups is not None:
                own = groups[groups["case"] == case["case"]]
                sums = own.groupby("group", sort=False)["contribution"].sum()
                row["contributions"] = {str(k): float(v) for k, v in sums.items()}
            rows.append(row)
        return {
            "section": self.record["section"],
            "methods": list(self.record["methods"]),
            "notes": self.record["notes"],
            "tiles": rows,
        }


@dataclass(frozen=True)
class Job:
    """All that is needed to explain: model, section, columns, methods."""

    model: ImageModel
    card: ModelCard
    watch: Watch
    section: Section
    columns: list[int]
    methods: list[str]
    options: ExplainOptions
    notes: list[str]

    @classmethod
    def of(
        cls,
        opened: tuple[SavablePredictor, ModelCard, Watch],
        section: Section,
        genes: Sequence[str],
        options: ExplainOptions,
    ) -> Job:
        """Check what was asked for against the model."""
        predictor, card, watch = opened
        model = open_model(predictor)
        columns = _columns(card, list(dict.fromkeys(genes)))
        methods = choose_methods(model, options.methods)
        window_side(model.sight, options.settings)
        if options.overlay and not isinstance(model.term, Probe):
            raise InputError("--overlay: it shows contributions, and only the model probe has them")
        notes = [NEIGHBOURS] if isinstance(predictor, Kriging) else []
        notes += [
            f"{c.name}: held-out data do not tell its prediction from chance, so what drives it "
            "explains the model and not the tissue"
            for c in (card.columns[k] for k in columns)
            if c.verdict == "no"
        ]
        for note in notes:
            log.info("note: %s", note)
        return cls(model, card, watch, section, columns, methods, options, notes)

    @property
    def unit(self) -> str:
        """Unit of the predictions."""
        return "log1p CP10k" if self.card.kind == "expression" else "probability"

    @property
    def inner_unit(self) -> str:
        """Unit of what adds up: that of the target, which may be another."""
        if self.card.kind != "expression":
            return "probability"
        return UNITS[self.card.target["transform"]]

    def unit_of(self, method: str) -> str:
        """Unit of the values of a method."""
        return self.inner_unit if METHODS[method].adds_up else self.unit

    def gene(self, column: int) -> GeneCard:
        """Card of a column."""
        return self.card.columns[column]

    def run(self, record: dict[str, Any]) -> Explanation:
        """Explain every case."""
        cases = self._cases()
        found = {name: self._attributions(cases, name) for name in self.methods}
        for name, parts in found.items():
            cases[f"{name}_reference"] = [part.reference[0] for part in parts]
            if METHODS[name].adds_up:
                cases[f"{name}_gap"] = [part.gap[0] for part in parts]
        maps = {
            name: np.concatenate([part.values for part in parts])
            for name, parts in found.items()
            if METHODS[name].is_map
        }
        tables = [self._features(cases, p) for n, p in found.items() if not METHODS[n].is_map]
        features = pd.concat(tables) if tables else pd.DataFrame()
        overlay = self._overlay() if self.options.overlay else pd.DataFrame()
        return Explanation(cases, maps, features, overlay, record | self._settings(maps))

    def _settings(self, maps: dict[str, FloatArray]) -> dict[str, Any]:
        """What of the provenance is of this command alone."""
        settings = self.options.settings
        sight = self.model.sight
        return {
            "command": "explain",
            "genes": [self.gene(k).name for k in self.columns],
            "methods": {name: {"unit": self.unit_of(name)} for name in self.methods},
            "settings": asdict(settings) | {"window_um": window_side(sight, settings)},
            "fields_um": [spec.fov_um for spec in sight.specs],
            "cell_um": {name: sight.fov_um / m.shape[-1] for name, m in maps.items()},
            "image_term": type(self.model.term).__name__.lower(),
            "notes": self.notes,
        }

    def _candidates(self) -> tuple[FloatArray, list[str]]:
        """Points that tiles are chosen from: spots, or a lattice; coordinates and names."""
        if self.section.spots is None and self.section.counts is None:
            found = points_at(self.section, f"grid:{STRIDE_UM:g}")
        else:
            found = points_at(self.section, "spots")
        return found.coords, [str(name) for name in found.obs.index]

    def _cases(self) -> pd.DataFrame:
        """A row for each gene and tile."""
        rows = self._given() if self.options.at else self._ranked()
        cases = pd.DataFrame(rows, columns=["column", "tile", "point", "x", "y", "predicted"])
        cases.insert(0, "gene", [self.gene(k).name for k in cases["column"]])
        cases.insert(0, "case", np.arange(len(cases)))
        return cases

    def _given(self) -> list[tuple[Any, ...]]:
        """The places asked for, the same for every gene."""
        coords = np.array(self.options.at, np.float64)
        slide = self.section.slide
        inside = (coords >= 0).all(axis=1) & (coords < [slide.width, slide.height]).all(axis=1)
        if not inside.all():
            x, y = coords[~inside][0]
            raise InputError(
                f"--at {x:g},{y:g}: outside {slide.path.name}, which has {slide.width} x "
                f"{slide.height} px; give x,y in its full-resolution pixels"
            )
        if not tissue_mask(slide).contains(coords).all():
            log.info("note: some of the places given are not on tissue")
        values = self._predict(coords)
        return [
            (column, f"{x:g}, {y:g}", "", x, y, values[k, column])
            for column in self.columns
            for k, (x, y) in enumerate(coords)
        ]

    def _ranked(self) -> list[tuple[Any, ...]]:
        """Tiles from the highest to the lowest prediction of each gene."""
        coords, names = self._candidates()
        values = self._predict(coords)
        odd = check_points(self.watch, self.section.slide, coords)[keys.OOD].to_numpy(dtype=bool)
        usable = np.flatnonzero(~odd) if not odd.all() else np.arange(len(coords))
        rows: list[tuple[Any, ...]] = []
        for column in self.columns:
            order = usable[np.argsort(-values[usable, column], kind="stable")]
            count = min(self.options.points, len(order))
            ranks = np.linspace(0, len(order) - 1, count).round().astype(int)
            for rank, label in zip(ranks, rank_labels(ranks, len(order)), strict=True):
                k = order[rank]
                rows.append((column, label, names[k], *coords[k], values[k, column]))
        return rows

    def _predict(self, coords: FloatArray) -> FloatArray:
        """What the image term predicts, shape (points, names)."""
        found = self.model.term.predict(self.section.slide, coords)
        return self.model.target.decode(found.mean)

    def _attributions(self, cases: pd.DataFrame, method: str) -> list[Attribution]:
        """One for each case; a tile that several genes share is looked at once."""
        found: dict[int, Attribution] = {}
        tiles = cases.groupby(["x", "y"], sort=False)
        for number, ((x, y), part) in enumerate(tiles, start=1):
            if METHODS[method].is_map:
                log.info("%s: tile %d of %d", method, number, tiles.ngroups)
            point = np.array([x, y], np.float64)
            columns = [int(k) for k in part["column"]]
            values = METHODS[method].explain(
                self.model, self.section.slide, point, columns, self.options.settings
            )
            for row, case in enumerate(part["case"]):
                own = slice(row, row + 1)
                found[int(case)] = Attribution(
                    values.values[own], values.predicted[own], values.reference[own]
                )
        return [found[int(case)] for case in cases["case"]]

    def _features(self, cases: pd.DataFrame, parts: list[Attribution]) -> pd.DataFrame:
        """Contributions, a row for each case and feature."""
        names = self.model.sight.encoder.feature_names
        fields, groups = zip(*(feature_group(name) for name in names), strict=True)
        tables = [
            pd.DataFrame(
                {
                    "case": case.case,
                    "gene": case.gene,
                    "tile": case.tile,
                    "field": fields,
                    "group": groups,
                    "feature": names,
                    "contribution": part.values[0],
                }
            )
            for case, part in zip(cases.itertuples(), parts, strict=True)
        ]
        return pd.concat(tables, ignore_index=True)

    def _overlay(self) -> pd.DataFrame:
        """Contributions of groups at every spot, both fields of view together."""
        probe = self.model.term
        assert isinstance(probe, Probe)
        coords, points = self._candidates()
        X = self.model.sight(self.section.slide, coords) - probe.x_mean
        groups = np.array([feature_group(n)[1] for n in self.model.sight.encoder.feature_names])
        tables = []
        for column in self.columns:
            for group in dict.fromkeys(groups.tolist()):
                own = groups == group
                table = pd.DataFrame({"point": points, "x": coords[:, 0], "y": coords[:, 1]})
                table["gene"], table["group"] = self.gene(column).name, group
                table["contribution"] = X[:, own] @ probe.coefficients[own, column]
                tables.append(table)
        return pd.concat(tables, ignore_index=True)


def rank_labels(ranks: Sequence[int] | NDArray[np.int64], total: int) -> list[str]:
    """What tiles are called by the rank of their prediction.

    Examples
    --------
    >>> rank_labels([0, 50, 99], 100), rank_labels([0, 33, 66, 99], 100)[1]
    (['highest', 'middle', 'lowest'], 'rank 34 of 100')
    """
    names = {0: "highest", total - 1: "lowest"}
    if len(ranks) == 3:
        names[int(ranks[1])] = "middle"
    return [names.get(int(rank), f"rank {rank + 1} of {total}") for rank in ranks]


def _columns(card: ModelCard, genes: Sequence[str]) -> list[int]:
    """Positions of genes among the columns of a model."""
    known = [column.name for column in card.columns]
    missing = [gene for gene in genes if gene not in known]
    if missing:
        near = difflib.get_close_matches(missing[0], known, 3, cutoff=0.5)
        some = ", ".join(near or known[:5])
        raise InputError(
            f"--genes: the model does not predict {', '.join(missing[:10])}; it predicts "
            f"{len(known)} {card.kind if card.kind == 'clusters' else 'genes'}, such as {some}"
        )
    return [known.index(gene) for gene in genes]
