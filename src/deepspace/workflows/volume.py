"""The volume of a block: planes at any depth, between the sections too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from deepspace.core.config import CompleteConfig
from deepspace.core.files import file_name
from deepspace.core.progress import log, track
from deepspace.data.targets import Target
from deepspace.data.tissue import TissueMask, tissue_mask
from deepspace.data.transforms import log1p_cp10k, total_counts
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.models.base import FloatArray, Prediction, SavablePredictor
from deepspace.models.store import ModelCard
from deepspace.models.unlabelled import pitch_um
from deepspace.output.completion import PlaneMap, shown_planes, volume_planes
from deepspace.output.plot import Points, save, spot_size_um
from deepspace.output.volume import Volume, VolumeGrid, open_volume, write_volume
from deepspace.registration.stack import Place, Stack
from deepspace.registration.warp import warp

# a prediction that could be drawn without end is cut off here
MOST_PLANES = 101
MOST_VOXELS = 4_000_000
GENES_DRAWN = 2
# width of a section in the picture of the volume
PICTURE_PX = 500
# points that are predicted at once, fewer where there are many genes: 64 MiB an array
CHUNK = 4096
CHUNK_VALUES = 8 * 2**20


@runtime_checkable
class InDepth(Protocol):
    """A predictor that uses what was measured on sections around, at any depth."""

    target: Target

    @property
    def stack(self) -> Stack | None:
        """Where the sections lie."""
        ...

    def predict_at_depth(self, slide: Slide, coords: FloatArray, z_um: float) -> Prediction:
        """Predict as if the points of a slide lay at another depth."""
        ...


@dataclass(frozen=True)
class Layer:
    """A section as a part of a block."""

    section: Section
    place: Place
    tissue: TissueMask

    @property
    def z_um(self) -> float:
        """Its depth."""
        return float(self.place.z_um or 0.0)

    def coords(self, points_um: FloatArray) -> FloatArray:
        """Full-resolution pixels of the slide under points of the common frame (n, 2)."""
        return self.place.transform.backward(points_um) / self.place.mpp

    def inside(self, points_um: FloatArray) -> NDArray[np.bool_]:
        """Which points of the common frame lie in its tissue."""
        found: NDArray[np.bool_] = self.tissue.contains(self.coords(points_um))
        return found


def complete_volume(
    sections: Sequence[Section],
    predictor: SavablePredictor,
    card: ModelCard,
    config: CompleteConfig,
    stem: Path,
) -> dict[str, Any] | None:
    """Predict the volume of the block with most measured sections, write it and draw it.

    A plane between two sections takes the image of both, weighed by their distance, and what was
    measured around it. ``STEM.ome.zarr`` that is there already is kept.

    Returns
    -------
    dict or None
        Size of the volume; None where no two sections of one block lie at different depths.
    """
    if not isinstance(predictor, InDepth) or predictor.stack is None:
        log.info("no volume: the model uses no depth; take --model kriging")
        return None
    layers = _layers(sections, predictor.stack)
    if len({layer.z_um for layer in layers}) < 2:
        log.info(
            "no volume: no two sections of one block with measured spots lie at different depths"
        )
        return None
    grid = volume_grid(layers, sections, config)
    columns = np.array([c.score if c.score is not None else -np.inf for c in card.columns])
    best = np.sort(np.argsort(-columns, kind="stable")[: config.volume_genes])
    names = [card.columns[k].name for k in best]
    path = stem.with_name(f"{stem.name}.ome.zarr")
    if not path.exists():
        _write(path, grid, layers, predictor, (names, best))
    found = open_volume(path)
    scores = dict(zip(names, columns[best], strict=True))
    for name in sorted(names, key=lambda n: -scores[n])[:GENES_DRAWN]:
        score = float(scores[name]) if np.isfinite(scores[name]) else None
        _draw(found, layers, name, score, stem.with_name(f"{stem.name}-{file_name(name)}.png"))
    return {"shape_zyx": list(grid.shape), "step_um": list(grid.step_um), "columns": len(names)}


def _layers(sections: Sequence[Section], stack: Stack) -> list[Layer]:
    """Sections of the block with most measured ones, in order of depth; none without tissue."""
    places = {p.slide_sha256: p for p in stack.places}
    known = [(s, places.get(s.slide.content_hash())) for s in sections]
    placed = [(s, p) for s, p in known if p is not None and p.z_um is not None]
    measured = [p.block for s, p in placed if s.measured]
    if not measured:
        return []
    blocks = [p.block for _, p in placed]
    chosen = max(dict.fromkeys(measured), key=lambda b: (measured.count(b), blocks.count(b)))
    layers = [Layer(s, p, tissue_mask(s.slide)) for s, p in placed if p.block == chosen]
    return sorted((x for x in layers if len(_outline(x))), key=lambda layer: layer.z_um)


def volume_grid(
    layers: Sequence[Layer], sections: Sequence[Section], config: CompleteConfig
) -> VolumeGrid:
    """Voxels over the tissue of all layers; coarser where there would be too many."""
    depths = np.unique([layer.z_um for layer in layers])
    pitch = float(np.median([pitch_um(s) for s in sections if s.measured]))
    z_step = config.volume_z_um or float(np.diff(depths).min()) / 2
    span = float(depths[-1] - depths[0])
    planes = int(np.ceil(span / z_step - 1e-6)) + 1
    if config.volume_z_um is None:
        planes = _through_all(depths, planes)
    if planes > MOST_PLANES:
        planes = MOST_PLANES
        log.info("volume: no more than %d planes, one every %.3g um", planes, span / (planes - 1))
    # the first and the last plane are the first and the last section
    z_step = span / (planes - 1)
    corners = np.concatenate([_outline(layer) for layer in layers])
    low, high = corners.min(axis=0), corners.max(axis=0)
    step = config.volume_um or pitch / 2
    expected = float(np.prod((high - low) / step)) * planes
    if expected > MOST_VOXELS:
        step *= float(np.sqrt(expected / MOST_VOXELS))
        log.info("volume: voxels of %.3g um, so that there are no more than %d", step, MOST_VOXELS)
    columns, rows = (np.floor((high - low) / step).astype(int) + 1).tolist()
    origin = (float(depths[0]), float(low[1]), float(low[0]))
    return VolumeGrid((planes, rows, columns), (z_step, step, step), origin)


def _through_all(depths: FloatArray, planes: int) -> int:
    """Number of planes, at most twice as many, for which every section has one of its own."""
    apart = (depths - depths[0]) / (depths[-1] - depths[0])
    for more in range(planes, 2 * planes + 1):
        at = apart * (more - 1)
        if np.abs(at - np.round(at)).max() < 0.02:
            return more
    return planes


def _outline(layer: Layer) -> FloatArray:
    """Points all over the tissue of a layer, in the common frame."""
    slide = layer.section.slide
    step = max(slide.width, slide.height) / 200
    x, y = np.meshgrid(np.arange(0, slide.width, step), np.arange(0, slide.height, step))
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    inside = points[layer.tissue.contains(points)]
    return layer.place.transform.forward(inside * layer.place.mpp)


def around(layers: Sequence[Layer], z_um: float) -> list[tuple[Layer, float]]:
    """Layers whose image tells of a plane, with weights that sum to one.

    That at this depth alone, else the nearest below and above, weighed by their distance.
    """
    below = [layer for layer in layers if layer.z_um <= z_um + 1e-6]
    above = [layer for layer in layers if layer.z_um >= z_um - 1e-6]
    if not below or not above:
        return [((below or above[:1])[-1], 1.0)]
    low, high = below[-1], above[0]
    if high.z_um - low.z_um < 1e-6 or abs(low.z_um - z_um) < 1e-6:
        return [(low, 1.0)]
    share = (z_um - low.z_um) / (high.z_um - low.z_um)
    return [(low, 1.0 - share), (high, share)]


def predict_plane(
    predictor: InDepth, layers: Sequence[Layer], points_um: FloatArray, z_um: float
) -> tuple[NDArray[np.bool_], FloatArray, FloatArray]:
    """Predict points of the common frame at a depth, in units of the target.

    Where only one of two layers has tissue, it tells alone. The variance of a mixture of two
    predictions holds their disagreement.

    Returns
    -------
    tuple
        Which points lie in tissue (points,); mean and sd_latent (points in tissue, names).
    """
    shares = [(layer, w * layer.inside(points_um)) for layer, w in around(layers, z_um)]
    total = np.sum([share for _, share in shares], axis=0)
    inside: NDArray[np.bool_] = total > 0
    mean: FloatArray | None = None
    for layer, share in shares:
        own = np.flatnonzero(share > 0)
        if not len(own):
            continue
        coords = layer.coords(points_um[own])
        found = predictor.predict_at_depth(layer.section.slide, coords, z_um)
        weight = (share[own] / total[own])[:, None]
        if mean is None:
            mean = np.zeros((len(points_um), found.mean.shape[1]))
            square = np.zeros_like(mean)
        mean[own] += weight * found.mean
        square[own] += weight * (found.sd_latent**2 + found.mean**2)
    if mean is None:
        names = len(predictor.target.names)
        return inside, np.empty((0, names)), np.empty((0, names))
    sd = np.sqrt(np.maximum(square - mean**2, 0.0))
    return inside, mean[inside], sd[inside]


def _write(
    path: Path,
    grid: VolumeGrid,
    layers: Sequence[Layer],
    predictor: InDepth,
    chosen: tuple[list[str], NDArray[np.int64]],
) -> None:
    names, columns = chosen
    target = predictor.target
    points = grid.plane_points()
    chunk = max(1, min(CHUNK, CHUNK_VALUES // len(target.names)))
    record = {
        "sections": [
            {"section": x.section.section, "z_um": x.z_um, "measured": x.section.measured}
            for x in layers
        ],
        "frame": "um of the common frame of the registered sections",
    }
    with write_volume(path, grid, names, unit=UNITS[target.kind], record=record) as volume:
        for number, z_um in track(enumerate(grid.z_um), total=grid.shape[0], text="planes"):
            parts = [
                _decoded(predictor, layers, points[k : k + chunk], float(z_um), columns)
                for k in range(0, len(points), chunk)
            ]
            volume.add(number, *(np.concatenate(part) for part in zip(*parts, strict=True)))


def _decoded(
    predictor: InDepth,
    layers: Sequence[Layer],
    points_um: FloatArray,
    z_um: float,
    columns: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], FloatArray, FloatArray]:
    """Which points lie in tissue; mean and sd there of some columns, decoded."""
    inside, mean, sd = predict_plane(predictor, layers, points_um, z_um)
    target = predictor.target
    return inside, target.decode(mean)[:, columns], target.decode_sd(mean, sd)[:, columns]


UNITS = {"expression": "log1p CP10k", "clusters": "probability"}


def _draw(
    volume: Volume, layers: Sequence[Layer], name: str, score: float | None, path: Path
) -> None:
    """A row of planes of one gene, with H&E and spots where a section lies."""
    at = at_planes(volume.grid, layers)
    planes = []
    for number in shown_planes(volume.grid.z_um, [x.z_um for x in layers]):
        mean, sd = (a.astype(np.float64) for a in volume.plane(int(number), name))
        own = at.get(int(number))
        plane = PlaneMap(float(volume.grid.z_um[number]), mean, sd)
        planes.append(plane if own is None else _with_section(plane, own, volume.grid, name))
    title = "Predicted volume; frames: black measured, orange not measured"
    save(
        volume_planes(
            volume.grid, planes, name, score=score, title=title, unit=str(volume.record["unit"])
        ),
        path,
    )


def at_planes(grid: VolumeGrid, layers: Sequence[Layer]) -> dict[int, Layer]:
    """The layer that each plane shows, by number of the plane; none where no layer is near.

    A layer lies at the plane nearest to it, up to half a step away. Of several at one plane the
    nearest is shown, a measured one first among equals.
    """
    found: dict[int, Layer] = {}

    def distances(layer: Layer) -> FloatArray:
        return np.abs(grid.z_um - layer.z_um)

    for layer in sorted(layers, key=lambda x: (distances(x).min(), not x.section.measured)):
        apart = distances(layer)
        # a little more than half, for rounding
        if apart.min() <= 0.501 * grid.step_um[0]:
            found.setdefault(int(apart.argmin()), layer)
    return found


def _with_section(plane: PlaneMap, layer: Layer, grid: VolumeGrid, name: str) -> PlaneMap:
    """The plane with the H&E of its section and what was measured on it."""
    section, (_, rows, columns), step = layer.section, grid.shape, grid.step_um[1]
    left, top = grid.origin_um[2] - step / 2, grid.origin_um[1] - step / 2
    box = (left, top, left + columns * step, top + rows * step)
    image = warp(
        section.slide,
        layer.place.transform,
        box,
        max((box[2] - left) / PICTURE_PX, layer.place.mpp),
    )
    spots, values = None, None
    if section.counts is not None and name in section.counts.var_names:
        coords = layer.place.transform.forward(section.coords * layer.place.mpp)
        spots = Points(coords, spot_size_um(section), square=section.platform == "visium_hd")
        own = section.counts
        column = np.asarray(own[:, [name]].X.todense(), dtype=np.float64)
        values = log1p_cp10k(column, total_counts(own))[:, 0]
    name = section.section
    if abs(layer.z_um - plane.z_um) > 0.5:
        name += f" ({round(layer.z_um, 1):g} µm)"  # the nearest plane is not quite its own
    return PlaneMap(plane.z_um, plane.mean, plane.sd, name, image, spots, values)
