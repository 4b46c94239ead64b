"""Preprocessing of AnnData beside its image, in the manner of scanpy.

Every function changes the object that it is given and returns nothing; with ``copy=True`` it leaves
the object alone and returns a changed copy. Places are read from ``obsm['spatial']``, `x, y` in
full-resolution pixels of the image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from anndata import AnnData

from deepspace.core.config import Config
from deepspace.core.errors import InputError
from deepspace.data.failed import FAILED, REASON, find_failed
from deepspace.data.tissue import tissue_mask
from deepspace.io.section import Section, section_from_anndata
from deepspace.io.slide import Slide
from deepspace.models.registry import Workbench
from deepspace.workflows.cohort import default_cache

Picture = Path | str | Slide


def image_features(
    adata: AnnData,
    image: Picture,
    *,
    encoder: str = "stain",
    mpp: float | None = None,
    config: Config | None = None,
    key_added: str = "X_image",
    copy: bool = False,
) -> AnnData | None:
    """Features of the tissue around every spot, for clustering or a model of one's own.

    Parameters
    ----------
    adata : AnnData
        With ``obsm['spatial']``.
    image : Path, str or Slide
        Full-resolution H&E image.
    encoder : str
        As ``--encoder`` on the command line.
    mpp : float, optional
        Micrometres per pixel of the image, where it does not tell.
    config : Config, optional
        Fields of view, weights, stain normalisation, device.
    key_added : str
        ``obsm[key_added]`` is (spots, features) float32, standardised over the slide's tissue;
        ``uns[key_added]`` says what made it.
    copy : bool
        Return a changed copy.

    Raises
    ------
    InputError
        If the image, its pixel size or the encoder's weights are missing.
    """
    adata = adata.copy() if copy else adata
    section = _places(adata, image, mpp)
    settings = (config or Config()).with_values(encoder={"name": encoder})
    extractor = Workbench.of(settings, default_cache()).extractor(settings.encoder)
    assert section.spots is not None
    coords = section.spots[["x", "y"]].to_numpy(np.float64)
    adata.obsm[key_added] = extractor(section.slide, coords).astype(np.float32)
    adata.uns[key_added] = {
        "encoder": encoder,
        "key": extractor.encoder.key(),
        "fov_um": np.array([spec.fov_um for spec in extractor.encoder.specs]),
        "mpp": section.slide.require_mpp(),
    }
    return adata if copy else None


def tissue(
    adata: AnnData,
    image: Picture,
    *,
    mpp: float | None = None,
    key_added: str = "in_tissue",
    copy: bool = False,
) -> AnnData | None:
    """Whether every spot lies on tissue, as the image shows it.

    Parameters
    ----------
    adata, image, mpp, copy
        As in `image_features`.
    key_added : str
        ``obs[key_added]`` is bool.

    Raises
    ------
    InputError
        If the image or its pixel size is missing.
    """
    adata = adata.copy() if copy else adata
    section = _places(adata, image, mpp)
    assert section.spots is not None
    inside = tissue_mask(section.slide).contains(section.spots[["x", "y"]].to_numpy(np.float64))
    adata.obs[key_added] = inside
    return adata if copy else None


def failed_spots(
    adata: AnnData,
    image: Picture,
    *,
    mpp: float | None = None,
    config: Config | None = None,
    key_added: str = FAILED,
    copy: bool = False,
) -> AnnData | None:
    """Spots whose measurement failed: no counts, few, or an outlier among their neighbours.

    Parameters
    ----------
    adata, image, mpp, copy
        As in `image_features`; raw counts are needed.
    config : Config, optional
        Thresholds in ``[qc]`` and ``[failed]``.
    key_added : str
        ``obs[key_added]`` is bool, ``obs[key_added + '_reason']`` says why.

    Raises
    ------
    InputError
        If there are no raw counts.
    """
    adata = adata.copy() if copy else adata
    settings = config or Config()
    section = section_from_anndata(adata, image, mpp=mpp)
    found = find_failed(section, settings.qc, settings.failed).reindex(adata.obs_names.astype(str))
    adata.obs[key_added] = found[FAILED].eq(True).to_numpy()
    adata.obs[f"{key_added}_{REASON}"] = found[REASON].to_numpy()
    return adata if copy else None


def _places(adata: AnnData, image: Picture, mpp: float | None) -> Section:
    section = section_from_anndata(adata, image, mpp=mpp, measured=False)
    if section.slide.mpp is None:
        raise InputError(
            f"{section.slide.path}: its pixel size is not known; give mpp, micrometres per pixel"
        )
    return section
