"""Where things are: the section in the block, the spots on the slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from deepspace.simulate.fields import Floats

PITCH_UM = 100.0
SPOT_UM = 55.0
# Space Ranger's spot_diameter_fullres is that of a theoretical 65 um spot, by its manual
SCALEFACTOR_SPOT_UM = 65.0
SCALEFACTOR_FIDUCIAL_UM = 105.0


@dataclass(frozen=True)
class Transform:
    """Rigid map from the pixels of a section's image to the block, in um.

    Attributes
    ----------
    mpp
        Micrometres per pixel.
    rotation_deg
        Rotation from image to block axes (x towards y).
    shift_um
        Where the centre of the image lies in the block, x and y.
    size_px
        Side of the square image.
    """

    mpp: float
    rotation_deg: float
    shift_um: tuple[float, float]
    size_px: int

    @property
    def matrix(self) -> Floats:
        """(2, 3) affine: block um = matrix @ (x px, y px, 1)."""
        angle = np.deg2rad(self.rotation_deg)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = turn * self.mpp
        centre = np.full(2, (self.size_px - 1) / 2)
        return np.column_stack([linear, np.asarray(self.shift_um) - linear @ centre])

    def to_block(self, coords: Floats) -> Floats:
        """Pixels ``(n, 2)`` x, y to block um ``(n, 2)``."""
        matrix = self.matrix
        return np.asarray(coords, dtype=float) @ matrix[:, :2].T + matrix[:, 2]

    def to_section(self, xy_um: Floats) -> Floats:
        """Block um ``(n, 2)`` to pixels ``(n, 2)``; the inverse of `to_block`."""
        matrix = self.matrix
        offset = np.asarray(xy_um, dtype=float) - matrix[:, 2]
        return np.asarray(np.linalg.solve(matrix[:, :2], offset.T).T, dtype=np.float64)


def spot_lattice(side_um: float, margin_um: float, mpp: float) -> pd.DataFrame:
    """All spots of a Visium capture area, as on the glass.

    Rows lie 100 um * sqrt(3) / 2 apart, spots of a row 100 um, and odd rows are shifted by
    half of that; neighbours in a row differ by 2 in ``array_col``, as in 10x's files.

    Returns
    -------
    pandas.DataFrame
        Columns array_row, array_col, x, y; x and y in whole full-resolution pixels, because
        Space Ranger writes whole pixels.
    """
    row_um = PITCH_UM * np.sqrt(3) / 2
    n_rows, n_cols = int(side_um / row_um) + 1, int(side_um / (PITCH_UM / 2))
    row, col = np.divmod(np.arange(n_rows * n_cols), n_cols)
    keep = (row + col) % 2 == 0
    row, col = row[keep], col[keep]
    # centre the lattice in the image
    spare_x = side_um - (n_cols - 1) * PITCH_UM / 2
    spare_y = side_um - (n_rows - 1) * row_um
    x_um = margin_um + spare_x / 2 + col * PITCH_UM / 2
    y_um = margin_um + spare_y / 2 + row * row_um
    return pd.DataFrame(
        {
            "array_row": row,
            "array_col": col,
            "x": np.rint(x_um / mpp),
            "y": np.rint(y_um / mpp),
        }
    )


def barcodes(n: int, rng: np.random.Generator) -> list[str]:
    """`n` different 16-mers with the suffix ``-1``, sorted as in 10x's matrices."""
    found: set[str] = set()
    while len(found) < n:
        letters = rng.integers(0, 4, size=(n - len(found), 16))
        found.update("".join("ACGT"[i] for i in row) + "-1" for row in letters)
    return sorted(found)
