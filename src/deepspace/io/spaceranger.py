"""Space Ranger `outs/` folders of Visium, versions 1 to 4, whole or as downloaded in pieces."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

import pandas as pd
from anndata import AnnData

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.io import scale
from deepspace.io.matrix10x import matrix_file, read_matrix
from deepspace.io.parts import Parts, Request, as_category, attach_spots, clip_list
from deepspace.io.positions import read_positions
from deepspace.io.text import read_text, stream

_POSITIONS: Final = (
    "tissue_positions.parquet",
    "tissue_positions.csv",
    "tissue_positions_list.csv",
)
_MATRICES: Final = {
    kind: (f"{kind}_feature_bc_matrix.h5", f"{kind}_feature_bc_matrix")
    for kind in ("filtered", "raw")
}
_SCALES: Final = ("scalefactors_json.json",)
_CYTASSIST: Final = ("cytassist_image.tiff",)
_CLUSTERINGS: Final = ("graphclust", "gene_expression_graphclust")
_IMAGE_SUFFIXES: Final = (".tif", ".tiff", ".btf", ".svs", ".ndpi", ".mrxs", ".scn")
# pictures of Space Ranger's own, none of them the full-resolution H&E image
_OWN_PICTURES: Final = ("cytassist_image", "tissue_hires", "tissue_lowres", "aligned_", "detected_")


def may_be_spaceranger(folder: Path) -> bool:
    """Say whether a folder holds tissue positions or a matrix, even if other files are missing."""
    return any(_candidates(folder, names) for names in (_POSITIONS, *_MATRICES.values()))


def read_spaceranger(folder: Path, request: Request) -> Parts:
    """Read one Visium section.

    File names may carry a `{sample}_` prefix, and `spatial/` may be flattened, as in the
    Gene Expression Omnibus.

    Raises
    ------
    InputError
        If a file is missing or cannot be read, or no full-resolution image is known.
    """
    positions = find(folder, _POSITIONS, request)
    parts = Parts("visium", spots=read_positions(positions))
    parts.sources["spots"] = positions
    spots = parts.spots
    assert spots is not None
    matrix = find_matrix(folder, request, parts.notes)
    counts = attach_spots(read_matrix(matrix, parts.notes), spots, positions, parts.notes)
    parts.counts = counts
    parts.sources["counts"] = matrix_file(matrix)
    parts.spot_diameter_um, parts.spot_pitch_um = scale.VISIUM_SPOT_UM, scale.VISIUM_PITCH_UM
    add_clusters(folder, counts, parts)
    add_scalefactors(folder, request, parts)
    _add_scales(parts, positions.name)
    if cytassist := _candidates(folder, _CYTASSIST):
        parts.sources["cytassist"] = cytassist[0]
    parts.image = request.image or find_image(folder, request)
    return parts


def _add_scales(parts: Parts, name: str) -> None:
    """Scale by the pitch, which is exact; by the spot's diameter only if there is no pitch.

    `spot_diameter_fullres` is nominal: 10x's documentation calls it the diameter of a
    "theoretical 65 um spot" (2019-2022) while the spots are 55 um.
    """
    spots = parts.spots
    assert spots is not None
    mpp = scale.array_mpp(spots, scale.VISIUM_PITCH_UM)
    diameter = parts.scalefactors.get("spot_diameter_fullres")
    if mpp is not None:
        parts.scales[f"spot pitch of 100 um in {name}"] = mpp
    if not diameter or diameter <= 0:
        return
    if mpp is None:
        parts.scales["spot_diameter_fullres as 65 um"] = 65.0 / diameter
    elif scale.spot_diameter_um(diameter, mpp) is None:
        parts.scales["spot_diameter_fullres as 55 um"] = scale.VISIUM_SPOT_UM / diameter


def sample_name(folder: Path) -> str:
    """Return the name of the sample that a folder inside or around `outs/` belongs to."""
    parts = [part for part in folder.absolute().parts if not _STRUCTURE.match(part)]
    return parts[-1] if len(parts) > 1 else folder.name


_STRUCTURE: Final = re.compile(r"^(outs|spatial|binned_outputs|square_\d+um)$")


def find(folder: Path, names: tuple[str, ...], request: Request) -> Path:
    """Return the file of one of these names, with or without prefix, in `spatial/` or not.

    Raises
    ------
    InputError
        If there is none, or there are several and the section's id does not tell.
    """
    found = _candidates(folder, names)
    if not found:
        raise InputError(
            f"{folder}: holds no {' or '.join(names)}, neither in spatial/ nor beside it; "
            "copy Space Ranger's whole outs/ folder"
        )
    return _only_sample(folder, found, request)


def find_matrix(folder: Path, request: Request, notes: list[str]) -> Path:
    """Return the filtered (or, when asked or alone, the raw) matrix: .h5 before folder.

    Raises
    ------
    InputError
        If there is none.
    """
    order = ("raw", "filtered") if request.raw else ("filtered", "raw")
    for kind in order:
        found = _candidates(folder, _MATRICES[kind])
        if found:
            chosen = _only_sample(folder, found, request)
            if kind != order[0]:
                notes.append(
                    f"{folder}: no {order[0]}_feature_bc_matrix: {chosen.name} is read instead"
                )
            return chosen
    raise InputError(
        f"{folder}: holds no filtered_feature_bc_matrix (.h5 or folder); copy it from Space "
        "Ranger's outs/"
    )


def add_scalefactors(folder: Path, request: Request, parts: Parts) -> None:
    """Read scalefactors_json.json, if it is there.

    Raises
    ------
    InputError
        If it is not a flat JSON object of numbers.
    """
    if not _candidates(folder, _SCALES):
        parts.notes.append(f"{folder}: no {_SCALES[0]}: the spot size cannot be cross-checked")
        return
    path = find(folder, _SCALES, request)
    try:
        content = json.loads(read_text(path))
        parts.scalefactors = {
            str(name): float(value)
            for name, value in content.items()
            if isinstance(value, int | float)
        }
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: is not a JSON object ({error}); copy it again") from error
    parts.sources["scalefactors"] = path


def add_clusters(folder: Path, counts: AnnData, parts: Parts) -> None:
    """Read Space Ranger's clusters into `obs['cluster']`: graph-based, else the largest k."""
    path = _clusters(folder)
    if path is None:
        return
    table = pd.read_csv(stream(read_text(path)), dtype=str)
    if not {"Barcode", "Cluster"} <= set(table):
        raise InputError(f"{path}: no columns Barcode, Cluster; copy it again")
    labels = table.drop_duplicates("Barcode").set_index("Barcode")["Cluster"]
    joined = labels.reindex(counts.obs_names)
    missing = int(joined.isna().sum())
    if missing:
        parts.notes.append(f"{path}: {missing} of {counts.n_obs} spots have no cluster")
    counts.obs[keys.CLUSTER] = as_category(joined)
    parts.sources["clusters"] = path
    parts.clusters_of_run = True


def _clusters(folder: Path) -> Path | None:
    root = folder / "analysis" / "clustering"
    if not root.is_dir():
        return None
    for name in _CLUSTERINGS:
        if (root / name / "clusters.csv").is_file():
            return root / name / "clusters.csv"
    kmeans = {
        int(match[1]): path
        for path in root.glob("*kmeans_*_clusters/clusters.csv")
        if (match := re.search(r"kmeans_(\d+)_clusters", path.parent.name))
    }
    return kmeans[max(kmeans)] if kmeans else None


def find_image(folder: Path, request: Request) -> Path:
    """Return the only full-resolution image in or around an outs folder.

    Raises
    ------
    InputError
        If there is none, or more than one.
    """
    places = [folder / "spatial", folder, folder / "image", folder / "images"]
    if folder.name == "outs":
        places += [folder.parent, folder.parent / "image", folder.parent / "images"]
    for place in places:
        found = sorted(path for path in place.glob("*") if _may_be_image(path))
        if len(found) > 1:
            own = [path for path in found if request.section and request.section in path.name]
            own = own or [path for path in found if path.name.startswith(("full_image", "image."))]
            found = own if len(own) == 1 else found
        if len(found) > 1:
            raise InputError(
                f"{place}: several images ({clip_list([path.name for path in found])}); "
                "name the full-resolution H&E image in the sheet's column image"
            )
        if found:
            return found[0]
    raise InputError(
        f"{folder}: no full-resolution image. Space Ranger does not copy it to outs/ (the hires, "
        "lowres and CytAssist pictures there are too small): give the file that was passed to "
        "spaceranger count --image, in the sheet's column image or as read_section(..., image=...)"
    )


def _may_be_image(path: Path) -> bool:
    return path.suffix.lower() in _IMAGE_SUFFIXES and not any(
        own in path.name.lower() for own in _OWN_PICTURES
    )


def _candidates(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Files of the first name that exists, plain before prefixed, `spatial/` before flat."""
    for place in (folder / "spatial", folder):
        for name in names:
            if (place / name).exists():
                return [place / name]
            if prefixed := sorted(place.glob(f"*_{name}")):
                return prefixed
            if prefixed := sorted(place.glob(f"*_{name}.gz")):
                return prefixed
    return []


def _only_sample(folder: Path, found: list[Path], request: Request) -> Path:
    if len(found) == 1:
        return found[0]
    own = [path for path in found if request.section and request.section in path.name]
    if len(own) == 1:
        return own[0]
    raise InputError(
        f"{folder}: files of several samples ({clip_list([path.name for path in found])}); put "
        "each sample into its own folder, or name the section as its files' prefix"
    )
