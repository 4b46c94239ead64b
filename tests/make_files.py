"""Tiny files of every format that the readers know."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import tifffile
from PIL import Image
from scipy import io as scipy_io
from scipy import sparse

PITCH_PX = 20.0
SIDE_PX = 640


@dataclass
class Array:
    """A small Visium-like array: hexagonal, 100 um = PITCH_PX px, so 5 um per px."""

    rows: int = 8
    cols: int = 6
    genes: int = 12
    seed: int = 0
    counts: np.ndarray = field(init=False)
    positions: pd.DataFrame = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        row = np.repeat(np.arange(self.rows), self.cols)
        col = 2 * np.tile(np.arange(self.cols), self.rows) + row % 2
        n = len(row)
        self.positions = pd.DataFrame(
            {
                "barcode": [f"{i:04d}ACGT-1" for i in range(n)],
                "in_tissue": (rng.random(n) < 0.8).astype(int),
                "array_row": row,
                "array_col": col,
                "pxl_row_in_fullres": 60 + row * PITCH_PX * 0.87,
                "pxl_col_in_fullres": 200 + col * PITCH_PX / 2,
            }
        )
        self.positions.loc[0, "in_tissue"] = 1
        self.counts = rng.poisson(3, (n, self.genes))

    @property
    def inside(self) -> np.ndarray:
        return self.positions["in_tissue"].to_numpy() == 1

    @property
    def barcodes(self) -> list[str]:
        return list(self.positions["barcode"][self.inside])

    @property
    def filtered(self) -> np.ndarray:
        return self.counts[self.inside]


def symbols(n: int) -> list[str]:
    return [f"GENE{i}" for i in range(n)]


def write_image(path: Path, width: int = SIDE_PX, height: int = SIDE_PX, **options: object) -> Path:
    """White glass with a pink rectangle of tissue where the spots of `Array` lie."""
    image = np.full((height, width, 3), 245, np.uint8)
    image[40 : max(height // 3, 41), 180 : max(width // 2, 181)] = (200, 90, 150)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, image, photometric="rgb", **options)
    else:
        Image.fromarray(image).save(path)
    return path


def write_h5_v3(
    path: Path,
    counts: np.ndarray,
    barcodes: list[str],
    names: list[str] | None = None,
    kinds: list[str] | None = None,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    n = counts.shape[1]
    matrix = sparse.csr_matrix(counts)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, "S")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = np.array([n, len(barcodes)], np.int32)
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(n)], "S")
        features["name"] = np.array(names or symbols(n), "S")
        features["feature_type"] = np.array(kinds or ["Gene Expression"] * n, "S")
        features["genome"] = np.array(["GRCh38"] * n, "S")
    return path


def write_h5_v2(path: Path, counts: np.ndarray, barcodes: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    n = counts.shape[1]
    matrix = sparse.csr_matrix(counts)
    with h5py.File(path, "w") as file:
        group = file.create_group("mm10")
        group["barcodes"] = np.array(barcodes, "S")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = np.array([n, len(barcodes)], np.int32)
        group["genes"] = np.array([f"ENSMUSG{i:011d}" for i in range(n)], "S")
        group["gene_names"] = np.array(symbols(n), "S")
    return path


def write_mtx(folder: Path, counts: np.ndarray, barcodes: list[str], *, zipped: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    scipy_io.mmwrite(folder / "matrix.mtx", sparse.coo_matrix(counts.T))
    lines = "".join(
        f"ENSG{i:011d}\t{name}\tGene Expression\n"
        for i, name in enumerate(symbols(counts.shape[1]))
    )
    (folder / "features.tsv").write_text(lines)
    (folder / "barcodes.tsv").write_text("".join(f"{name}\n" for name in barcodes))
    if zipped:
        for path in list(folder.iterdir()):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    return folder


def write_positions(path: Path, positions: pd.DataFrame, *, header: bool) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        positions.to_parquet(path, index=False)
    else:
        positions.to_csv(path, header=header, index=False)
    return path


def write_scalefactors(folder: Path, **changes: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    factors = {
        "spot_diameter_fullres": 0.55 * PITCH_PX,
        "fiducial_diameter_fullres": 0.9 * PITCH_PX,
        "tissue_hires_scalef": 0.5,
        "tissue_lowres_scalef": 0.15,
        **changes,
    }
    path = folder / "scalefactors_json.json"
    path.write_text(json.dumps(factors))
    return path


def write_outs(outs: Path, array: Array | None = None, *, image: bool = True) -> Path:
    """Write a Space Ranger 2 `outs/` with its full-resolution image beside it."""
    array = array or Array()
    write_h5_v3(outs / "filtered_feature_bc_matrix.h5", array.filtered, array.barcodes)
    write_positions(outs / "spatial" / "tissue_positions.csv", array.positions, header=True)
    write_scalefactors(outs / "spatial")
    if image:
        write_image(outs.parent / "image.tif")
    return outs


def write_clusters(outs: Path, name: str, barcodes: list[str], labels: list[object]) -> None:
    path = outs / "analysis" / "clustering" / name / "clusters.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"Barcode": barcodes, "Cluster": labels}).to_csv(path, index=False)


def st_tables(n_x: int = 6, n_y: int = 5, genes: int = 7) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Counts and spots of a small ST array: 200 um = 40 px, so 5 um per px."""
    rng = np.random.default_rng(1)
    x, y = (a.ravel() for a in np.meshgrid(np.arange(3, 3 + n_x), np.arange(2, 2 + n_y)))
    spots = pd.DataFrame(
        {
            "x": x,
            "y": y,
            "new_x": x + 0.01 * rng.integers(-3, 4, x.size),
            "new_y": y + 0.01 * rng.integers(-3, 4, x.size),
        }
    )
    spots["pixel_x"] = 190 + 40 * (spots["new_x"] - 3)
    spots["pixel_y"] = 50 + 40 * (spots["new_y"] - 2)
    spots["selected"] = 1
    counts = pd.DataFrame(
        rng.poisson(3, (x.size, genes)),
        index=[f"{i}x{j}" for i, j in zip(x, y, strict=True)],
        columns=symbols(genes),
    )
    return counts, spots


def write_st(folder: Path, name: str = "S") -> dict[str, str]:
    """Write an ST section; return its cells of a sheet, relative to `folder`."""
    counts, spots = st_tables()
    folder.mkdir(parents=True, exist_ok=True)
    counts.to_csv(folder / f"{name}.tsv", sep="\t")
    spots.to_csv(folder / f"{name}_spots.tsv", sep="\t", index=False)
    write_image(folder / f"{name}.png")
    return {"image": f"{name}.png", "counts": f"{name}.tsv", "spots": f"{name}_spots.tsv"}


def write_sheet(path: Path, rows: list[dict[str, object]], mark: str = ",") -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [mark.join(names)]
    lines += [mark.join(str(row.get(name, "")) for name in names) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path
