"""A predicted volume on disk: OME-Zarr (NGFF 0.5), written plane by plane.

One store holds two images, `mean` and `sd`, each (genes, z, y, x) in micrometres, as a collection
of images that viewers of OME-Zarr open. Lateral pyramids are left out: a plane of a predicted
volume is some hundred pixels wide.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray
from zarr.codecs import BloscCodec

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.core.files import atomic_folder, check_output

FloatArray = NDArray[np.float64]

NGFF: Final = "0.5"
AXES: Final = ("c", "z", "y", "x")
MEAN: Final = "mean"
IMAGES: Final = (MEAN, keys.SD)
LEVEL: Final = "0"
# a volume that holds this file was written here
MARKER: Final = "mean/zarr.json"
# file size bounds: genes of one plane share a file, of about this many voxels
VOXELS: Final = 4_000_000
MOST_GENES: Final = 64
SIDE: Final = 1024
COLOURS: Final = ("FFFFFF", "FF00FF", "00FFFF", "FFFF00")


@dataclass(frozen=True)
class VolumeGrid:
    """Lattice of voxels; every triple is in the order z, y, x.

    Attributes
    ----------
    shape : tuple of int
        Number of voxels.
    step_um : tuple of float
        Distance between their centres.
    origin_um : tuple of float
        Centre of the first voxel.
    """

    shape: tuple[int, int, int]
    step_um: tuple[float, float, float]
    origin_um: tuple[float, float, float]

    @property
    def z_um(self) -> FloatArray:
        """Depth of every plane, (planes,)."""
        return self.origin_um[0] + self.step_um[0] * np.arange(self.shape[0], dtype=np.float64)

    def plane_points(self) -> FloatArray:
        """Centres of the voxels of a plane, row by row, (y * x, 2) as x, y in um.

        Examples
        --------
        >>> VolumeGrid((1, 2, 2), (10.0, 5.0, 5.0), (0.0, 100.0, 0.0)).plane_points().tolist()
        [[0.0, 100.0], [5.0, 100.0], [0.0, 105.0], [5.0, 105.0]]
        """
        y, x = (
            start + step * np.arange(count)
            for start, step, count in zip(
                self.origin_um[1:], self.step_um[1:], self.shape[1:], strict=True
            )
        )
        return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _shards(grid: VolumeGrid, names: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunk, one gene of one plane, and the shard of several that becomes one file."""
    height, width = (min(SIDE, side) for side in grid.shape[1:])
    rows, columns = (-(-grid.shape[1] // height), -(-grid.shape[2] // width))
    voxels = rows * height * columns * width
    genes = max(1, min(MOST_GENES, names, VOXELS // voxels))
    return (1, 1, height, width), (genes, 1, rows * height, columns * width)


class VolumeWriter:
    """Takes planes in any order; made by `write_volume`."""

    def __init__(self, root: zarr.Group, grid: VolumeGrid, names: Sequence[str]) -> None:
        self._grid = grid
        self._written = np.zeros(grid.shape[0], np.bool_)
        chunks, shards = _shards(grid, len(names))
        self._genes = shards[0]
        self._images = {
            name: root.create_group(name).create_array(
                LEVEL,
                shape=(len(names), *grid.shape),
                chunks=chunks,
                shards=shards,
                dtype="float32",
                fill_value=np.nan,
                compressors=BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),
                dimension_names=AXES,
            )
            for name in IMAGES
        }
        self._limits = {name: np.full((len(names), 2), [np.inf, -np.inf]) for name in IMAGES}

    def add(self, plane: int, inside: ArrayLike, mean: ArrayLike, sd: ArrayLike) -> None:
        """Write one plane.

        Parameters
        ----------
        plane
            Its number.
        inside
            (y * x,) bool or (y, x): voxels in tissue, in the order of `VolumeGrid.plane_points`.
        mean, sd
            (voxels in tissue, genes).
        """
        mask = np.asarray(inside, np.bool_).reshape(self._grid.shape[1:])
        for name, values in zip(IMAGES, (mean, sd), strict=True):
            self._write(name, plane, mask, np.asarray(values, np.float32))
        self._written[plane] = True

    def _write(
        self, name: str, plane: int, mask: NDArray[np.bool_], values: NDArray[np.float32]
    ) -> None:
        target = self._images[name]
        if values.shape != (mask.sum(), target.shape[0]):
            raise ValueError(
                f"{name}: {values.shape} is not {mask.sum()} voxels x {target.shape[0]} genes"
            )
        for start in range(0, target.shape[0], self._genes):
            part = values[:, start : start + self._genes]
            block = np.full((part.shape[1], *mask.shape), np.nan, np.float32)
            block[:, mask] = part.T
            target[start : start + self._genes, plane] = block
        if len(values):
            limits = self._limits[name]
            np.minimum(limits[:, 0], values.min(axis=0), out=limits[:, 0])
            np.maximum(limits[:, 1], values.max(axis=0), out=limits[:, 1])

    def limits(self, name: str) -> FloatArray:
        """Smallest and largest value of every gene, (genes, 2); 0 and 1 where there is none."""
        if not self._written.all():
            missing = np.flatnonzero(~self._written).tolist()
            raise ValueError(f"planes {missing} of the volume were not written")
        found = self._limits[name]
        return np.where(np.isfinite(found), found, [0.0, 1.0])


@contextmanager
def write_volume(
    path: Path,
    grid: VolumeGrid,
    names: Sequence[str],
    *,
    unit: str,
    record: Mapping[str, Any],
    overwrite: bool = False,
) -> Iterator[VolumeWriter]:
    """Write a volume; the store appears whole when the block ends well, or not at all.

    Parameters
    ----------
    path : Path
        Folder, by custom ``NAME.ome.zarr``.
    grid : VolumeGrid
        Where the voxels lie.
    names : sequence of str
        Genes or clusters, the channels.
    unit : str
        Of the values.
    record : mapping
        JSON values kept with the volume: provenance, and which planes were measured.
    overwrite : bool
        Replace a volume that deepspace wrote.

    Yields
    ------
    VolumeWriter
        Its `add` takes the planes; all of them must be given.

    Raises
    ------
    InputError
        If `path` must not be written.

    References
    ----------
    Moore, J. et al. OME-Zarr: a cloud-optimized bioimaging file format. Histochemistry and Cell
    Biology 160, 223-251 (2023); https://ngff.openmicroscopy.org/0.5/
    """
    check_output(path, overwrite=overwrite, marker=MARKER)
    with atomic_folder(path) as temporary:
        root = zarr.open_group(temporary, mode="w", zarr_format=3)
        writer = VolumeWriter(root, grid, names)
        yield writer
        for name in IMAGES:
            attributes = image_metadata(name, grid, names, writer.limits(name))
            root[name].attrs.update({"ome": attributes})
        root.attrs.update(
            {
                # how NGFF 0.5 says that a group holds several images
                "ome": {"version": NGFF, "bioformats2raw.layout": 3},
                # through text: the record may hold values that are JSON but not zarr's
                keys.UNS: json.loads(json.dumps({"unit": unit, **record}, allow_nan=False)),
            }
        )
        root.create_group("OME").attrs.update({"ome": {"version": NGFF, "series": [*IMAGES]}})


def image_metadata(
    name: str, grid: VolumeGrid, names: Sequence[str], limits: FloatArray
) -> dict[str, Any]:
    """Metadata of one image as NGFF 0.5 wants it: axes, units, scale, translation, channels.

    Parameters
    ----------
    name
        Of the image.
    grid, names
        As for `write_volume`.
    limits
        Smallest and largest value of every channel, (genes, 2).
    """
    space = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in AXES[1:]]
    transformations = [
        {"type": "scale", "scale": [1.0, *map(float, grid.step_um)]},
        {"type": "translation", "translation": [0.0, *map(float, grid.origin_um)]},
    ]
    windows = [
        {"min": low, "max": high, "start": low, "end": max(high, low + 1e-6)}
        for low, high in limits.tolist()
    ]
    return {
        "version": NGFF,
        "multiscales": [
            {
                "name": name,
                "axes": [{"name": AXES[0], "type": "channel"}, *space],
                "datasets": [{"path": LEVEL, "coordinateTransformations": transformations}],
            }
        ],
        "omero": {
            "name": name,
            "channels": [
                # viewers would mix the colours of thousands of genes
                {
                    "label": gene,
                    "color": COLOURS[i % len(COLOURS)],
                    "active": i == 0,
                    "window": window,
                }
                for i, (gene, window) in enumerate(zip(names, windows, strict=True))
            ],
        },
    }


@dataclass(frozen=True)
class Volume:
    """A volume on disk; values are read when they are asked for.

    Attributes
    ----------
    grid : VolumeGrid
        Where the voxels lie.
    names : tuple of str
        Genes or clusters.
    mean, sd : zarr array
        (genes, z, y, x) float32, NaN outside the tissue.
    record : dict
        What `write_volume` was given, and `unit`.
    """

    grid: VolumeGrid
    names: tuple[str, ...]
    mean: Any
    sd: Any
    record: dict[str, Any]

    def plane(self, number: int, gene: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and sd of one gene in one plane, each (y, x)."""
        channel = self.names.index(gene)
        return np.asarray(self.mean[channel, number]), np.asarray(self.sd[channel, number])


def open_volume(path: Path | str) -> Volume:
    """Open a volume that `write_volume` wrote.

    Raises
    ------
    InputError
        If there is none at `path`.
    """
    path = Path(path)
    if not (path / MARKER).is_file():
        raise InputError(f"{path}: no volume of deepspace; give the folder that `complete` wrote")
    root = zarr.open_group(path, mode="r")
    mean, sd = (zarr.open_array(path / name / LEVEL, mode="r") for name in IMAGES)
    ome: Any = zarr.open_group(path / MEAN, mode="r").attrs["ome"]
    steps, shift = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    _, *shape = mean.shape
    grid = VolumeGrid(
        (shape[0], shape[1], shape[2]), tuple(steps["scale"][1:]), tuple(shift["translation"][1:])
    )
    names = tuple(str(channel["label"]) for channel in ome["omero"]["channels"])
    record: Any = root.attrs[keys.UNS]
    return Volume(grid, names, mean, sd, dict(record))


def volume_spatialdata(path: Path | str) -> Any:
    """Open a volume as SpatialData, lazily; its ``write`` makes a store of that format.

    Returns
    -------
    SpatialData
        3D images ``mean`` and ``sd``, channels named by genes; the coordinate system
        ``global`` is in micrometres. SpatialData counts from the corner of a voxel, NGFF from
        its centre: half a voxel is taken care of.

    Raises
    ------
    InputError
        If there is no volume, or SpatialData is not installed.
    """
    try:
        import spatialdata  # noqa: PLC0415
        from dask.array import from_zarr  # noqa: PLC0415
        from spatialdata.models import Image3DModel  # noqa: PLC0415
        from spatialdata.transformations import Scale, Sequence, Translation  # noqa: PLC0415
    except ImportError:
        raise InputError(
            f"{path}: to open it as SpatialData run: pip install 'deepspace[spatial]'"
        ) from None
    volume = open_volume(path)
    grid = volume.grid
    step = np.array(grid.step_um, np.float64)
    lazy: Any = from_zarr  # has no types
    corner = np.array(grid.origin_um) - step / 2
    place = Sequence([Scale(step, axes=AXES[1:]), Translation(corner, axes=AXES[1:])])
    images = {
        name: Image3DModel.parse(
            lazy(array),
            dims=AXES,
            c_coords=list(volume.names),
            transformations={"global": place},
        )
        for name, array in ((MEAN, volume.mean), (keys.SD, volume.sd))
    }
    return spatialdata.SpatialData(images=images)
