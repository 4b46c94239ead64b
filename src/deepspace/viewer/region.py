"""What distinguishes an area that a user has drawn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.data.genesets import gene_sets, match_sets
from deepspace.data.modules import expected_sd, module_scores
from deepspace.io.geojson import Region
from deepspace.output.prediction_file import X
from deepspace.viewer.columns import TOTAL
from deepspace.viewer.project import PointSet, ViewSection

Sides = tuple[NDArray[np.bool_], NDArray[np.bool_]]

LEAST_POINTS = 3
MOST_GENES = 2000
# points times genes, so that values and sd take a quarter of a gigabyte, twice while in use
MOST_VALUES = 1 << 24
LISTED = 50
LEAST_OF_SET = 3


class RegionError(ValueError):
    """What is wrong with an area that was drawn, in words for the user."""


@dataclass(frozen=True)
class Drawn:
    """A polygon of `x, y` in full-resolution pixels, and its name."""

    name: str
    corners: NDArray[np.float64]

    @property
    def area_px(self) -> float:
        """Area inside, square pixels (shoelace formula)."""
        x, y = self.corners.T
        return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def parse_drawn(body: bytes) -> Drawn:
    """Read the JSON ``{"name": ..., "polygon": [[x, y], ...]}``.

    Raises
    ------
    RegionError
        If it is something else.
    """
    try:
        content = json.loads(body)
        corners = np.asarray(content["polygon"], np.float64)
        name = str(content.get("name", "region"))[:100].encode("utf-8", "replace").decode()
    except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RegionError("the region must be JSON with a polygon of x, y pairs") from error
    except RecursionError as error:
        raise RegionError("the region is nested too deeply") from error
    if corners.ndim != 2 or corners.shape[1] != 2 or not 3 <= len(corners) <= 10_000:
        raise RegionError("the polygon must have 3 to 10,000 corners of x, y")
    if not np.isfinite(corners).all():
        raise RegionError("the corners of the polygon must be finite numbers")
    return Drawn(name, corners)


def _sides(one: PointSet, drawn: Drawn) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Points inside and outside, on tissue that is like the training images.

    Raises
    ------
    RegionError
        If too few points lie inside or outside.
    """
    obs = one.values.obs
    used = np.ones(len(obs), np.bool_)
    if keys.IN_TISSUE in obs:
        used &= obs[keys.IN_TISSUE].to_numpy(bool)
    if keys.OOD in obs:
        used &= ~obs[keys.OOD].to_numpy(bool)
    within = Region(drawn.name, ((drawn.corners,),)).contains(one.values.coords)
    chosen, others = used & within, used & ~within
    if min(chosen.sum(), others.sum()) < LEAST_POINTS:
        raise RegionError(
            f"{int(chosen.sum())} of {int(used.sum())} points lie inside; draw an area with at "
            f"least {LEAST_POINTS} inside and outside"
        )
    return chosen, others


def describe_region(section: ViewSection, one: PointSet, drawn: Drawn) -> dict[str, Any]:
    """Points, area, genes that differ most, and scores of gene sets.

    Genes that held-out data do not tell from chance are left out, and of more than `MOST_GENES`
    those that are predicted best are compared; of measurements alone, those with most counts.

    Raises
    ------
    RegionError
        If too few points lie inside or outside.
    """
    sides = _sides(one, drawn)
    genes = _compared(one)
    values, sd = _matrices(one, genes)
    table = _differences(one, genes, values, sd, sides)
    mpp = section.image.tiles.mpp
    return {
        "name": drawn.name,
        "points": int(sides[0].sum()),
        "area_mm2": None if mpp is None else drawn.area_px * mpp**2 / 1e6,
        "compared": len(genes),
        "genes": table.head(LISTED).to_dict("records"),
        "modules": _modules(genes, values, sd, sides),
    }


def region_table(one: PointSet, drawn: Drawn) -> pd.DataFrame:
    """Every compared gene inside and outside, the largest difference first.

    Raises
    ------
    RegionError
        If too few points lie inside or outside.
    """
    sides = _sides(one, drawn)
    genes = _compared(one)
    values, sd = _matrices(one, genes)
    return _differences(one, genes, values, sd, sides)


def _compared(one: PointSet) -> list[str]:
    var = one.values.var
    names = pd.Series(var.index.astype(str))
    if keys.VERDICT in var:
        names = names[(var[keys.VERDICT].astype(str) != "no").to_numpy()]
    most = max(1, min(MOST_GENES, MOST_VALUES // len(one.values.coords)))
    rank = next((column for column in (keys.SCORE, TOTAL) if column in var), None)
    if rank is not None and len(names) > most:
        score = var[rank].set_axis(var.index.astype(str)).loc[names]
        names = pd.Series(score.sort_values(ascending=False, kind="stable").index[:most])
    return [str(name) for name in names[:most]]


def _matrices(one: PointSet, genes: list[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values and their sd, (points, genes); measurements have none."""
    layer = X if X in one.values.layers else keys.MEASURED
    values, sd = (np.zeros((len(one.values.coords), len(genes))) for _ in range(2))
    for k, gene in enumerate(genes):
        values[:, k] = one.values.column(layer, one.genes[gene])
        if keys.SD_LATENT in one.values.layers:
            sd[:, k] = one.values.column(keys.SD_LATENT, one.genes[gene])
    return values, sd


def _differences(
    one: PointSet,
    genes: list[str],
    values: NDArray[np.float64],
    sd: NDArray[np.float64],
    sides: Sides,
) -> pd.DataFrame:
    used = sides[0] | sides[1]
    unit = expected_sd(values[used], sd[used])
    means = [values[part].mean(axis=0) for part in sides]
    apart = np.divide(means[0] - means[1], unit, out=np.zeros_like(unit), where=unit > 0)
    var = one.values.var.set_axis(one.values.var.index.astype(str))
    table = pd.DataFrame(
        {
            "name": genes,
            "mean_inside": means[0],
            "mean_outside": means[1],
            "difference": apart,
            "verdict": var.loc[genes, keys.VERDICT].astype(str).to_numpy()
            if keys.VERDICT in var
            else "measured",
        }
    )
    order = table["difference"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def _modules(
    genes: list[str],
    values: NDArray[np.float64],
    sd: NDArray[np.float64],
    sides: Sides,
) -> list[dict[str, Any]]:
    """Mean scores of the gene sets that come with deepspace; none where no set fits."""
    used = sides[0] | sides[1]
    varies = values[used].std(axis=0) > 0
    try:
        matched = match_sets(gene_sets([], builtin=True), genes)
    except InputError:
        return []
    columns = {m.name: [c for c in m.columns if varies[c]] for m in matched}
    columns = {name: own for name, own in columns.items() if len(own) >= LEAST_OF_SET}
    own_genes = sorted({c for own in columns.values() for c in own})
    place = {column: k for k, column in enumerate(own_genes)}
    scores = module_scores(
        values[:, own_genes],
        sd[:, own_genes],
        [[place[c] for c in own] for own in columns.values()],
        used,
    ).score
    return [
        {
            "name": name,
            "genes": len(own),
            "inside": float(scores[sides[0], k].mean()),
            "outside": float(scores[sides[1], k].mean()),
        }
        for k, (name, own) in enumerate(columns.items())
    ]


def region_geojson(drawn: Drawn) -> dict[str, Any]:
    """Polygon as QuPath reads it."""
    ring = [*drawn.corners.tolist(), drawn.corners[0].tolist()]
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {
                    "objectType": "annotation",
                    "name": drawn.name,
                    "classification": {"name": drawn.name, "color": [0, 114, 178]},
                },
            }
        ],
    }
