"""What is known of one point, and the measurements that lie around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepspace.core import keys
from deepspace.core.metrics import NORMAL_90
from deepspace.output.prediction_file import X
from deepspace.viewer.project import PREDICTED, PointSet, Project, ViewSection

NEAREST = 6
FloatArray = NDArray[np.float64]


def describe_point(
    project: Project, section: ViewSection, one: PointSet, index: int, gene: str | None
) -> dict[str, Any]:
    """All that is known of a point.

    Raises
    ------
    IndexError
        If there is no such point.
    KeyError
        If there is no such gene.
    """
    if not 0 <= index < len(one.values.coords):
        raise IndexError(index)
    if gene is not None and gene not in one.genes:
        raise KeyError(gene)
    obs = one.values.obs.iloc[index]
    x, y = one.values.coords[index]
    found: dict[str, Any] = {
        "name": str(one.values.obs.index[index]),
        "x": float(x),
        "y": float(y),
        "in_tissue": bool(obs.get(keys.IN_TISSUE, True)),
        "is_measured": bool(obs.get(keys.MEASURED, X not in one.values.layers)),
        "ood": bool(obs.get(keys.OOD, False)),
        "ood_reason": _text(obs, keys.OOD_REASON) or "",
        "failed": _text(obs, "reason") or "",
        "cluster": _text(obs, keys.CLUSTER),
        "neighbours": [],
    }
    if gene is not None:
        found |= _values(one, index, gene)
        found["neighbours"] = _around(project, section, one.values.coords[index], gene)
    return found


def _values(one: PointSet, index: int, gene: str) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys((PREDICTED, keys.SD, keys.MEASURED, "low", "high"))
    for name in one.layers:
        if name in found:
            value = float(one.layer(name, gene)[index])
            found[name] = value if np.isfinite(value) else None
    if found[PREDICTED] is not None and found[keys.SD] is not None and one.kind == "expression":
        half = NORMAL_90 * found[keys.SD]
        found["low"], found["high"] = max(0.0, found[PREDICTED] - half), found[PREDICTED] + half
    return found


def _text(obs: pd.Series[Any], name: str) -> str | None:
    """Word of a point, if it has one."""
    value = obs.get(name)
    return None if value is None or pd.isna(value) else str(value)


def _around(
    project: Project, section: ViewSection, point: FloatArray, gene: str
) -> list[dict[str, Any]]:
    """Nearest measured spots, of this section and of those registered with it."""
    mpp = section.image.tiles.mpp or 1.0
    here = project.place(section.name)
    rows: list[dict[str, Any]] = []
    for other in project.sections:
        if other.spots is None or gene not in other.spots.genes:
            continue
        place = project.place(other.name)
        if other is section:
            shown, dz = other.spots.coords, 0.0
        elif place is None or here is None or place.block != here.block:
            continue
        else:
            # places are in um of each section; both are brought to pixels of this one
            common = place.transform.forward(other.spots.coords * place.mpp)
            shown = here.transform.backward(common) / here.mpp
            dz = (place.z_um or 0.0) - (here.z_um or 0.0)
        distance = np.hypot(np.hypot(*(shown - point).T) * mpp, dz)
        if other.reliable is not None:
            distance = np.where(other.reliable, distance, np.inf)
        nearest = np.argsort(distance, kind="stable")[:NEAREST]
        values = other.spots.column(keys.MEASURED, other.spots.genes[gene])
        rows += [
            {
                "section": other.name,
                "name": str(other.spots.obs.index[row]),
                "x": float(shown[row, 0]),
                "y": float(shown[row, 1]),
                "distance_um": float(distance[row]),
                "dz_um": dz,
                "measured": float(values[row]),
            }
            for row in nearest
            if np.isfinite(distance[row])
        ]
    return sorted(rows, key=lambda row: row["distance_um"])[:NEAREST]
