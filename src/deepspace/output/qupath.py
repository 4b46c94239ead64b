"""Areas of a prediction as annotations that QuPath opens."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from skimage.measure import find_contours, points_in_poly

from deepspace.core.errors import InputError
from deepspace.output.clusters import cluster_colours
from deepspace.output.ometiff import Grid

Ring = NDArray[np.float64]

_SPACE: Final = uuid.UUID("7c4d1f0a-6f5b-4e0a-9f0e-6d5eb1a3a001")


@dataclass(frozen=True)
class Threshold:
    """Points where a gene is at least `value`."""

    gene: str
    value: float

    @property
    def name(self) -> str:
        """As in ``ERBB2 >= 1.5``."""
        return f"{self.gene} >= {self.value:g}"

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Read ``GENE>=VALUE``.

        Raises
        ------
        InputError
            If it is something else.

        Examples
        --------
        >>> Threshold.parse("HLA-A >= 1.5")
        Threshold(gene='HLA-A', value=1.5)
        """
        gene, sign, value = text.partition(">=")
        try:
            number = float(value)
        except ValueError:
            number = np.nan
        if not (sign and gene.strip() and np.isfinite(number)):
            raise InputError(f"--threshold {text}: write GENE>=VALUE, for example 'ERBB2>=1.5'")
        return cls(gene.strip(), number)


def outlines(mask: NDArray[np.bool_], step_px: float) -> list[list[Ring]]:
    """Outlines of an area with the holes in them.

    Parameters
    ----------
    mask : ndarray of bool, shape (height, width)
        Pixels of the area.
    step_px : float
        Side of a pixel; the corner of the first is the origin.

    Returns
    -------
    list of list of ndarray
        For each polygon its outline, then its holes; closed rings (corners, 2) of `x, y`.

    Examples
    --------
    >>> mask = np.ones((5, 5), bool)
    >>> mask[2, 2] = False
    >>> [[len(ring) for ring in polygon] for polygon in outlines(mask, 2.0)]
    [[9, 5]]
    """
    padded = np.pad(mask, 1).astype(np.float64)
    rings = [_place(ring, step_px) for ring in find_contours(padded, 0.5)]  # type: ignore[no-untyped-call]
    # contours turn one way around areas and the other way around holes
    outer = [[ring] for ring in rings if _area(ring) > 0]
    outer.sort(key=lambda polygon: _area(polygon[0]))
    for hole in (ring for ring in rings if _area(ring) < 0):
        # the smallest that holds it is its own
        own = next(p for p in outer if points_in_poly(hole[:1], p[0])[0])  # type: ignore[no-untyped-call]
        own.append(hole)
    return outer[::-1]


def _place(ring: NDArray[np.float64], step_px: float) -> Ring:
    """Rows and columns to x and y, without corners on straight lines."""
    points = (ring[:, ::-1] - 1 + 0.5)[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    bends = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept = points[bends] * step_px
    return np.concatenate([kept, kept[:1]])


def _area(ring: Ring) -> float:
    """Twice the area, negative for rings that turn the other way."""
    x, y = ring.T
    return float(np.dot(x[:-1], y[1:]) - np.dot(y[:-1], x[1:]))


def areas_geojson(
    areas: Mapping[str, NDArray[np.bool_]], grid: Grid, *, section: str
) -> dict[str, Any]:
    """Areas as a GeoJSON FeatureCollection in full-resolution pixels.

    Parameters
    ----------
    areas : mapping
        For each name the points of the area, (points,) bool. Each pixel of the grid belongs to
        its nearest point.
    grid : Grid
        Its pixels make the outlines.
    section : str
        Kept apart from areas of the same name elsewhere by their identifiers.
    """
    colours = cluster_colours(list(areas))
    features = []
    for name, chosen in areas.items():
        mask = np.append(chosen, False)[grid.nearest]
        polygons = [[ring.tolist() for ring in polygon] for polygon in outlines(mask, grid.step_px)]
        if not polygons:
            continue
        one = len(polygons) == 1
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(_SPACE, f"{section}\n{name}")),
                "geometry": {
                    "type": "Polygon" if one else "MultiPolygon",
                    "coordinates": polygons[0] if one else polygons,
                },
                "properties": {
                    "objectType": "annotation",
                    "name": name,
                    "classification": {"name": name, "color": _rgb(colours[name])},
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}


def write_geojson(content: Mapping[str, Any], path: Path) -> None:
    """Write GeoJSON without white space: outlines are long."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    path.write_text(text + "\n", encoding="utf-8")


def _rgb(colour: str) -> Sequence[int]:
    return [round(255 * part) for part in to_rgb(colour)]
