"""SpatialData stores: a table that annotates spots, and an H&E image (extra `spatial`)."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.core.files import sha256
from deepspace.io.h5ad import from_anndata
from deepspace.io.parts import Parts, Request, clip_list
from deepspace.io.slide import Level, Slide
from deepspace.io.source import Image, Scale, downsample_of

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from deepspace.io.source import PixelSource

_METADATA: Final = ("zarr.json", ".zattrs", ".zgroup")
_RGB: Final = (3, 4)
# the coordinate system that all elements of a store usually have
_COMMON: Final = "global"


class ZarrSource:
    """Pixels of an image element, read chunk by chunk.

    Parameters
    ----------
    arrays
        One lazy array of shape (channels, height, width) per level, full resolution first.
    folder
        Where the element lies on disk.
    """

    def __init__(self, arrays: list[Any], folder: Path) -> None:
        self._arrays = arrays
        self._folder = folder
        self.sizes = tuple((int(a.shape[2]), int(a.shape[1])) for a in arrays)
        self.blocks = tuple((int(a.chunksize[2]), int(a.chunksize[1])) for a in arrays)
        self.downsamples = tuple(downsample_of(self.sizes[0], size) for size in self.sizes)
        self.scale = Scale()
        self.notes: tuple[str, ...] = ()

    @cached_property
    def identity(self) -> str:
        """Digest of every file of the element: its metadata file alone does not tell pixels."""
        digest = hashlib.sha256()
        for file in sorted(path for path in self._folder.rglob("*") if path.is_file()):
            digest.update(f"{file.relative_to(self._folder)} {sha256(file)}\n".encode())
        return digest.hexdigest()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image:
        """Return a window that lies wholly inside the level."""
        window = self._arrays[level][:3, y : y + height, x : x + width]
        return np.ascontiguousarray(np.moveaxis(np.asarray(window.compute()), 0, 2))

    def close(self) -> None:
        """Do nothing: zarr keeps no file open."""


def read_spatialdata(path: Path, request: Request) -> Parts:
    """Read one section from a SpatialData store.

    The table must annotate a shapes element (spots as circles or polygons); its centroids are
    brought into the pixels of the image element. With an image of the user's own, centroids
    are taken as they are stored, which must then be pixels of that image.

    Raises
    ------
    InputError
        If the extra is missing, the store is damaged, or it lacks table, shapes or image.
    """
    try:
        from spatialdata import read_zarr  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InputError(
            f"{path}: reading SpatialData needs an extra; run pip install 'deepspace[spatial]'"
        ) from error
    try:
        data = read_zarr(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as SpatialData ({error})") from error
    name, region, adata = _table(data, path, request)
    shapes = data.shapes[region]
    notes: list[str] = []
    if request.image is None:
        element = _image_name(data, path, notes)
        matrix = _to_pixels(data, region, element, path)
        image: Slide | None = _slide(data, element, path)
    else:
        matrix, image = np.eye(3), None
        notes.append(f"{path}: centroids of {region} are taken as pixels of {request.image}")
    centroids = shapes.geometry.centroid
    places = np.column_stack([centroids.x, centroids.y, np.ones(len(shapes))]) @ matrix.T
    table = pd.DataFrame(places[:, :2], columns=["x", "y"], index=shapes.index)
    adata.obsm[keys.SPATIAL] = table.loc[adata.obs["_instance"]].to_numpy()
    parts = from_anndata(adata, path, "spatialdata")
    parts.image = image
    parts.sources["counts"] = _metadata_file(path / "tables" / name)
    parts.notes = notes + parts.notes
    return parts


def _table(data: SpatialData, path: Path, request: Request) -> tuple[str, str, AnnData]:
    """Return the name of the table, the shapes it annotates, and its rows with a shape."""
    found = []
    for name, table in data.tables.items():
        attrs = table.uns.get("spatialdata_attrs")
        if attrs is None:
            continue
        regions = attrs["region"] if isinstance(attrs["region"], list) else [attrs["region"]]
        found += [(name, region) for region in regions if region in data.shapes]
    # what deepspace put there is no measurement, unless there is nothing else
    users = [pair for pair in found if not _written_here(data.tables[pair[0]])]
    found = users or found
    if len(found) > 1 and request.section is not None:
        found = [pair for pair in found if request.section in pair[1]] or found
    if len(found) != 1:
        pairs = [f"{name} of {region}" for name, region in found]
        have = f"tables: {clip_list([*data.tables])}; shapes: {clip_list([*data.shapes])}"
        cause = f"no table annotates a shapes element ({have})"
        if found:
            cause = f"several tables annotate shapes ({clip_list(pairs)})"
        raise InputError(
            f"{path}: {cause}; give a store with one table that annotates spots, or name one by "
            "section"
        )
    name, region = found[0]
    table = data.tables[name]
    attrs = table.uns["spatialdata_attrs"]
    rows = (table.obs[attrs["region_key"]] == region).to_numpy()
    rows &= table.obs[attrs["instance_key"]].isin(data.shapes[region].index).to_numpy()
    adata = table[rows].copy()
    adata.obs["_instance"] = adata.obs[attrs["instance_key"]].to_numpy()
    return name, region, adata


def _written_here(table: AnnData) -> bool:
    """Whether it is a prediction, or measurements beside one; users' tables may hold our `uns`."""
    return keys.UNS in table.uns and {keys.OOD, keys.SECTION} <= set(table.obs)


def _image_name(data: SpatialData, path: Path, notes: list[str]) -> str:
    """Return the name of the largest RGB image."""
    sizes = {name: arrays[0].shape for name in data.images if (arrays := _levels(data, name))}
    rgb = {name: shape for name, shape in sizes.items() if shape[0] in _RGB}
    if not rgb:
        have = [f"{name} with {shape[0]} channels" for name, shape in sizes.items()]
        raise InputError(
            f"{path}: no RGB image element ({clip_list(have) or 'no images'}); add the H&E image "
            "to the store, or give its file as image"
        )
    name: str = max(rgb, key=lambda key: rgb[key][1] * rgb[key][2])
    if len(rgb) > 1:
        others = clip_list([key for key in rgb if key != name])
        notes.append(f"{path}: the largest image, {name}, is read (also there: {others})")
    return name


def _levels(data: SpatialData, name: str) -> list[Any]:
    element = data.images[name]
    # a pyramid is a tree with one child per scale; a single image is an array itself
    children = getattr(element, "children", None)
    arrays = [element] if children is None else [child["image"] for child in children.values()]
    return [array.transpose("c", "y", "x").data for array in arrays]


def _to_pixels(data: SpatialData, region: str, image: str, path: Path) -> npt.NDArray[np.float64]:
    """3 x 3 matrix from the shapes' own coordinates to pixels of the image."""
    from spatialdata.transformations import get_transformation  # noqa: PLC0415 - an extra

    ways = [get_transformation(data[name], get_all=True) for name in (region, image)]
    shared = sorted(set(ways[0]) & set(ways[1]), key=lambda name: (name != _COMMON, name))
    if not shared:
        raise InputError(
            f"{path}: {region} and {image} share no coordinate system ({region} lies in "
            f"{clip_list(ways[0])}; {image} in {clip_list(ways[1])}); align them"
        )
    axes = ("x", "y")
    there, back = (way[shared[0]].to_affine_matrix(axes, axes) for way in ways)
    return np.asarray(np.linalg.inv(back) @ there, np.float64)


def _slide(data: SpatialData, name: str, path: Path) -> Slide:
    arrays = _levels(data, name)
    if arrays[0].dtype != np.uint8:
        raise InputError(
            f"{path}: image {name} holds {arrays[0].dtype}; 8 bits a channel are needed (uint8)"
        )
    folder = path / "images" / name
    source = ZarrSource(arrays, folder)
    levels = tuple(
        Level(width, height, downsample)
        for (width, height), downsample in zip(source.sizes, source.downsamples, strict=True)
    )
    # its identity is a property, because it costs reading the whole element
    return Slide(_metadata_file(folder), None, None, levels, (), cast("PixelSource", source))


def _metadata_file(folder: Path) -> Path:
    """File that stands for a folder of the store where one file is wanted."""
    return next((folder / name for name in _METADATA if (folder / name).is_file()), folder)
