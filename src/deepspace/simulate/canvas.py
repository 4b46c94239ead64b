"""The pixel grids of one section: coarse for the tissue, working for texture, full for nuclei."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from deepspace.simulate.fields import Floats, Raster
from deepspace.simulate.geometry import Transform
from deepspace.simulate.tissue import Local, Tissue

_COARSE_UM = 4.0
_WORK_UM = 1.2


@dataclass(frozen=True)
class Canvas:
    """A square section of the block and the grids it is drawn on.

    Attributes
    ----------
    transform
        From image pixels to the block.
    z_um
        Depth of the section in the block.
    """

    transform: Transform
    z_um: float

    @property
    def size(self) -> int:
        """Side of the full image, px."""
        return self.transform.size_px

    @property
    def coarse(self) -> int:
        """Full pixels per coarse pixel."""
        return max(1, round(_COARSE_UM / self.transform.mpp))

    @property
    def coarse_size(self) -> int:
        """Side of the coarse grid, px."""
        return -(-self.size // self.coarse)

    @property
    def work(self) -> int:
        """Full pixels per working pixel."""
        return max(1, round(_WORK_UM / self.transform.mpp))

    @property
    def work_um(self) -> float:
        """Micrometres per working pixel."""
        return self.work * self.transform.mpp

    @property
    def work_size(self) -> int:
        """Side of the working grid, px."""
        return -(-self.size // self.work)

    def pixels(self, step: int) -> Floats:
        """Full-resolution x, y ``(n, 2)`` of the pixel centres of a coarser grid, row by row.

        `step` is the number of full pixels per pixel of that grid.
        """
        side = -(-self.size // step)
        rows, cols = np.divmod(np.arange(side * side), side)
        return self.centres(rows, cols, step)

    def centres(
        self, rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64], step: int
    ) -> Floats:
        """Full-resolution x, y ``(n, 2)`` of the centres of some pixels of a coarser grid."""
        grid = np.column_stack([cols, rows]).astype(np.float64)
        return grid * step + (step - 1) / 2

    def lift(self, coords: Floats) -> Floats:
        """Full-resolution pixels ``(n, 2)`` to block um ``(n, 3)``."""
        return np.column_stack([self.transform.to_block(coords), np.full(len(coords), self.z_um)])

    def tissue(self, tissue: Tissue) -> Local:
        """The tissue on the coarse grid, arrays of shape (coarse size, coarse size)."""
        local = tissue.local(self.lift(self.pixels(self.coarse)))
        return Local(*(part.reshape(self.coarse_size, self.coarse_size) for part in local))

    def to_work(self, coarse: Raster) -> Raster:
        """Coarse grid to working grid."""
        return enlarge(coarse, self.work_size, self.work_size * self.work / self.coarse)

    def to_full(self, work: Raster) -> Raster:
        """Working grid to full image."""
        return enlarge(work, self.size, self.size / self.work)

    def sample(self, coarse: Raster, coords: Floats) -> Raster:
        """Value of a coarse raster at full-resolution pixels ``(n, 2)``."""
        index = (coords[:, ::-1].T - (self.coarse - 1) / 2) / self.coarse
        values: Raster = ndimage.map_coordinates(coarse, index, order=1, mode="nearest")
        return values


def enlarge(raster: Raster, size: int, span: float) -> Raster:
    """Resample the top left `span` pixels of a square raster to `size` pixels."""
    image = Image.fromarray(np.ascontiguousarray(raster, dtype=np.float32))
    limit = min(span, float(raster.shape[0]))
    grown = image.resize((size, size), Image.Resampling.BICUBIC, box=(0.0, 0.0, limit, limit))
    return np.array(grown, dtype=np.float32)
