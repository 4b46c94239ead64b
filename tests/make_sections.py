"""Small sections in memory for tests of splits, targets and models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from PIL import Image

from deepspace.io.section import Section
from deepspace.io.slide import open_slide


def make_slide_file(path: Path, seed: int = 0, size: int = 400) -> Path:
    """A PNG whose content depends on the seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(90, 230, (size // 20, size // 20, 3), dtype=np.uint8)
    Image.fromarray(np.kron(coarse, np.ones((20, 20, 1), np.uint8))).save(path)
    return path


def make_section(
    folder: Path,
    name: str,
    counts: np.ndarray,
    coords: np.ndarray,
    *,
    patient: str = "P",
    mpp: float = 1.0,
    genes: list[str] | None = None,
) -> Section:
    """A measured section with these counts (spots, genes) at these coords (spots, 2)."""
    slide = open_slide(make_slide_file(folder / f"{name}.png", seed=sum(map(ord, name))))
    genes = genes or [f"G{j}" for j in range(counts.shape[1])]
    barcodes = [f"{name}-{i}" for i in range(len(counts))]
    adata = AnnData(
        sp.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame({"in_tissue": True}, index=barcodes),
        var=pd.DataFrame(index=genes),
    )
    adata.obsm["spatial"] = coords.astype(np.float64)
    spots = pd.DataFrame({"x": coords[:, 0], "y": coords[:, 1], "in_tissue": True}, index=barcodes)
    return Section(name, patient, slide.with_mpp(mpp, "test"), "st", counts=adata, spots=spots)


def lattice(n: int, pitch: float = 20.0, start: float = 20.0) -> np.ndarray:
    """Square lattice of n x n points."""
    axis = start + pitch * np.arange(n)
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
