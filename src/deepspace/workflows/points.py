"""Where a prediction is wanted: at spots, between them, on a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.data.coords import between_spots, grid
from deepspace.data.tissue import TissueMask, tissue_mask
from deepspace.io.section import Section
from deepspace.models.features import SHARED_POINTS, FeatureExtractor

FloatArray = NDArray[np.float64]

# of the cache, for features that may never be asked for
SHARE_OF_CACHE = 0.25


@dataclass(frozen=True)
class Points:
    """Where to predict: coordinates and the obs table that goes with them."""

    coords: FloatArray
    obs: pd.DataFrame


def points_at(section: Section, at: str) -> Points:
    """Points of ``spots``, ``between`` or ``grid:UM``.

    Raises
    ------
    InputError
        If `at` is not understood, or needs spots that the section does not have.
    """
    if grid_stride(at):
        tissue = tissue_mask(section.slide)
        return _lattice(section, grid(section.slide, tissue, grid_stride(at)), tissue, "grid")
    spots = _spots(section)
    if spots is None:
        raise InputError(
            f"section {section.section}: has no spots, so --at {at} is not possible; use "
            "--at grid:100, or give a spots file in the sheet"
        )
    coords = spots[["x", "y"]].to_numpy(dtype=np.float64)
    if at == "between":
        return _lattice(section, between_spots(coords), tissue_mask(section.slide), "between")
    measured = [] if section.counts is None else section.counts.obs_names
    obs = pd.DataFrame(
        {keys.MEASURED: spots.index.isin(measured), keys.IN_TISSUE: True}, index=spots.index
    )
    return Points(coords, obs)


def _points_ahead(section: Section) -> FloatArray:
    """Where features of a measured section will be wanted, now or later: spots and between."""
    spots = _spots(section)
    coords = section.coords if spots is None else spots[["x", "y"]].to_numpy(dtype=np.float64)
    return np.concatenate([section.coords, coords, between_spots(coords)])


def share_ahead(extractor: FeatureExtractor, sections: Sequence[Section]) -> None:
    """Encode what `predict` may ask for later along with the spots, if the cache has room."""
    if extractor.cache is None or extractor.encoder.maps is None:
        return
    ahead: dict[tuple[str, float], list[FloatArray]] = {}
    slides = {}
    for section in sections:  # several may lie on one scan
        key = section.slide.content_hash(), section.slide.require_mpp()
        slides[key] = section.slide
        ahead.setdefault(key, []).append(_points_ahead(section))
    points = {key: np.concatenate(parts) for key, parts in ahead.items()}
    few = {key: coords for key, coords in points.items() if len(coords) <= SHARED_POINTS}
    size = 4 * extractor.encoder.n_features * sum(map(len, few.values()))
    if size <= extractor.cache.max_bytes * SHARE_OF_CACHE:
        for key, coords in few.items():
            extractor.share(slides[key], coords)


def _spots(section: Section) -> pd.DataFrame | None:
    """Spots in tissue, as the section lists them or as they were measured."""
    spots = section.spots
    if spots is None and section.counts is not None:
        # those that were measured are all that is known
        spots = pd.DataFrame(section.coords, section.counts.obs_names, ["x", "y"])
        spots[keys.IN_TISSUE] = True
    return None if spots is None else spots[spots[keys.IN_TISSUE].to_numpy(dtype=bool)]


def grid_stride(at: str) -> float:
    """Stride in micrometres of ``grid:UM``; 0 for anything else."""
    kind, _, number = at.partition(":")
    if kind != "grid":
        if at not in ("spots", "between"):
            raise InputError(f"--at {at}: give spots, between or grid:UM, as in grid:20")
        return 0.0
    try:
        stride = float(number)
    except ValueError:
        raise InputError(f"--at {at}: give the stride in micrometres, as in grid:20") from None
    if not 0 < stride < math.inf:
        raise InputError(f"--at {at}: the stride is in micrometres and must be above 0")
    return stride


def _lattice(section: Section, coords: FloatArray, tissue: TissueMask, kind: str) -> Points:
    names = [f"{section.section}_{kind}_{i}" for i in range(len(coords))]
    if not len(coords):
        raise InputError(
            f"{section.slide.path}: no tissue found on the slide, so --at {kind} gives no points; "
            "look at it with `deepspace inspect`"
        )
    inside = tissue.contains(coords)
    return Points(coords, pd.DataFrame({keys.MEASURED: False, keys.IN_TISSUE: inside}, index=names))
