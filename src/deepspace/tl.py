"""Tools for AnnData beside its image, in the manner of scanpy.

Every function changes the object that it is given and returns nothing; with ``copy=True`` it leaves
the object alone and returns a changed copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.io.slide import Slide
from deepspace.model import Model
from deepspace.output.write import PROVENANCE
from deepspace.workflows.annotate import AnnotateSettings, annotate
from deepspace.workflows.predict import PredictOptions


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
