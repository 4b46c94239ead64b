"""A prediction in SpatialData: alone in a store, or beside what is in a user's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, Final

import dask
import dask.array
import numpy as np
import pandas as pd
from anndata import AnnData

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.core.files import atomic_folder
from deepspace.io.parts import clip_list
from deepspace.io.slide import Slide
from deepspace.output.prediction_file import only_measured

REGION: Final = "region"
INSTANCE: Final = "instance_id"
PREDICTION: Final = "prediction"
_BLOCK: Final = 1024
# the last level of the pyramid is about this large
_SMALLEST: Final = 512
_SYSTEM: Final = "global"


def require_spatialdata() -> Any:
    """Import SpatialData.

    Raises
    ------
    InputError
        If it is not installed.
    """
    try:
        import spatialdata  # noqa: PLC0415
    except ImportError:
        raise InputError(
            "writing a .zarr store needs SpatialData; run: pip install 'deepspace[spatial]', "
            "or choose a name that ends in .h5ad"
        ) from None
    return spatialdata


def element_name(name: str) -> str:
    """Name that SpatialData takes for an element.

    Examples
    --------
    >>> element_name("_block 1/a")
    'block_1_a'
    """
    # a leading dot hides an element from readers, two underscores are reserved
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip("._") or "section"


def to_spatialdata(
    adata: AnnData,
    *,
    slide: Slide | None = None,
    image_px: int | None = None,
    name: str | None = None,
) -> Any:
    """Turn a prediction into SpatialData.

    Parameters
    ----------
    adata : AnnData
        From `deepspace.output.write.prediction_anndata`.
    slide : Slide, optional
        Its image goes in as a pyramid, read block by block when the store is written; without
        it, the copy of the slide in the prediction.
    image_px : int, optional
        Longer side of the slide's image; full resolution if not given.
    name : str, optional
        Elements and tables are called by it, so that several predictions fit into one store.

    Returns
    -------
    SpatialData
        Image ``{section}_image``, circles ``{section}_points``, table ``prediction``, and
        ``measured`` for the points with measurements; with a name, ``{name}_image``,
        ``{name}_points``, ``{name}_prediction`` and ``{name}_measured``. Their coordinate
        systems are the section's name and ``global``, both in full-resolution pixels.

    Raises
    ------
    InputError
        If SpatialData is not installed, or `image_px` is below 1.
    """
    spatialdata = require_spatialdata()
    if image_px is not None and image_px < 1:
        raise InputError(f"--image-px {image_px}: must be at least 1")
    ((section, library),) = adata.uns[keys.SPATIAL].items()
    systems = (section, _SYSTEM)
    element = element_name(section if name is None else name)
    prefix = "" if name is None else f"{element}_"
    circles = _circles(adata, library, systems)
    points = f"{element}_points"
    tables = {f"{prefix}{PREDICTION}": _table(adata, points)}
    if keys.MEASURED in adata.layers and adata.obs[keys.MEASURED].to_numpy(bool).any():
        tables[f"{prefix}{keys.MEASURED}"] = _table(_measurements(adata), points)
    image = (
        _copy_of_slide(library, systems) if slide is None else _pyramid(slide, image_px, systems)
    )
    return spatialdata.SpatialData(
        images={f"{element}_image": image}, shapes={points: circles}, tables=tables
    )


def section_store(adata: AnnData, slide: Slide) -> Any:
    """SpatialData of a section's counts and its slide.

    Parameters
    ----------
    adata : AnnData
        From `deepspace.output.section.section_to_anndata`.
    slide : Slide
        Read block by block when the store is written.

    Returns
    -------
    SpatialData
        Image ``{section}_image``, circles ``{section}_spots``, table ``deepspace_counts``.
    """
    spatialdata = require_spatialdata()
    ((section, library),) = adata.uns[keys.SPATIAL].items()
    systems, element = (section, _SYSTEM), element_name(section)
    spots = f"{element}_spots"
    return spatialdata.SpatialData(
        images={f"{element}_image": _pyramid(slide, None, systems)},
        shapes={spots: _circles(adata, library, systems)},
        tables={"deepspace_counts": _table(adata, spots)},
    )


def _circles(adata: AnnData, library: dict[str, Any], systems: tuple[str, ...]) -> Any:
    from spatialdata.models import ShapesModel  # noqa: PLC0415
    from spatialdata.transformations import Identity  # noqa: PLC0415

    return ShapesModel.parse(
        adata.obsm[keys.SPATIAL],
        geometry=0,
        radius=library["scalefactors"]["spot_diameter_fullres"] / 2,
        index=adata.obs_names.to_numpy(dtype=object),
        transformations={s: Identity() for s in systems},
    )


def _measurements(adata: AnnData) -> AnnData:
    own = only_measured(adata)
    return AnnData(
        X=np.asarray(own.layers[keys.MEASURED], np.float32),
        obs=own.obs,
        var=own.var,
        obsm={keys.SPATIAL: own.obsm[keys.SPATIAL]},
        uns=own.uns,
    )


def _table(adata: AnnData, region: str) -> Any:
    from spatialdata.models import TableModel  # noqa: PLC0415

    table = adata.copy()
    # a table that comes from another store brings that one's
    table.uns.pop("spatialdata_attrs", None)
    table.obs[REGION] = pd.Categorical([region] * table.n_obs)
    table.obs[INSTANCE] = table.obs_names.to_numpy(dtype=object)
    return TableModel.parse(table, region=region, region_key=REGION, instance_key=INSTANCE)


def _copy_of_slide(library: dict[str, Any], systems: tuple[str, ...]) -> Any:
    from spatialdata.models import Image2DModel  # noqa: PLC0415
    from spatialdata.transformations import Scale  # noqa: PLC0415

    full = 1.0 / library["scalefactors"]["tissue_hires_scalef"]
    return Image2DModel.parse(
        np.moveaxis(library["images"]["hires"], -1, 0),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations={s: Scale([full, full], axes=("x", "y")) for s in systems},
    )


def _pyramid(slide: Slide, image_px: int | None, systems: tuple[str, ...]) -> Any:
    from spatialdata.models import Image2DModel  # noqa: PLC0415
    from spatialdata.transformations import Scale  # noqa: PLC0415

    longer = max(slide.width, slide.height)
    step = 1.0 if image_px is None else max(1.0, longer / image_px)
    width, height = (max(1, int(side / step)) for side in (slide.width, slide.height))
    halvings = 0
    while max(width, height) >> halvings > _SMALLEST and min(width, height) >> halvings > 1:
        halvings += 1
    rows = [
        dask.array.concatenate(  # type: ignore[no-untyped-call]
            [_block(slide, left, top, (width, height), step) for left in range(0, width, _BLOCK)],
            axis=2,
        )
        for top in range(0, height, _BLOCK)
    ]
    return Image2DModel.parse(
        dask.array.concatenate(rows, axis=1),  # type: ignore[no-untyped-call]
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=[2] * halvings or None,
        transformations={s: Scale([step, step], axes=("x", "y")) for s in systems},
    )


def _block(slide: Slide, left: int, top: int, size: tuple[int, int], step: float) -> Any:
    width, height = min(_BLOCK, size[0] - left), min(_BLOCK, size[1] - top)

    def read() -> Any:
        if step == 1.0:
            image = slide.read(left, top, width, height)
        else:
            corner, extent = (left * step, top * step), (width * step, height * step)
            image = slide.resample(corner, extent, (width, height))
        return np.ascontiguousarray(np.moveaxis(image, -1, 0))

    lazy: Any = dask.delayed(read)()  # type: ignore[attr-defined]
    return dask.array.from_delayed(lazy, (3, height, width), np.uint8)  # type: ignore[no-untyped-call]


def write_store(store: Any, path: Path) -> None:
    """Write SpatialData to a folder that is empty or is not there; one block at a time."""
    if path.exists():
        # SpatialData writes only where nothing is
        path.rmdir()
    with dask.config.set(scheduler="synchronous"):
        store.write(path)


def write_into(
    store: Any, source: Path, out: Path, *, overwrite: bool = False
) -> tuple[list[str], list[str]]:
    """Put elements beside those of a SpatialData store.

    The store is copied byte by byte to a temporary folder, the new elements are added there,
    and the folder is renamed to `out`: a crash leaves the old one whole.

    Parameters
    ----------
    store : SpatialData
        What is added.
    source : Path
        Store that is added to.
    out : Path
        Where the result goes; may be `source`.
    overwrite : bool
        Replace elements of `source` that have the names of new ones.

    Returns
    -------
    tuple of list of str
        Names of the elements that were there and stay, and of those that are new.

    Raises
    ------
    InputError
        If `source` is no SpatialData store, or holds elements of these names and `overwrite` is
        false.
    """
    old = _read(source)
    new = {name: (kind, element) for kind, name, element in store.gen_elements()}
    kinds = {name: kind for kind, name, _ in old.gen_elements()}
    taken = [name for name in new if name in kinds]
    if taken and not overwrite:
        raise InputError(
            f"{source}: already holds {clip_list(taken)}; choose another --name, or add "
            "--overwrite to replace them"
        )
    foreign = [name for name in taken if kinds[name] != new[name][0]]
    if foreign:
        raise InputError(f"{source}: {clip_list(foreign)} is of another kind; choose a --name")
    with atomic_folder(out) as temporary, dask.config.set(scheduler="synchronous"):
        temporary.rmdir()
        shutil.copytree(source, temporary, symlinks=False)
        merged = _read(temporary)
        for name in taken:
            del merged[name]  # first: what is in use is not deleted
            merged.delete_element_from_disk(name)
        for name, (_, element) in new.items():
            merged[name] = element
            merged.write_element(name)
    return [name for name in kinds if name not in new], [*new]


def _read(path: Path) -> Any:
    spatialdata = require_spatialdata()
    if not path.is_dir():
        raise InputError(f"{path}: is no SpatialData store; give the folder NAME.zarr")
    try:
        return spatialdata.read_zarr(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as SpatialData ({error})") from error
