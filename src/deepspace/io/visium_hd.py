"""Visium HD: `binned_outputs/square_XXXum`, one folder per size of the square bins."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from deepspace.core.errors import InputError
from deepspace.io import scale, spaceranger
from deepspace.io.matrix10x import matrix_file, read_matrix
from deepspace.io.parts import Parts, Request, attach_spots
from deepspace.io.positions import read_positions

DEFAULT_BIN_UM: Final = 8
_SQUARE: Final = re.compile(r"^square_(\d+)um$")


def is_visium_hd(folder: Path) -> bool:
    """Say whether a folder is an HD `outs/`, `binned_outputs/` or `square_XXXum/`."""
    return bool(_SQUARE.match(folder.name)) or bool(_bins(folder))


def read_visium_hd(folder: Path, request: Request) -> Parts:
    """Read one bin size of a Visium HD section.

    Raises
    ------
    InputError
        If the bin size is not there, or a file is missing or cannot be read.
    """
    notes: list[str] = []
    square = _choose_bin(folder, request, notes)
    positions = spaceranger.find(
        square, ("tissue_positions.parquet", "tissue_positions.csv"), request
    )
    spots = read_positions(positions)
    matrix = spaceranger.find_matrix(square, request, notes)
    parts = Parts("visium_hd", spots=spots, notes=notes)
    parts.counts = attach_spots(read_matrix(matrix, notes), spots, positions, notes)
    parts.sources = {"spots": positions, "counts": matrix_file(matrix)}
    spaceranger.add_clusters(square, parts.counts, parts)
    spaceranger.add_scalefactors(square, request, parts)
    named = _SQUARE.match(square.name)
    bin_um = parts.scalefactors.get("bin_size_um") or float(named[1] if named else DEFAULT_BIN_UM)
    parts.spot_diameter_um = parts.spot_pitch_um = bin_um
    if stated := parts.scalefactors.get("microns_per_pixel"):
        parts.scales["Space Ranger's microns_per_pixel"] = stated
    mpp = scale.array_mpp(spots, bin_um)
    if mpp is not None:
        parts.scales[f"bin size of {bin_um:g} um in {positions.name}"] = mpp
    parts.image = request.image or spaceranger.find_image(_outs(square), request)
    return parts


def _choose_bin(folder: Path, request: Request, notes: list[str]) -> Path:
    if _SQUARE.match(folder.name):
        return folder
    bins = _bins(folder)
    wanted = request.bin_um or DEFAULT_BIN_UM
    if wanted not in bins:
        have = ", ".join(f"{size} um" for size in sorted(bins))
        raise InputError(
            f"{folder}: no bins of {wanted} um; it has {have}: give bin_um or the folder"
        )
    if request.bin_um is None:
        notes.append(
            f"{folder}: bins of {DEFAULT_BIN_UM} um are read; for others give their folder"
        )
    return bins[wanted]


def _bins(folder: Path) -> dict[int, Path]:
    root = folder / "binned_outputs" if (folder / "binned_outputs").is_dir() else folder
    return {
        int(match[1]): path
        for path in root.glob("square_*um")
        if path.is_dir() and (match := _SQUARE.match(path.name))
    }


def _outs(square: Path) -> Path:
    binned = square.absolute().parent
    return binned.parent if binned.name == "binned_outputs" else binned
