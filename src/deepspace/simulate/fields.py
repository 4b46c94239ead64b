"""Smooth random fields in three dimensions, and the array types of this package."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float64]
Raster = npt.NDArray[np.float32]

_VOXELS_PER_LENGTH = 3.0  # linear interpolation between voxels is then smooth to the eye


class RandomField:
    """White noise smoothed by a Gaussian: stationary, mean 0, variance 1.

    Two points at distance ``d`` correlate by ``exp(-d^2 / (4 length_um^2))``.

    Parameters
    ----------
    rng
        Source of the noise.
    box
        (2, 3) lowest and highest x, y, z in um; outside it the nearest value holds.
    length_um
        Sigma of the smoothing Gaussian in x and y.
    length_z_um
        The same in z; `length_um` if not given.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        box: Floats,
        length_um: float,
        length_z_um: float | None = None,
    ) -> None:
        lengths = np.array([length_um, length_um, length_z_um or length_um])
        self._voxel = lengths / _VOXELS_PER_LENGTH
        self._origin = box[0]
        shape = np.ceil((box[1] - box[0]) / self._voxel).astype(int) + 2
        # margin: no voxel sees the border of the noise
        pad = int(3 * _VOXELS_PER_LENGTH)
        noise = rng.standard_normal(tuple(shape + 2 * pad), dtype=np.float32)
        smooth = ndimage.gaussian_filter(noise, _VOXELS_PER_LENGTH, truncate=3.0)
        inner = smooth[pad:-pad, pad:-pad, pad:-pad]
        self._grid = (inner - inner.mean()) / inner.std()

    def at(self, xyz: Floats) -> Raster:
        """Value at points ``(n, 3)`` in um; shape ``(n,)``."""
        index = ((xyz - self._origin) / self._voxel).T
        values: Raster = ndimage.map_coordinates(self._grid, index, order=1, mode="nearest")
        return values
