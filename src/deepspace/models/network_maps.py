"""Maps of a network's layers over a slide, window by window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepspace.core.errors import InputError
from deepspace.models.field_sums import MapLayer, Moments
from deepspace.models.network import NetworkFeatures

FloatArray = NDArray[np.float64]

VERSION = 2  # raise it when the same network gives other dense features
CORE_PX = 448
# of the side of a window, on each side: with less, and in larger windows, tokens depended more on
# where their window begins (benchmarks/dense.py)
CONTEXT = 0.25
_TRIALS_PX = (224, 448)  # multiples of all strides and tokens
_MARK_PX = 32


class NetworkMaps:
    """Maps of the layers that an encoder reads.

    A layer of convolutions sees a bounded surrounding, which is read as a halo, so that its map
    is the one of the whole slide. Where every cell sees the whole window (tokens of a
    transformer), windows are as large as the patches, and the share `CONTEXT` on each side is
    computed and thrown away.

    Parameters
    ----------
    name
        Of the encoder.
    network
        Reads the layers.
    size_px
        Side of the patches that the encoder reads otherwise.

    Raises
    ------
    InputError
        If the encoder reads a class token, which no map has.
    """

    threaded = False  # a network uses all threads itself

    def __init__(self, name: str, network: NetworkFeatures, size_px: int) -> None:
        if "cls" in network.reading.pooling:
            raise InputError(
                f"encoder {name} reads the class token of a patch, which dense features do not "
                'have; give layers, or take sampling = "crop"'
            )
        self.names = network.feature_names
        self._network = network
        reach, cell = receptive_field(network)
        self._bounded = reach is not None
        if reach is None:
            self.halo_px = math.ceil(size_px * CONTEXT / cell) * cell
            self.core_px = math.ceil(size_px / cell) * cell - 2 * self.halo_px
            self.step_px = self.core_px
        else:
            self.halo_px = math.ceil(reach / cell) * cell
            self.core_px = math.ceil(max(CORE_PX, 4 * self.halo_px) / cell) * cell
            self.step_px = cell
        if self.core_px <= 0:
            raise InputError(
                f"encoder {name}: dense features need patches of more than {2 * self.halo_px} px, "
                f'not {size_px}; give a larger size_px, or take sampling = "crop"'
            )

    def identity(self) -> dict[str, Any]:
        """See `deepspace.models.dense.Maps`."""
        # of a bounded layer the map is that of the whole slide, whatever the windows
        window = [] if self._bounded else [self.core_px, self.halo_px]
        return {"version": VERSION, "window": window}

    @torch.inference_mode()
    def __call__(self, window: NDArray[np.uint8]) -> list[MapLayer]:
        """See `deepspace.models.dense.Maps`."""
        side = window.shape[0]
        layers = []
        for maps in self._network.maps(np.array(window[None])):
            cell = side // maps.shape[-1]
            cut = slice(self.halo_px // cell, maps.shape[-1] - self.halo_px // cell)
            layers.append(MapLayer(cell, maps[0, :, cut, cut]))
        return layers

    def finish(self, moments: Sequence[Moments]) -> FloatArray:
        """See `deepspace.models.dense.Maps`."""
        parts = [
            {"mean": layer.mean, "sd": layer.sd}[how]
            for layer in moments
            for how in self._network.reading.pooling
            if how != "cls"
        ]
        return np.concatenate(parts, axis=1)


def receptive_field(network: NetworkFeatures) -> tuple[int | None, int]:
    """How far beyond its own pixels a cell sees, and the side of the largest cell, in pixels.

    Not-a-numbers in a strip of the input mark every cell that sees them, whatever the weights.
    None is given where a cell sees the whole input.
    """
    for side in _TRIALS_PX:
        blank = np.zeros((1, side, side, 3), np.uint8)
        start = side // 2 // _MARK_PX * _MARK_PX
        marked = network.maps(blank, mark=slice(start, start + _MARK_PX))
        cell = max(side // maps.shape[-1] for maps in marked)
        reaches = [_reach(maps, side, start) for maps in marked]
        known = [reach for reach in reaches if reach is not None]
        if len(known) == len(reaches):
            return max(known), cell
    return None, cell


def _reach(maps: Tensor, side: int, start: int) -> int | None:
    """Pixels between the marked strip and the far side of the farthest cell that saw it."""
    seen = maps.isnan().any(1).any(1)[0].nonzero().flatten()
    cell = side // maps.shape[-1]
    low, high = int(seen.min()), int(seen.max())
    if low == 0 or high == maps.shape[-1] - 1:
        return None
    return max(start - (low + 1) * cell, high * cell - start - _MARK_PX, 0) + cell
