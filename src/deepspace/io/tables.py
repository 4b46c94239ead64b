"""Sections given as one file of counts and one of spots, told apart by content."""

from __future__ import annotations

from pathlib import Path

from deepspace.core.errors import InputError
from deepspace.io import scale, st
from deepspace.io.matrix10x import is_10x_h5, matrix_file, read_matrix
from deepspace.io.parts import Parts, attach_spots
from deepspace.io.positions import is_positions, read_positions


def read_measured_table(counts: Path, spots: Path) -> Parts:
    """Read counts and spots: a 10x matrix with tissue positions, or the tables of an ST array.

    Raises
    ------
    InputError
        If either cannot be read, or the two are of different kinds.
    """
    tenx = counts.is_dir() or counts.suffix == ".h5" or is_10x_h5(counts)
    positions = is_positions(spots)
    if tenx and not positions:
        raise InputError(f"{spots}: is no tissue_positions file, which {counts} needs; give that")
    if positions and not tenx:
        raise InputError(
            f"{spots}: is a tissue_positions file, but {counts} is no 10x matrix; give the .h5 "
            "or the folder of the matrix"
        )
    if not tenx:
        return st.read_st(counts, spots)
    parts = read_spots_only(spots)
    table = parts.spots
    assert table is not None
    parts.counts = attach_spots(read_matrix(counts, parts.notes), table, spots, parts.notes)
    parts.sources["counts"] = matrix_file(counts)
    return parts


def read_spots_only(spots: Path) -> Parts:
    """Read the spots of an unmeasured section: tissue positions or an ST spot file.

    Raises
    ------
    InputError
        If the file is neither.
    """
    if not is_positions(spots):
        return st.spots_only(spots, st.read_spots(spots))
    table = read_positions(spots)
    parts = Parts("visium", spots=table, sources={"spots": spots})
    mpp = scale.array_mpp(table, scale.VISIUM_PITCH_UM)
    if mpp is not None:
        parts.spot_diameter_um, parts.spot_pitch_um = scale.VISIUM_SPOT_UM, scale.VISIUM_PITCH_UM
        parts.scales[f"spot pitch of 100 um in {spots.name}"] = mpp
    return parts
