"""Tell by a path's content which reader it needs."""

from __future__ import annotations

from pathlib import Path

from deepspace.core.errors import InputError
from deepspace.io import h5ad, hest, spaceranger, visium_hd
from deepspace.io.matrix10x import is_10x_h5
from deepspace.io.parts import Parts, Request

_KNOWN = (
    "a Space Ranger outs/ folder, a Visium HD folder, a HEST folder, an .h5ad, a SpatialData .zarr "
    "or a sheet (.csv)"
)


class UnknownInputError(InputError):
    """Neither data nor anything else that deepspace knows."""


def read_parts(path: Path, request: Request) -> tuple[Parts, str]:
    """Read whatever `path` is.

    Returns
    -------
    Its parts, and the name that its files give the section.

    Raises
    ------
    InputError
        If nothing is there, or nothing that is known.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the path")
    if path.is_file():
        return _read_file(path, request)
    if _is_zarr(path):
        from deepspace.io.spatialdata_zarr import read_spatialdata  # noqa: PLC0415 - an extra

        return read_spatialdata(path, request), path.stem
    if hest.is_hest(path):
        return hest.read_hest(path, request)
    if visium_hd.is_visium_hd(path):
        return visium_hd.read_visium_hd(path, request), spaceranger.sample_name(path)
    if (path / "model.json").is_file():
        raise InputError(f"{path}: is a model of deepspace, not data; give {_KNOWN}")
    if spaceranger.may_be_spaceranger(path):
        return spaceranger.read_spaceranger(path, request), spaceranger.sample_name(path)
    raise UnknownInputError(f"{path}: is not a folder that can be read; give {_KNOWN}")


def _read_file(path: Path, request: Request) -> tuple[Parts, str]:
    if path.suffix == ".h5ad":
        if hest.is_hest(path):
            return hest.read_hest(path, request)
        return h5ad.read_h5ad(path), path.stem
    if path.suffix == ".h5" and is_10x_h5(path):
        raise InputError(
            f"{path}: is a matrix without places; give the outs/ folder that it lies in, or a "
            "sheet with counts and spots"
        )
    raise UnknownInputError(f"{path}: is not a file that can be read; give {_KNOWN}")


def _is_zarr(path: Path) -> bool:
    return any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs"))
