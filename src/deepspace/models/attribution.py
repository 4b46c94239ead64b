"""Which part of a tile, or which of its features, drives a prediction.

What is explained is the image term of a model: what neighbours tell at a point is not in its
tile. Everything is computed on the patches that the encoder sees, standardised by the slide as
it is, so that the tile unchanged gives the image term's own prediction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from deepspace.core.errors import InputError
from deepspace.core.progress import log, track
from deepspace.data.patches import PatchSpec
from deepspace.io.slide import Slide
from deepspace.io.source import Image
from deepspace.models.base import FloatArray
from deepspace.models.cnn import CNN
from deepspace.models.encoders import Pretrained, device_of
from deepspace.models.image_term import ImageModel, Sight, Tile
from deepspace.models.losses import LOSSES
from deepspace.models.probe import Probe
from deepspace.models.trainable import HEADS, TrainableNetwork

# windows of occlusion along the widest field of view, and cells that gradients are summed in
WINDOWS = 16
CELLS = 56
# a window is so many strides wide, so that neighbouring ones overlap
OVERLAP = 2.0
# most windows a side that may be asked for
MOST_WINDOWS = 128
# points of the path at first and at most; good enough at this share of the difference, or at
# this difference itself
STEPS, MOST_STEPS = 16, 256
TOLERANCE, LEAST = 0.02, 0.002
# patches encoded at once, and differentiated at once: bound memory, not the result
BATCH, PATH_BATCH = 32, 4


@dataclass(frozen=True)
class Settings:
    """How maps are made.

    Attributes
    ----------
    window_um : float, optional
        Side of what occlusion covers; left out, an eighth of the widest field of view.
    fill : str
        What covers it, and what gradients start from; a key of `FILLS`.
    """

    window_um: float | None = None
    fill: str = "mean"


@dataclass(frozen=True)
class Attribution:
    """What a tile's prediction is made of.

    Attributes
    ----------
    values : ndarray, shape (columns, n, n) or (columns, features)
        A map over the widest field of view, first row at its top; or a number a feature.
    predicted : ndarray, shape (columns,)
        Prediction of the tile.
    reference : ndarray, shape (columns,)
        Prediction that it is compared with: of the tile filled everywhere, or at mean features.
    """

    values: FloatArray
    predicted: FloatArray
    reference: FloatArray

    @property
    def gap(self) -> FloatArray:
        """Sum of the values less what it should be, the difference of the two predictions."""
        sums = self.values.reshape(len(self.values), -1).sum(axis=1)
        gap: FloatArray = sums - (self.predicted - self.reference)
        return gap


def _mean_colour(tile: Tile, specs: Sequence[PatchSpec], side_um: float) -> Tile:
    """Mean colour of the widest field of view, everywhere."""
    del side_um
    widest = tile[int(np.argmax([spec.fov_um for spec in specs]))]
    colour = widest.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    return [np.broadcast_to(colour, patch.shape).copy() for patch in tile]


def _blurred(tile: Tile, specs: Sequence[PatchSpec], side_um: float) -> Tile:
    """The tile without details smaller than a window."""
    sigmas = [side_um / 2 / spec.um_per_px for spec in specs]
    return [
        ndimage.gaussian_filter(p.astype(np.float32), (s, s, 0), mode="nearest")
        .round()
        .astype(np.uint8)
        for p, s in zip(tile, sigmas, strict=True)
    ]


# what stands where the tile is covered: from the tile, its fields of view and a window's side
FILLS: dict[str, Callable[[Tile, Sequence[PatchSpec], float], Tile]] = {
    "mean": _mean_colour,
    "blur": _blurred,
}


def window_side(sight: Sight, settings: Settings) -> float:
    """Side of what occlusion covers, in micrometres.

    Raises
    ------
    InputError
        If it is wider than the tile, or so small that there would be too many of them.
    """
    widest = sight.fov_um
    least = OVERLAP * widest / MOST_WINDOWS
    side = OVERLAP * widest / WINDOWS if settings.window_um is None else settings.window_um
    if not least <= side <= widest:
        raise InputError(
            f"--window {side:g}: give micrometres from {least:.3g} to {widest:g}, the widest field "
            "of view of the model"
        )
    return side


def filled(sight: Sight, tile: Tile, settings: Settings) -> Tile:
    """The tile covered everywhere."""
    return FILLS[settings.fill](tile, sight.specs, window_side(sight, settings))


def _centres(count: int, side_um: float) -> FloatArray:
    """Centres of `count` equal parts of a side, its own centre at 0."""
    middles = np.arange(count, dtype=np.float64) + 0.5
    centres: FloatArray = middles * (side_um / count) - side_um / 2
    return centres


def occlusion(
    model: ImageModel, slide: Slide, point: FloatArray, columns: Sequence[int], settings: Settings
) -> Attribution:
    """What is lost when a window of the tile is covered (Zeiler & Fergus, ECCV 2014).

    The same place is covered in every field of view. A value is the prediction of the tile less
    that of the tile with the window around that place covered, as decoded: positive where the
    tissue there raises the prediction. A tile covered everywhere is unlike any tissue: its own
    prediction is the reference of the differences, no neutral one.
    """
    sight = model.sight
    tile = sight.tile(slide, point)
    cover = filled(sight, tile, settings)
    side = window_side(sight, settings)
    count = max(1, round(OVERLAP * sight.fov_um / side))
    centres = _centres(count, sight.fov_um)
    parts = []
    for spec, patch, over in zip(sight.specs, tile, cover, strict=True):
        pixels = _centres(spec.size_px, spec.fov_um)
        away = pixels - centres[:, None]
        inside = (-side / 2 <= away) & (away < side / 2)  # (windows, pixels), of rows and columns
        parts.append(_covered(sight, patch, over, inside))
    found = model.decoded(slide, np.concatenate(parts, axis=1).astype(np.float64))[:, columns]
    whole, reference = found[0], found[1]
    values = (whole - found[2:]).T.reshape(len(columns), count, count)
    return Attribution(values, whole, reference)


def _covered(
    sight: Sight, patch: Image, over: Image, inside: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Features of one field of view: the patch, all of it covered, and each window covered."""
    ends = sight.encoder(np.stack([patch, over]))
    count = len(inside)
    features = np.repeat(ends[:1], 2 + count**2, axis=0)
    features[1] = ends[1]
    touched = np.flatnonzero(np.outer(inside.any(axis=1), inside.any(axis=1)))
    starts = range(0, len(touched), BATCH)
    for start in track(starts, total=len(starts), text="covering"):
        rows, cols = np.divmod(touched[start : start + BATCH], count)
        masks = inside[rows][:, :, None] & inside[cols][:, None, :]
        changed = np.where(masks[..., None], over, patch)
        features[2 + touched[start : start + BATCH]] = sight.encoder(changed)
    return features


def gradients(
    model: ImageModel, slide: Slide, point: FloatArray, columns: Sequence[int], settings: Settings
) -> Attribution:
    """Integrated gradients from the covered tile to the tile (Sundararajan et al., ICML 2017).

    Summed over colours and, in cells, over pixels and fields of view. The values add up to the
    difference of the two predictions, in units of the target; the number of steps is doubled
    until they do.
    """
    cnn = model.term
    assert isinstance(cnn, CNN)
    sight = model.sight
    tile = sight.tile(slide, point)
    network = _network(cnn, sight, slide)
    path = _Path(cnn, network, _tensor(filled(sight, tile, settings)), _tensor(tile))
    steps = STEPS
    found = path.attribute(columns, steps, sight)
    while not _complete(found) and steps < MOST_STEPS:
        steps *= 2
        found = path.attribute(columns, steps, sight)
    if not _complete(found):
        log.warning(
            "gradients: after %d steps the parts add up to the difference but for %.2g",
            steps,
            np.abs(found.gap).max(),
        )
    return found


def _complete(found: Attribution) -> bool:
    allowed = np.maximum(TOLERANCE * np.abs(found.predicted - found.reference), LEAST)
    return bool((np.abs(found.gap) <= allowed).all())


def _tensor(tile: Tile) -> torch.Tensor:
    """Patches (1, f, 3, s, s) in 0..1."""
    return torch.from_numpy(np.stack(tile)).permute(0, 3, 1, 2)[None].float() / 255


def _network(cnn: CNN, sight: Sight, slide: Slide) -> TrainableNetwork:
    """The trained network in float32, standardising as on this slide."""
    pretrained: Pretrained = HEADS[cnn.tools.config.cnn.head](cnn.tools.pretrained)
    own = dict(pretrained.backbone.named_parameters()) | dict(pretrained.backbone.named_buffers())
    names = len(cnn.target.names)
    network = TrainableNetwork(pretrained, 1, names)
    mean, spread = sight.scale(slide)
    fill = [
        *((own[name], value) for name, value in cnn.trained.items()),
        (network.head.weight, cnn.weights[:names]),
        (network.head.bias, cnn.bias[:names]),
        (network.centre, mean[None]),
        (network.spread, spread[None]),
    ]
    with torch.no_grad():
        for place, value in fill:
            place.copy_(torch.from_numpy(np.asarray(value)))
    network.requires_grad_(False)
    return network.eval().to(device_of(cnn.tools.config.device))


@dataclass(frozen=True)
class _Path:
    """Straight line from the covered tile to the tile, each (1, f, 3, s, s) in 0..1."""

    cnn: CNN
    network: TrainableNetwork
    start: torch.Tensor
    end: torch.Tensor

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """Values of the target (b, names)."""
        device = self.network.centre.device
        outputs = self.network(x.to(device), torch.zeros(len(x), dtype=torch.int64, device=device))
        found = LOSSES[self.cnn.target.loss].activate(outputs).double().cpu()
        scaling, names = self.cnn.scaling, found.shape[1]
        spread, offset = (torch.from_numpy(v[:names]) for v in (scaling.spread, scaling.offset))
        return offset + found * spread

    def attribute(self, columns: Sequence[int], steps: int, sight: Sight) -> Attribution:
        """Attribution by the midpoint rule."""
        total = torch.zeros(len(columns), *self.end.shape[1:])
        middles = (torch.arange(steps) + 0.5) / steps
        for part in track(
            torch.split(middles, PATH_BATCH), total=-(-steps // PATH_BATCH), text="path"
        ):
            share = part.view(-1, 1, 1, 1, 1)
            x = (self.start + share * (self.end - self.start)).requires_grad_()
            values = self.values(x)
            for row, column in enumerate(columns):
                keep = row < len(columns) - 1
                (slope,) = torch.autograd.grad(values[:, column].sum(), x, retain_graph=keep)
                total[row] += slope.sum(0)
        pixels = (total / steps * (self.end - self.start)).sum(2).double().numpy()
        with torch.no_grad():
            first, last = (self.values(x)[0, columns].numpy() for x in (self.start, self.end))
        return Attribution(in_cells(pixels, sight), last, first)


def in_cells(pixels: FloatArray, sight: Sight) -> FloatArray:
    """Sum pixels (columns, fields, s, s) of all fields of view in cells of the widest one."""
    cells = np.zeros((len(pixels), CELLS, CELLS))
    for number, spec in enumerate(sight.specs):
        places = (_centres(spec.size_px, spec.fov_um) / sight.fov_um + 0.5) * CELLS
        index = np.clip(places.astype(np.int64), 0, CELLS - 1)
        rows, cols = np.meshgrid(index, index, indexing="ij")
        for column in range(len(pixels)):
            np.add.at(cells[column], (rows, cols), pixels[column, number])
    return cells


def contributions(
    model: ImageModel, slide: Slide, point: FloatArray, columns: Sequence[int], settings: Settings
) -> Attribution:
    """Coefficient times standardised feature less its training mean: exact, for `probe`.

    The values add up to the prediction less the mean of the training sections, in units of the
    target. Features that vary together may share one cause: sums over groups say more than one
    of them.
    """
    del settings
    probe = model.term
    assert isinstance(probe, Probe)
    X = model.sight(slide, point[None])[0] - probe.x_mean
    values = (X[:, None] * probe.coefficients[:, columns]).T
    mean = probe.y_mean[list(columns)]
    return Attribution(values, mean + values.sum(axis=1), mean)


# first word of a feature's name, without its field of view -> what a pathologist calls it
GROUPS: dict[str, str] = {
    **dict.fromkeys(("r", "g", "b", "red", "green", "blue", "residual"), "colour"),
    "haematoxylin": "haematoxylin",
    "eosin": "eosin",
    **dict.fromkeys(("lbp", "glcm", "grey"), "texture"),
    "nuclei": "nuclei",
}


def feature_group(name: str) -> tuple[str, str]:
    """Field of view and group of a feature.

    Examples
    --------
    >>> feature_group("150um_glcm_contrast_1px"), feature_group("400um_layer3_sd_17")
    (('150 um', 'texture'), ('400 um', 'layer 3, sd'))
    """
    field, _, rest = name.partition("um_")
    layer = re.fullmatch(r"layer(\d+)_([a-z]+)_\d+", rest)
    group = f"layer {layer[1]}, {layer[2]}" if layer else GROUPS.get(rest.split("_")[0], "other")
    return f"{field} um", group


Explain = Callable[[ImageModel, Slide, FloatArray, Sequence[int], Settings], Attribution]


@dataclass(frozen=True)
class Method:
    """One way to explain a prediction.

    Attributes
    ----------
    explain : callable
        From a model, a slide, a point (2,) and columns of the target to an `Attribution`.
    models : tuple of type
        Image terms that have it.
    usual : tuple of type
        Image terms for which it is made unless others are asked for.
    is_map : bool
        A map over the tile, and not a number a feature.
    adds_up : bool
        Whether the values sum to the difference of the two predictions.
    """

    explain: Explain
    models: tuple[type, ...]
    usual: tuple[type, ...]
    is_map: bool
    adds_up: bool


METHODS: dict[str, Method] = {
    "occlusion": Method(occlusion, (Probe, CNN), (Probe,), is_map=True, adds_up=False),
    "gradients": Method(gradients, (CNN,), (CNN,), is_map=True, adds_up=True),
    "contributions": Method(contributions, (Probe,), (Probe,), is_map=False, adds_up=True),
}


def choose_methods(model: ImageModel, wanted: Sequence[str]) -> list[str]:
    """Methods asked for, or the usual ones of this model.

    Raises
    ------
    InputError
        If the model does not have one of them; it names those that it has.
    """
    able = [name for name, row in METHODS.items() if isinstance(model.term, row.models)]
    wrong = [name for name in wanted if name not in able]
    if wrong:
        raise InputError(f"--method {', '.join(wrong)}: this model has {', '.join(able)}")
    usual = [name for name, row in METHODS.items() if isinstance(model.term, row.usual)]
    return list(dict.fromkeys(wanted)) or usual
