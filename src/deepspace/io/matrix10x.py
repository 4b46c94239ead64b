"""10x feature-barcode matrices: .h5 of both flavours, and Matrix Market folders."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py
import pandas as pd
from anndata import AnnData
from scipy import io as scipy_io
from scipy import sparse

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.io.parts import as_csr, unique_genes
from deepspace.io.text import need_file, read_bytes, read_text, stream

GENES: Final = "Gene Expression"
_SYMBOL: Final = "symbol"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_AGAIN: Final = "download or copy it again"


def read_matrix(path: Path, notes: list[str]) -> AnnData:
    """Read a 10x matrix, from an .h5 file or a folder with matrix.mtx.

    Returns
    -------
    Barcodes x genes, CSR float32; features that are not genes are left out with a note.

    Raises
    ------
    InputError
        If it is missing, damaged or of another kind.
    """
    adata = _read_folder(path) if path.is_dir() else _read_h5(path)
    kinds = adata.var[keys.FEATURE_TYPES]
    others = kinds[kinds != GENES]
    if len(others):
        counted = ", ".join(f"{n} {kind}" for kind, n in others.value_counts().items())
        notes.append(f"{path}: features that are not genes are left out: {counted}")
        adata = adata[:, kinds == GENES].copy()
    adata.var_names = unique_genes(pd.Index(adata.var.pop(_SYMBOL)), notes)
    return adata


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file; damage found at any time ends as `InputError`.

    Raises
    ------
    InputError
        If it is not HDF5, or is cut short.
    """
    with need_file(path).open("rb") as file:
        magic = file.read(len(_HDF5))
    if magic != _HDF5:
        raise InputError(f"{path}: is not an HDF5 file, whatever its name says; {_AGAIN}")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: is damaged or cut short ({error}); {_AGAIN}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: holds parts of another kind ({error}); {_AGAIN}") from error
    except KeyError as error:
        raise InputError(
            f"{path}: lacks a part that every such file has ({error.args[0]}); {_AGAIN}"
        ) from error


def is_10x_h5(path: Path) -> bool:
    """Say whether a file is HDF5 with a 10x matrix in it."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with open_h5(path) as file:
        return _matrix_group(file) is not None


def _matrix_group(file: h5py.File) -> h5py.Group | None:
    """Group of the counts: `matrix` (cellranger 3), or the only genome (cellranger 2)."""
    if "matrix" in file:
        return file["matrix"]
    groups = [g for g in file.values() if isinstance(g, h5py.Group) and "indptr" in g]
    groups = [group for group in groups if "gene_names" in group]
    if len(groups) > 1:
        names = ", ".join(group.name.strip("/") for group in groups)
        raise InputError(f"{file.filename}: holds several genomes ({names}); export one of them")
    return groups[0] if groups else None


def matrix_file(path: Path) -> Path:
    """Return the file that holds the numbers of a matrix, which may be a folder.

    Raises
    ------
    InputError
        If the folder has none.
    """
    return _one_of(path, "matrix.mtx") if path.is_dir() else path


def _read_h5(path: Path) -> AnnData:
    with open_h5(path) as file:
        group = _matrix_group(file)
        if group is None:
            raise InputError(
                f"{path}: is HDF5 without a 10x matrix (it holds {', '.join(file) or 'nothing'}); "
                "give filtered_feature_bc_matrix.h5, or an .h5ad in the column h5ad"
            )
        # stored as one column per barcode: that is CSR of barcodes x features
        arrays = (group["data"][:], group["indices"][:], group["indptr"][:])
        barcodes = _strings(group["barcodes"])
        var = _features_v3(group["features"]) if "features" in group else _features_v2(group)
        # cut-down files of other tools may lack the shape
        shape = tuple(group["shape"][()].ravel().tolist()) if "shape" in group else None
    shape = shape or (len(var), len(barcodes))
    _check_sparse(path, arrays, shape, len(barcodes), len(var))
    matrix = sparse.csr_matrix(arrays, shape=shape[::-1])
    return _make(matrix, barcodes, var)


def _check_sparse(
    path: Path, arrays: tuple[Any, ...], shape: tuple[int, ...], barcodes: int, features: int
) -> None:
    data, indices, indptr = arrays
    # what does not fit would be read beyond the ends of the arrays
    sound = (
        shape == (features, barcodes)
        and len(indptr) == barcodes + 1
        and int(indptr[0]) == 0
        and bool((indptr[1:] >= indptr[:-1]).all())
        and len(data) == len(indices) == int(indptr[-1])
        and (len(indices) == 0 or 0 <= int(indices.min()) <= int(indices.max()) < features)
    )
    if not sound:
        raise InputError(
            f"{path}: its parts do not fit together (shape {shape}, {features} features, "
            f"{barcodes} barcodes, {len(data)} values); {_AGAIN}"
        )


def _features_v3(group: h5py.Group) -> pd.DataFrame:
    names = _strings(group["name"])
    kinds = _strings(group["feature_type"]) if "feature_type" in group else [GENES] * len(names)
    ids = _strings(group["id"]) if "id" in group else names
    return pd.DataFrame({_SYMBOL: names, keys.GENE_IDS: ids, keys.FEATURE_TYPES: kinds})


def _features_v2(group: h5py.Group) -> pd.DataFrame:
    names, ids = _strings(group["gene_names"]), _strings(group["genes"])
    return pd.DataFrame({_SYMBOL: names, keys.GENE_IDS: ids, keys.FEATURE_TYPES: GENES})


def _strings(dataset: h5py.Dataset) -> list[str]:
    return list(dataset.asstr()[:])


def _read_folder(folder: Path) -> AnnData:
    matrix = _market(_one_of(folder, "matrix.mtx"))
    barcodes = [fields[0] for fields in _fields(_one_of(folder, "barcodes.tsv"))]
    # cellranger 2 calls the features genes.tsv, without a third column
    features = _fields(_one_of(folder, "features.tsv", "genes.tsv"))
    if matrix.shape != (len(features), len(barcodes)):
        raise InputError(
            f"{folder}: the matrix is {matrix.shape[0]} x {matrix.shape[1]}, but there are "
            f"{len(features)} features and {len(barcodes)} barcodes; {_AGAIN}"
        )
    var = pd.DataFrame({_SYMBOL: [fields[min(1, len(fields) - 1)] for fields in features]})
    var[keys.GENE_IDS] = [fields[0] for fields in features]
    var[keys.FEATURE_TYPES] = [fields[2] if len(fields) > 2 else GENES for fields in features]
    return _make(matrix.T, barcodes, var)


def _one_of(folder: Path, *names: str) -> Path:
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise InputError(f"{folder}: holds no {' or '.join(names)} (or .gz); {_AGAIN}")


def _fields(path: Path) -> list[list[str]]:
    return [fields for fields in csv.reader(stream(read_text(path)), delimiter="\t") if fields]


def _market(path: Path) -> sparse.coo_matrix:
    try:
        return sparse.coo_matrix(scipy_io.mmread(io.BytesIO(read_bytes(path))))
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{path}: is not a sound Matrix Market file ({error}); {_AGAIN}"
        ) from error


def _make(matrix: object, barcodes: Sequence[str], var: pd.DataFrame) -> AnnData:
    var.index = var.index.astype(str)
    return AnnData(as_csr(matrix), obs=pd.DataFrame(index=pd.Index(barcodes)), var=var)
