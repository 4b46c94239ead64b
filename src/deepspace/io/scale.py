"""Micrometres per pixel, from what the array's geometry is known to be."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from deepspace.core import keys

Floats = npt.NDArray[np.float64]

# 10x Visium: spots of 55 um, 100 um from centre to centre along a row; rows are 87 um apart (all
# four real position files at hand say 87.00, with square pixels; an exact hexagon would have 86.6)
VISIUM_PITCH_UM: Final = 100.0
VISIUM_ROW_UM: Final = 87.0
VISIUM_SPOT_UM: Final = 55.0
# ST v1 arrays (Stahl 2016, doi 10.1126/science.aaf2403): 100 um spots at 200 um, square
ST_PITCH_UM: Final = 200.0
ST_SPOT_UM: Final = 100.0
# Space Ranger 1.x documents spot_diameter_fullres as the diameter of a theoretical 65 um spot
SPACERANGER_SPOT_UM: Final = (55.0, 65.0)
TOLERANCE: Final = 0.05
# a glass slide of 76 mm; with a wrong mpp an image is larger
LARGEST_MM: Final = 80.0


def hexagonal_um(array_row: npt.ArrayLike, array_col: npt.ArrayLike) -> Floats:
    """Places on a Visium array in micrometres.

    Along a row every second column holds a spot.

    Returns
    -------
    (n, 2) float64, x along the row.
    """
    x = np.asarray(array_col, np.float64) * VISIUM_PITCH_UM / 2
    y = np.asarray(array_row, np.float64) * VISIUM_ROW_UM
    return np.column_stack([x, y])


def array_um(spots: pd.DataFrame, pitch_um: float | None) -> Floats | None:
    """Places on the array, if the indices of the spots are those of a known kind of array.

    Parameters
    ----------
    spots
        With `array_row`, `array_col`; ST's adjusted places `new_x`, `new_y` are preferred.
    pitch_um
        Distance from centre to centre on a square array; a hexagonal one is always Visium's.

    Returns
    -------
    (n, 2) um, x along the row; None where not known.
    """
    if "new_x" in spots and pitch_um:
        return spots[["new_x", "new_y"]].to_numpy(np.float64) * pitch_um
    if not {keys.ARRAY_ROW, keys.ARRAY_COL} <= set(spots):
        return None
    row, col = spots[keys.ARRAY_ROW], spots[keys.ARRAY_COL]
    if pitch_um in (None, VISIUM_PITCH_UM):
        return hexagonal_um(row, col) if is_hexagonal(row, col) else None
    return np.column_stack([col, row]).astype(np.float64) * pitch_um


def array_mpp(spots: pd.DataFrame, pitch_um: float | None) -> float | None:
    """Micrometres per pixel by the pitch of the array; None where that is not known."""
    array = array_um(spots, pitch_um)
    return None if array is None else pitch_mpp(array, spots[["x", "y"]].to_numpy(np.float64))


def is_hexagonal(array_row: npt.ArrayLike, array_col: npt.ArrayLike) -> bool:
    """Say whether array indices are Visium's: row and column are both even or both odd."""
    total = np.asarray(array_row, np.float64) + np.asarray(array_col, np.float64)
    return total.size > 1 and bool(np.all(total % 2 == 0)) and np.ptp(np.asarray(array_row)) > 0


def pitch_mpp(array_um: Floats, pixels: Floats) -> float | None:
    """Micrometres per pixel from known places on the array.

    The median, over pairs of far spots, of their distance on the array by their distance in
    the image. Any rotation or mirroring leaves it unchanged; fewer than half of the spots
    being misplaced moves it little.

    Parameters
    ----------
    array_um
        (n, 2) places on the array, um.
    pixels
        (n, 2) places in the image, px.

    Returns
    -------
    um per px, or None if fewer than three spots have a distance.

    Examples
    --------
    >>> places = np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [100.0, 100.0]])
    >>> round(pitch_mpp(places, places[:, ::-1] / 0.5 + 7), 6)
    0.5
    """
    order = np.lexsort((array_um[:, 0], array_um[:, 1]))
    other = np.roll(order, len(order) // 2)
    um = np.linalg.norm(array_um[order] - array_um[other], axis=1)
    px = np.linalg.norm(pixels[order] - pixels[other], axis=1)
    usable = (um > 0) & (px > 0) & np.isfinite(px)
    if usable.sum() < 3:
        return None
    return float(np.median(um[usable] / px[usable]))


def spot_diameter_um(diameter_px: float, mpp: float) -> float | None:
    """Return which of Space Ranger's nominal spot diameters a diameter in pixels agrees with.

    Examples
    --------
    >>> spot_diameter_um(89.47, 0.725)
    65.0
    >>> spot_diameter_um(89.47, 0.1) is None
    True
    """
    for nominal in SPACERANGER_SPOT_UM:
        if abs(diameter_px * mpp / nominal - 1) <= TOLERANCE:
            return nominal
    return None
