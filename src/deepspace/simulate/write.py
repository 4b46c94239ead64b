"""A simulated block on disk, as a laboratory would hand it out."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import tifffile
from anndata import AnnData
from PIL import Image
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from deepspace.core import keys
from deepspace.core.files import atomic_folder, check_output
from deepspace.core.progress import track
from deepspace.io.h5ad import save_h5ad
from deepspace.simulate.block import Block, SimulatedSection
from deepspace.simulate.fields import Floats
from deepspace.simulate.geometry import PITCH_UM, SCALEFACTOR_FIDUCIAL_UM, SCALEFACTOR_SPOT_UM

# the file that tells a folder to be a block
SHEET = "sheet.csv"
_TILE = 256
_SMALLEST_LEVEL = 600
_CLUSTERS = 6
_HIRES_PX, _LOWRES_PX = 2000, 600


def write_block(block: Block, folder: Path, *, overwrite: bool) -> Path:
    """Write a block, as `Block.write` says; the same config gives the same bytes.

    ``sheet.csv`` is the cohort sheet. Each section has ``image.ome.tif``; a measured one has
    ``outs/`` as Space Ranger writes it, an unmeasured one its spot positions only. ``truth/``
    holds what a laboratory would not know: ``law.csv``, ``transforms.json``, ``config.json``,
    ``<section>.h5ad`` with the expected log1p CP10k at all spots and halfway between them, and
    the withheld ``outs/`` of unmeasured sections under ``truth/<section>/``.
    """
    check_output(folder, overwrite=overwrite, marker=SHEET)
    clusters = cluster_spots(block)
    with atomic_folder(folder) as root:
        rows = []
        sections = block.sections.values()
        for section in track(sections, total=len(sections), text="simulating"):
            rows.append(_write_section(block, section, root, clusters[section.section]))
        pd.DataFrame(rows).to_csv(root / SHEET, index=False)
        _write_truth(block, root / "truth")
    return folder / SHEET


def _write_section(
    block: Block, section: SimulatedSection, root: Path, clusters: pd.Series[int]
) -> dict[str, str | float]:
    """Write one section; returns its row of the sheet."""
    name = section.section
    hidden = name in block.config.unmeasured
    image = block.image(name)
    (root / name).mkdir(parents=True)
    write_pyramid(root / name / "image.ome.tif", image, block.config.mpp)
    outs = (root / "truth" / name if hidden else root / name) / "outs"
    (outs / "spatial").mkdir(parents=True)
    write_matrix(outs / "filtered_feature_bc_matrix.h5", block.counts(name), name)
    _write_spatial(outs / "spatial", section, image, block.config.positions)
    graph = outs / "analysis" / "clustering" / "gene_expression_graphclust"
    graph.mkdir(parents=True)
    clusters.to_csv(graph / "clusters.csv")
    row: dict[str, str | float] = {
        "section": name,
        "patient": block.config.patient,
        "z_um": section.z_um,
        "mpp": block.config.mpp,
        "image": f"{name}/image.ome.tif",
        "spaceranger": "" if hidden else f"{name}/outs",
        "spots": f"{name}/tissue_positions.csv" if hidden else "",
        # the block's clusters mean the same in all of its sections
        "clusters": "" if hidden else (graph / "clusters.csv").relative_to(root).as_posix(),
    }
    if hidden:
        _positions(section).to_csv(root / name / "tissue_positions.csv", index=False)
    return row


def write_matrix(path: Path, counts: AnnData, library: str) -> None:
    """Write counts in the layout of Cell Ranger 3 and later (HDF5, features by barcodes).

    Parameters
    ----------
    path
        File to write.
    counts
        Spots by genes, raw counts.
    library
        Name of the library, kept in the attributes.
    """
    matrix = sparse.csc_matrix(sparse.csr_matrix(counts.X).T)
    genes = list(counts.var_names)
    features = {
        "id": [f"SIMG{i:011d}" for i in range(len(genes))],
        "name": genes,
        "feature_type": ["Gene Expression"] * len(genes),
        "genome": ["simulated"] * len(genes),
    }
    with h5py.File(path, "w") as file:
        file.attrs["filetype"] = "matrix"
        file.attrs["chemistry_description"] = "Spatial 3' v1"
        file.attrs["library_ids"] = np.array([library.encode()])
        file.attrs["software_version"] = "deepspace.simulate"
        file.attrs["version"] = 2
        group = file.create_group("matrix")
        group["barcodes"] = np.array(list(counts.obs_names), dtype="S")
        group["shape"] = np.array(matrix.shape, dtype=np.int32)
        for name, values, kind in (
            ("data", matrix.data, np.int32),
            ("indices", matrix.indices, np.int64),
            ("indptr", matrix.indptr, np.int64),
        ):
            group.create_dataset(name, data=values.astype(kind), compression="gzip")
        described = group.create_group("features")
        described["_all_tag_keys"] = np.array([b"genome"])
        for name, texts in features.items():
            described[name] = np.array(texts, dtype="S")


def write_pyramid(path: Path, image: npt.NDArray[np.uint8], mpp: float) -> None:
    """Write a tiled OME-TIFF, JPEG compressed, with half-size levels as sub-images.

    Parameters
    ----------
    path
        File to write; ``.ome.tif``.
    image
        uint8 (h, w, 3).
    mpp
        Micrometres per pixel, kept in OME metadata and in the resolution tags.
    """
    levels = [Image.fromarray(image)]
    while max(levels[-1].size) > _SMALLEST_LEVEL:
        levels.append(levels[-1].reduce(2))
    # a fixed identifier in place of tifffile's random one: same content, same bytes
    metadata = {
        "axes": "YXS",
        "PhysicalSizeX": mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp,
        "PhysicalSizeYUnit": "µm",
        "UUID": "00000000-0000-0000-0000-000000000000",
    }
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for i, level in enumerate(levels):
            tiff.write(
                np.asarray(level),
                subifds=len(levels) - 1 if i == 0 else None,
                subfiletype=0 if i == 0 else 1,
                tile=(_TILE, _TILE),
                photometric="rgb",
                subsampling=(2, 2),
                compression="jpeg",
                compressionargs={"level": 90},
                resolution=(1e4 / (mpp * 2**i), 1e4 / (mpp * 2**i)),
                resolutionunit="CENTIMETER",
                metadata=metadata if i == 0 else None,
            )


def _positions(section: SimulatedSection) -> pd.DataFrame:
    """The table of tissue_positions.csv; 10x puts the row (y) before the column (x)."""
    spots = section.spots
    return pd.DataFrame(
        {
            "barcode": spots.index,
            "in_tissue": spots[keys.IN_TISSUE].astype(int).to_numpy(),
            "array_row": spots[keys.ARRAY_ROW].to_numpy(),
            "array_col": spots[keys.ARRAY_COL].to_numpy(),
            "pxl_row_in_fullres": spots["y"].astype(int).to_numpy(),
            "pxl_col_in_fullres": spots["x"].astype(int).to_numpy(),
        }
    )


def _write_spatial(
    folder: Path, section: SimulatedSection, image: npt.NDArray[np.uint8], positions: str
) -> None:
    header = positions == "v2"
    name = "tissue_positions.csv" if header else "tissue_positions_list.csv"
    _positions(section).to_csv(folder / name, index=False, header=header)
    full = Image.fromarray(image)
    mpp = section.transform.mpp
    scales = {}
    for label, largest in (("hires", _HIRES_PX), ("lowres", _LOWRES_PX)):
        side = min(largest, full.width)
        small = full.resize((side, side), Image.Resampling.BOX)
        small.save(folder / f"tissue_{label}_image.png", compress_level=3)
        scales[f"tissue_{label}_scalef"] = side / full.width
    scales["spot_diameter_fullres"] = SCALEFACTOR_SPOT_UM / mpp
    scales["fiducial_diameter_fullres"] = SCALEFACTOR_FIDUCIAL_UM / mpp
    (folder / "scalefactors_json.json").write_text(json.dumps(scales))


def cluster_spots(block: Block) -> dict[str, pd.Series[int]]:
    """Cluster the spots in tissue of all sections together, so that labels agree.

    K-means on 10 principal components of log1p CP10k, in place of Space Ranger's graph
    clustering of an aggregated run; cluster 1 is the largest, as there.

    Returns
    -------
    dict of str to pandas.Series
        Per section: index Barcode, values Cluster.
    """
    parts = {name: block.counts(name) for name in block.sections}
    stacked = sparse.vstack([part.X for part in parts.values()]).toarray()
    depth = np.maximum(stacked.sum(axis=1, keepdims=True), 1.0)
    logged = np.log1p(1e4 * stacked / depth)
    seed = block.config.seed
    scores = PCA(10, svd_solver="full").fit_transform(logged)
    labels = KMeans(_CLUSTERS, n_init=4, random_state=seed).fit_predict(scores)
    rank = np.argsort(np.argsort(-np.bincount(labels, minlength=_CLUSTERS), kind="stable")) + 1
    barcode = np.concatenate([part.obs_names for part in parts.values()])
    owner = np.repeat(list(parts), [part.n_obs for part in parts.values()])
    table = pd.Series(rank[labels], pd.Index(barcode, name="Barcode"), name="Cluster")
    return {name: table[owner == name] for name in parts}


def _write_truth(block: Block, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    block.law.to_csv(folder / "law.csv")
    (folder / "config.json").write_text(block.config.model_dump_json(indent=2))
    transforms = {
        name: {
            "z_um": section.z_um,
            "pixel_to_block_um": section.transform.matrix.tolist(),
        }
        for name, section in block.sections.items()
    }
    (folder / "transforms.json").write_text(json.dumps(transforms, indent=2))
    for name, section in block.sections.items():
        spots = section.spots[["x", "y"]].to_numpy(float)
        between = _between(spots, PITCH_UM / 2 / section.transform.mpp)
        coords = np.concatenate([spots, between])
        labels = [*section.spots.index, *(f"between_{i:05d}" for i in range(len(between)))]
        where = pd.DataFrame(
            {
                "spot": np.arange(len(coords)) < len(spots),
                "tissue_class": pd.Categorical(block.tissue_class(name, coords)),
            },
            index=pd.Index(labels),
        )
        truth = AnnData(block.truth(name, coords), where, block.law, obsm={keys.SPATIAL: coords})
        save_h5ad(truth, folder / f"{name}.h5ad")


def _between(spots: Floats, step_px: float) -> Floats:
    """Points halfway between each spot and its right neighbour, (n, 2) px."""
    right: Floats = spots + np.array([step_px, 0.0])
    inside: Floats = right[right[:, 0] <= spots[:, 0].max()]
    return inside
