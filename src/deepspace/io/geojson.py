"""Regions that a user drew, from GeoJSON as QuPath exports it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import points_in_poly

from deepspace.core.errors import InputError, Problems
from deepspace.core.progress import log
from deepspace.io.text import read_text

FloatArray = NDArray[np.float64]
# an outline, then its holes
Polygon = tuple[FloatArray, ...]
_WRAPPERS = ("FeatureCollection", "Feature")


@dataclass(frozen=True)
class Region:
    """Named area of a slide.

    Attributes
    ----------
    name : str
    polygons : tuple
        Each an outline and its holes, arrays (corners, 2) of `x, y` in full-resolution pixels.
    """

    name: str
    polygons: tuple[Polygon, ...]

    def contains(self, coords: FloatArray) -> NDArray[np.bool_]:
        """Tell which points lie in an outline and not in a hole of it, shape (points,).

        Examples
        --------
        >>> square = np.array([[0, 0], [9, 0], [9, 9], [0, 9.0]])
        >>> ring = Region("ring", ((square, square / 3 + 3),))
        >>> ring.contains(np.array([[1.0, 1.0], [4.5, 4.5], [20.0, 1.0]])).tolist()
        [True, False, False]
        """
        inside = np.zeros(len(coords), np.bool_)
        for outline, *holes in self.polygons:
            own = _inside(coords, outline)
            for hole in holes:
                own &= ~_inside(coords, hole)
            inside |= own
        return inside


def _inside(coords: FloatArray, ring: FloatArray) -> NDArray[np.bool_]:
    return np.asarray(points_in_poly(coords, ring), np.bool_)  # type: ignore[no-untyped-call]


def read_regions(path: Path) -> list[Region]:
    """Read the regions of a GeoJSON file.

    Polygons and MultiPolygons of a FeatureCollection, of a list of features (older QuPath), or of
    one feature. A region is called by its classification, else by its name, else ``unnamed``;
    areas of the same name are one region. Other shapes (lines, points) are left out, and the log
    says so.

    Parameters
    ----------
    path
        GeoJSON in full-resolution pixels of the slide, gzip or not.

    Raises
    ------
    InputError
        If it is no GeoJSON, a polygon is damaged, or it holds no area.
    """
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(
            f"{path}: is no GeoJSON ({error}); in QuPath: File, Export objects as GeoJSON"
        ) from error
    problems = Problems(str(path))
    found: dict[str, list[Polygon]] = {}
    left_out: dict[str, int] = {}
    for number, feature in enumerate(_features(content, path), start=1):
        where = f"feature {number}"
        if not isinstance(feature, dict) or not isinstance(feature.get("geometry"), dict):
            problems.add(f"{where}: has no geometry; export the annotations again")
            continue
        geometry = feature["geometry"]
        kind = str(geometry.get("type"))
        if kind not in _POLYGONS:
            left_out[kind] = left_out.get(kind, 0) + 1
            continue
        with problems.collect():
            shapes = _POLYGONS[kind](geometry.get("coordinates"))
            polygons = [_polygon(shape, where) for shape in shapes]
            found.setdefault(_name(feature.get("properties")), []).extend(polygons)
    problems.raise_if_any()
    for kind, count in left_out.items():
        log.info("%s: %d features of type %s are no areas and left out", path, count, kind)
    if not found:
        raise InputError(f"{path}: holds no Polygon or MultiPolygon; draw areas and export them")
    return [Region(name, tuple(polygons)) for name, polygons in found.items()]


# how the polygons of a geometry lie in its coordinates
_POLYGONS: dict[str, Callable[[Any], list[Any]]] = {
    "Polygon": lambda coordinates: [coordinates],
    "MultiPolygon": lambda coordinates: coordinates if isinstance(coordinates, list) else [None],
}


def _features(content: Any, path: Path) -> Sequence[Any]:
    if isinstance(content, list):
        return content
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        features = content.get("features")
        if isinstance(features, list):
            return features
    if isinstance(content, dict) and content.get("type") == "Feature":
        return [content]
    raise InputError(
        f"{path}: is no {' or '.join(_WRAPPERS)}; in QuPath: File, Export objects as GeoJSON"
    )


def _polygon(rings: Any, where: str) -> Polygon:
    if not isinstance(rings, list) or not rings:
        raise InputError(f"{where}: its polygon has no outline; draw it again")
    return tuple(_ring(ring, where) for ring in rings)


def _ring(ring: Any, where: str) -> FloatArray:
    """Corners of a closed line; the last one may repeat the first."""
    try:
        corners = np.array([corner[:2] for corner in ring], dtype=np.float64)
    except (TypeError, ValueError, IndexError, KeyError):
        raise InputError(f"{where}: a corner is not a pair of numbers; export it again") from None
    if corners.ndim != 2 or corners.shape[1] != 2 or not np.isfinite(corners).all():
        raise InputError(f"{where}: a corner is not a pair of numbers; export it again")
    if len(np.unique(corners, axis=0)) < 3:
        raise InputError(f"{where}: an outline has fewer than three corners; draw it again")
    return corners


def _name(properties: Any) -> str:
    """Class of an annotation, else its name."""
    known = properties if isinstance(properties, dict) else {}
    kind = known.get("classification")
    kind = kind.get("name") if isinstance(kind, dict) else kind
    for name in (kind, known.get("name")):
        if isinstance(name, str) and name.strip():
            return name.strip()
    return "unnamed"
