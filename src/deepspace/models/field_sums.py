"""Sums of maps over fields of view, by summed-area tables (Crow, SIGGRAPH 1984)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]

# an sd below this part of the mean square is rounding of a constant map
_ROUNDING = 1e-11
_CHANNELS = 256  # summed up at once, with their squares twice as many


@dataclass(frozen=True)
class MapLayer:
    """Some channels of an encoder's map over the core of a window.

    Attributes
    ----------
    cell_px
        Side of a cell in pixels of the window.
    maps
        (c, n, n) float32 or float64, rows downwards.
    squares
        Whether the standard deviation is wanted, too.
    """

    cell_px: int
    maps: Tensor
    squares: bool = True


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation over fields of view, shape (points, channels)."""

    mean: FloatArray
    sd: FloatArray


class FieldSums:
    """Sums of maps, and of their squares, over the fields of view of points.

    Parameters
    ----------
    n_points
        How many points.
    side
        Of their fields of view in pixels.
    """

    def __init__(self, n_points: int, side: float) -> None:
        self._n_points = n_points
        self._side = side
        self._first: list[Tensor] = []
        self._second: list[Tensor | None] = []
        self._cells: list[float] = []

    @torch.inference_mode()
    def add(
        self, layers: Sequence[MapLayer], points: NDArray[np.int64], corners: FloatArray
    ) -> None:
        """Add what one window holds.

        Parameters
        ----------
        layers
            Maps of its core.
        points
            Rows of those whose fields touch it.
        corners
            Of their fields, pixels from the corner of the core, shape (len(points), 2).
        """
        if not self._first:
            self._start(layers)
        rows = torch.from_numpy(points).to(layers[0].maps.device)
        for k, layer in enumerate(layers):
            edges = _edges(corners, self._side, layer)
            for start in range(0, len(layer.maps), _CHANNELS):
                part = slice(start, start + _CHANNELS)
                maps, second = layer.maps[part], self._second[k]
                sums = _field_sums(_table(maps, squares=second is not None), edges)
                self._first[k][rows, part] += sums[:, : len(maps)]
                if second is not None:
                    second[rows, part] += sums[:, len(maps) :]

    def _start(self, layers: Sequence[MapLayer]) -> None:
        for layer in layers:
            shape, device = (self._n_points, len(layer.maps)), layer.maps.device
            self._first.append(torch.zeros(shape, dtype=torch.float64, device=device))
            more = torch.zeros_like(self._first[-1]) if layer.squares else None
            self._second.append(more)
            self._cells.append((self._side / layer.cell_px) ** 2)

    def moments(self) -> list[Moments]:
        """Mean and standard deviation of every layer; a layer without squares has no columns."""
        found = []
        for first, second, cells in zip(self._first, self._second, self._cells, strict=True):
            mean = (first / cells).cpu().numpy()
            if second is None:
                found.append(Moments(mean, np.empty((len(mean), 0))))
                continue
            square = (second / cells).cpu().numpy()
            variance = square - mean**2
            variance[variance <= _ROUNDING * square] = 0.0
            found.append(Moments(mean, np.sqrt(variance)))
        return found


@dataclass(frozen=True)
class _Edges:
    """Entries of a table, and their weights, that make the sum over each field along one axis."""

    index: Tensor
    weight: Tensor


def _edges(corners: FloatArray, side: float, layer: MapLayer) -> tuple[_Edges, _Edges]:
    """Along x and along y: four entries a point, two at each end of its field.

    Between two entries a table is interpolated, so that a cell that is cut counts in part.
    """
    n = layer.maps.shape[-1]
    found = []
    for axis in (0, 1):
        ends = np.clip(np.stack([corners[:, axis], corners[:, axis] + side]) / layer.cell_px, 0, n)
        low = np.minimum(np.floor(ends), n - 1)
        part = ends - low
        index = np.stack([low[0], low[0] + 1, low[1], low[1] + 1]).astype(np.int64)
        weight = np.stack([part[0] - 1, -part[0], 1 - part[1], part[1]])
        pair = (torch.from_numpy(values).to(layer.maps.device) for values in (index, weight))
        found.append(_Edges(*pair))
    return found[0], found[1]


def _table(maps: Tensor, *, squares: bool) -> Tensor:
    """Summed-area table (n + 1, n + 1, c) of maps (c, n, n), with that of their squares: 2 c."""
    channels, n, _ = maps.shape
    width = 2 * channels if squares else channels
    table = maps.new_empty((n + 1, n + 1, width), dtype=torch.float64)
    table[0], table[1:, 0] = 0.0, 0.0
    inner = table[1:, 1:]
    own = inner[..., :channels]
    own.copy_(maps.permute(1, 2, 0))
    if squares:
        torch.mul(own, own, out=inner[..., channels:])
    if maps.device.type != "cpu":
        inner.copy_(inner.cumsum(0).cumsum(1))
        return table
    # on a processor cumsum jumps through memory along the axis that it sums; whole lines do not
    for row in range(1, n):
        inner[row] += inner[row - 1]
    for column in range(1, n):
        inner[:, column] += inner[:, column - 1]
    return table


def _field_sums(table: Tensor, edges: tuple[_Edges, _Edges]) -> Tensor:
    """Sums (points, c) over each point's field, the part of it that lies in the table."""
    x, y = edges
    total = torch.zeros((x.index.shape[1], table.shape[2]), dtype=table.dtype, device=table.device)
    for i in range(4):
        line = torch.zeros_like(total)
        for j in range(4):
            line += table[y.index[i], x.index[j]] * x.weight[j, :, None]
        total += line * y.weight[i, :, None]
    return total
