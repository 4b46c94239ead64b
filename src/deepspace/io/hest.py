"""HEST-1k's layout: `st/ID.h5ad`, `wsis/ID.tif`, `metadata/ID.json` (patches are ignored)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from deepspace.core.errors import InputError
from deepspace.io import scale
from deepspace.io.h5ad import read_h5ad
from deepspace.io.parts import Parts, Request, clip_list
from deepspace.io.text import read_text

_IMAGES: Final = (".tif", ".tiff")
# technology in the metadata -> diameter and pitch of its spots, um; for Xenium HEST pools
# transcripts into squares of 100 um, and Visium HD into squares of 128 um
_SPOTS: Final = {
    "visium": (scale.VISIUM_SPOT_UM, scale.VISIUM_PITCH_UM),
    "spatial transcriptomics": (scale.ST_SPOT_UM, scale.ST_PITCH_UM),
    "xenium": (100.0, 100.0),
}


def is_hest(path: Path) -> bool:
    """Say whether a path is a HEST folder, or an `.h5ad` in the `st/` of one."""
    if path.is_file():
        root = path.absolute().parent
        return root.name == "st" and (root.parent / "wsis").is_dir()
    return (path / "st").is_dir() and any((path / "st").glob("*.h5ad"))


def read_hest(path: Path, request: Request) -> tuple[Parts, str]:
    """Read one sample.

    Returns
    -------
    Its parts, and its identifier.

    Raises
    ------
    InputError
        If the folder holds several samples and none was named, or a file cannot be read.
    """
    counts = path if path.is_file() else _choose(path, request.section)
    root, name = counts.absolute().parent.parent, counts.stem
    parts = read_h5ad(counts, platform="hest")
    metadata = root / "metadata" / f"{name}.json"
    if metadata.is_file():
        _add_metadata(metadata, parts)
    else:
        parts.notes.append(f"{metadata}: is not there: HEST's pixel size is unknown")
    parts.image = request.image or _image(root, name)
    return parts, name


def _choose(folder: Path, section: str | None) -> Path:
    files = sorted((folder / "st").glob("*.h5ad"))
    named = [file for file in files if file.stem == section]
    if named:
        return named[0]
    if len(files) == 1:
        return files[0]
    raise InputError(
        f"{folder}: holds {len(files)} samples ({clip_list([file.stem for file in files])}); name "
        "one by its st/ID.h5ad, or list them in a sheet (column h5ad)"
    )


def _image(root: Path, name: str) -> Path:
    for suffix in _IMAGES:
        path = root / "wsis" / f"{name}{suffix}"
        if path.is_file():
            return path
    raise InputError(f"{root / 'wsis' / name}.tif: no such image; download it, or give another one")


def _add_metadata(path: Path, parts: Parts) -> None:
    try:
        metadata: dict[str, Any] = json.loads(read_text(path))
        items = metadata.items()
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: is not a JSON object ({error}); download it again") from error
    numbers = {k: float(v) for k, v in items if isinstance(v, int | float) and v > 0}
    # HEST fits the estimate to the spots; the embedded one is the image's own, sometimes wrong
    stated = {
        f"HEST's {key}": numbers[key]
        for key in ("pixel_size_um_estimated", "pixel_size_um_embedded")
        if key in numbers
    }
    parts.scales = {**stated, **parts.scales}
    technology = str(metadata.get("st_technology", "")).lower()
    if technology in _SPOTS:
        parts.spot_diameter_um, parts.spot_pitch_um = _SPOTS[technology]
    parts.sources["metadata"] = path
