"""Tools for AnnData beside its image, in the manner of scanpy.

Every function changes the object that it is given and returns nothing; with ``copy=True`` it leaves
the object alone and returns a changed copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.io.section import read_section
from deepspace.io.slide import Slide
from deepspace.model import Model
from deepspace.output.spatialdata_store import PREDICTION, element_name, to_spatialdata
from deepspace.output.write import PROVENANCE
from deepspace.workflows.annotate import AnnotateSettings, annotate
from deepspace.workflows.predict import PredictOptions

if TYPE_CHECKING:
    from spatialdata import SpatialData


def predict(
    adata: AnnData,
    model: Model | Path | str,
    image: Path | str | Slide,
    *,
    mpp: float | None = None,
    options: PredictOptions | None = None,
    key_added: str = keys.UNS,
    copy: bool = False,
) -> AnnData | None:
    """Predict expression or clusters at the spots of an object; its own counts are not looked at.

    For points between the spots or a grid, which are another object, see `deepspace.Model.predict`.

    Parameters
    ----------
    adata : AnnData
        With ``obsm['spatial']``, `x, y` in full-resolution pixels of `image`.
    model : Model, Path or str
        From `deepspace.Model.train`, or a folder.
    image : Path, str or Slide
        Full-resolution H&E image.
    mpp : float, optional
        Micrometres per pixel of the image, where it does not tell.
    options : PredictOptions, optional
        What is left out, and where networks run.
    key_added : str
        ``obsm[key_added]`` is a table (spots, genes) of predicted log1p of counts per 10,000, or
        of the probability of each cluster; ``obsm[key_added + '_sd']`` the sd of a measurement;
        ``obs[key_added + '_ood']`` whether the image is unlike the training images;
        ``uns[key_added]`` verdicts and provenance. Spots off tissue hold NaN.
    copy : bool
        Return a changed copy.

    Raises
    ------
    InputError
        If the image, its pixel size or the model's weights are missing.
    """
    adata = adata.copy() if copy else adata
    if not adata.obs_names.is_unique:
        raise InputError(
            "the names of the spots are not unique; call adata.obs_names_make_unique()"
        )
    loaded = model if isinstance(model, Model) else Model.load(model)
    found = loaded.predict(adata, image, mpp=mpp, options=options)
    names = adata.obs_names.astype(str)
    for suffix, values in {"": found.X, f"_{keys.SD}": found.layers[keys.SD]}.items():
        table = pd.DataFrame(values, index=found.obs_names, columns=found.var_names)
        adata.obsm[key_added + suffix] = table.reindex(names).set_axis(adata.obs_names)
    odd = found.obs[keys.OOD].reindex(names)
    adata.obs[f"{key_added}_{keys.OOD}"] = odd.eq(True).to_numpy()
    if keys.CLUSTER in found.obs:
        label = found.obs[keys.CLUSTER].reindex(names)
        adata.obs[f"{key_added}_{keys.CLUSTER}"] = pd.Categorical(label.to_numpy())
    verdicts = found.var.loc[:, found.var.notna().any()]
    adata.uns[key_added] = {
        "verdicts": verdicts,
        PROVENANCE: found.uns[keys.UNS][PROVENANCE],
    }
    return adata if copy else None


def predict_spatialdata(
    sdata: SpatialData,
    model: Model | Path | str,
    *,
    section: str | None = None,
    at: str = "spots",
    mpp: float | None = None,
    options: PredictOptions | None = None,
    key_added: str = keys.UNS,
    copy: bool = False,
) -> SpatialData | None:
    """Predict a section in SpatialData and put the result beside what is there.

    Parameters
    ----------
    sdata : SpatialData
        Read from a store, whose spots and H&E image are read there block by block: a table that
        annotates shapes, and an RGB image. What was changed in memory alone is not seen.
    model : Model, Path or str
        From `deepspace.Model.train`, or a folder.
    section : str, optional
        Whose spots, where several tables annotate shapes.
    at : str
        ``spots``, ``between`` (super-resolution) or ``grid:UM``.
    mpp : float, optional
        Micrometres per pixel of the image; a store does not tell.
    options : PredictOptions, optional
        What is left out, and where networks run.
    key_added : str
        Circles ``{key_added}_points`` lie in every coordinate system of the image; table
        ``{key_added}_prediction`` is as `deepspace.predict` returns it. In memory: write them with
        ``sdata.write_element``.
    copy : bool
        Return another object that shares the old elements, and leave this one alone.

    Raises
    ------
    InputError
        If the object lies in no store, lacks spots, image or pixel size, or has such elements.
    """
    from spatialdata import SpatialData as Store  # noqa: PLC0415 - an extra
    from spatialdata.transformations import (  # noqa: PLC0415
        get_transformation,
        set_transformation,
    )

    if sdata.path is None:
        raise InputError(
            "the object lies in no store, from which its image could be read; write it first, "
            "sdata.write('name.zarr')"
        )
    element = element_name(key_added)
    taken = [
        name
        for suffix in ("points", PREDICTION, keys.MEASURED)
        if (name := f"{element}_{suffix}") in sdata
    ]
    if taken:
        raise InputError(f"the object already holds {', '.join(taken)}; choose another key_added")
    read = read_section(sdata.path, mpp=mpp, section=section)
    image = read.slide.path.parent.name
    if image not in sdata.images:
        raise InputError(f"the object lacks the image {image} of its store; read it anew")
    loaded = model if isinstance(model, Model) else Model.load(model)
    found = loaded.predict(read, at=at, options=options)
    made = to_spatialdata(found, name=key_added)
    new = {name: element for kind, name, element in made.gen_elements() if kind != "images"}
    places = get_transformation(sdata.images[image], get_all=True)
    for name in made.shapes:
        set_transformation(new[name], places, set_all=True)
    old = {name: element for _, name, element in sdata.gen_elements()}
    target = Store.init_from_elements(old, attrs=sdata.attrs) if copy else sdata
    for name, element in new.items():
        target[name] = element
    return target if copy else None


def modules(
    adata: AnnData,
    *,
    gmt: Sequence[Path | str] = (),
    settings: AnnotateSettings | None = None,
    key_added: str = "modules",
    copy: bool = False,
) -> AnnData | None:
    """Score gene sets at every point of a prediction.

    Parameters
    ----------
    adata : AnnData
        From `deepspace.predict` or `deepspace.Model.predict`.
    gmt : sequence of Path
        Files with gene sets, beside those that come with deepspace.
    settings : AnnotateSettings, optional
        Which sets are used.
    key_added : str
        ``obsm[key_added]`` is a table (points, sets) of scores in sd units,
        ``obsm[key_added + '_sd']`` their uncertainty; ``uns[key_added]`` describes the sets.
    copy : bool
        Return a changed copy.

    Raises
    ------
    InputError
        If the object is no prediction, or no gene set fits its genes.
    """
    adata = adata.copy() if copy else adata
    found = annotate(adata, gmt=gmt, settings=settings).modules
    for suffix, values in {"": found.X, f"_{keys.SD}": found.layers[keys.SD]}.items():
        adata.obsm[key_added + suffix] = pd.DataFrame(
            np.asarray(values), index=adata.obs_names, columns=found.var_names
        )
    adata.uns[key_added] = {"sets": found.var}
    return adata if copy else None


def markers(
    adata: AnnData,
    *,
    gmt: Sequence[Path | str] = (),
    settings: AnnotateSettings | None = None,
    key_added: str = "markers",
    copy: bool = False,
) -> AnnData | None:
    """Cluster the points of a prediction; marker genes and the gene sets that name each cluster.

    Parameters
    ----------
    adata, gmt, settings, copy
        As in `modules`.
    key_added : str
        ``obs[key_added + '_cluster']`` and ``obs[key_added + '_name']``;
        ``uns[key_added]`` holds the tables `markers` and `enrichment`.

    Raises
    ------
    InputError
        As `modules`.
    """
    adata = adata.copy() if copy else adata
    found = annotate(adata, gmt=gmt, settings=settings)
    adata.obs[f"{key_added}_{keys.CLUSTER}"] = found.modules.obs[keys.CLUSTER].to_numpy()
    adata.obs[f"{key_added}_name"] = found.modules.obs["cluster_name"].to_numpy()
    adata.uns[key_added] = {"markers": found.markers, "enrichment": found.enrichment}
    return adata if copy else None
