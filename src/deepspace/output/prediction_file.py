"""A prediction on disk, of which chosen columns are read and the others are left where they are."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import KDTree

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.io.parts import clip_list

Matrix = NDArray[np.float32]

X: Final = "X"
# where the values of a kind lie
KINDS: Final = {"mean": X, "sd": keys.SD, "measured": keys.MEASURED}
# what X of an exported table holds, in ``uns['deepspace']``
VALUES: Final = "values"
# where a run notes the sheet that it read
SUMMARIES: Final = ("summary.json", "cohort.json")
# values that are held in memory at a time
BLOCK_BYTES: Final = 1 << 27


class PredictionFile:
    """What `predict` or `complete` wrote.

    Parameters
    ----------
    path : Path
        ``.h5ad``, or ``.zarr`` with the table ``prediction``.

    Attributes
    ----------
    obs, var : DataFrame
        One row a point; one row a gene or cluster.
    coords : ndarray, shape (points, 2)
        `x, y` in full-resolution pixels.
    section : str
        Whose slide the points lie on.
    library : dict
        Slide at two sizes and its scale factors, as in ``uns['spatial'][section]``.

    Raises
    ------
    InputError
        If it is no prediction of deepspace, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir() and path.suffix != ".zarr":
            raise InputError(f"{path}: is a folder; give one prediction, such as {path}/NAME.h5ad")
        try:
            self._group = _open(path)
            self.obs: pd.DataFrame = read_elem(self._group["obs"])
            self.var: pd.DataFrame = read_elem(self._group["var"])
            self.coords = np.asarray(read_elem(self._group["obsm"][keys.SPATIAL]), np.float64)
            self.uns: dict[str, Any] = read_elem(self._group["uns"])
            self.layers = (X, *(str(name) for name in self._group["layers"]))
            points, columns = len(self.obs), len(self.var)
            if self.coords.shape != (points, 2) or not np.isfinite(self.coords).all():
                raise ValueError("places of the points are missing or no numbers")
            for name in self.layers:
                shape = getattr(self.stored(name), "shape", (points, columns))
                if tuple(shape) != (points, columns):
                    raise ValueError(f"{name} is {shape}, not {points} x {columns}")
            if not is_prediction(self.uns, self.layers, self.obs):
                raise KeyError("it lacks what predict writes")
            ((self.section, self.library),) = self.uns[keys.SPATIAL].items()
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"{path}: cannot be used, it is no prediction of deepspace or is damaged "
                f"({error}); make it again with predict or complete"
            ) from error

    @property
    def diameter_px(self) -> float:
        """Diameter that a point is drawn with, full-resolution pixels."""
        return float(self.library["scalefactors"]["spot_diameter_fullres"])

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the slide, from its copy in the file: right to a pixel of that."""
        height, width = self.library["images"]["hires"].shape[:2]
        scale = float(self.library["scalefactors"]["tissue_hires_scalef"])
        return round(width / scale), round(height / scale)

    def require_mpp(self) -> float:
        """Micrometres per pixel of the slide.

        Raises
        ------
        InputError
            If the prediction does not know it.
        """
        mpp = self.library.get("metadata", {}).get("mpp")
        if mpp is None:
            raise InputError(
                f"{self.path}: the size of a pixel is not known; give mpp in the sheet and predict "
                "again"
            )
        return float(mpp)

    def used(self) -> NDArray[np.bool_]:
        """Which points lie on tissue, (points,)."""
        return self.obs[keys.IN_TISSUE].to_numpy(bool)

    def spacing_px(self) -> float:
        """Median distance to the nearest other point; the diameter where there is one point."""
        if len(self.coords) < 2:
            return self.diameter_px
        distance = KDTree(self.coords).query(self.coords, k=2)[0][:, 1]
        return float(np.median(distance)) or self.diameter_px

    def layer_of(self, kind: str) -> str:
        """Where the values of a kind lie: ``mean``, ``sd`` or ``measured``.

        Raises
        ------
        InputError
            If there is no such kind, or this prediction does not hold it.
        """
        if kind not in KINDS:
            raise InputError(f"--values {kind}: choose {', '.join(KINDS)}")
        if KINDS[kind] not in self.layers:
            have = [name for name, layer in KINDS.items() if layer in self.layers]
            raise InputError(
                f"{self.path}: holds no {kind} values; choose --values {' or '.join(have)}"
            )
        return KINDS[kind]

    def columns_of(self, genes: Sequence[str] | None) -> list[int]:
        """Numbers of the columns of genes or clusters; of all for None.

        Raises
        ------
        InputError
            If one is not there, or none is asked for.
        """
        names = [str(name) for name in self.var.index]
        if genes is None:
            return list(range(len(names)))
        place = {name: number for number, name in enumerate(names)}
        missing = [gene for gene in genes if gene not in place]
        if missing or not genes:
            raise InputError(
                f"{self.path}: does not hold {clip_list(missing) or 'what was asked: no gene'}; it "
                f"holds {clip_list(names)}"
            )
        return [place[gene] for gene in dict.fromkeys(genes)]

    def stored(self, layer: str) -> Any:
        """Matrix of a layer as it lies in the file: a data set, or the group of a sparse one."""
        return self._group[X if layer == X else f"layers/{layer}"]

    def read(self, layer: str, columns: Sequence[int], rows: slice = slice(None)) -> Matrix:
        """Values of some columns, (points, columns)."""
        stored = self.stored(layer)
        if not hasattr(stored, "shape"):  # sparse
            return np.asarray(sparse.csc_matrix(read_elem(stored))[rows][:, columns].toarray())
        # fancy selection of HDF5 is slow: what lies between is read too and left out
        low, high = min(columns), max(columns) + 1
        block = np.asarray(stored[rows, low:high], np.float32)
        return np.ascontiguousarray(block[:, np.asarray(columns) - low])

    def by_gene(self, layer: str, columns: Sequence[int]) -> Iterator[Matrix]:
        """Values of one column after the other, (points,) each; a bounded block is in memory."""
        most = max(1, BLOCK_BYTES // (4 * max(1, len(self.obs))))
        start = 0
        while start < len(columns):
            stop = start + 1
            low = high = columns[start]
            while stop < len(columns):
                low, high = min(low, columns[stop]), max(high, columns[stop])
                if high - low >= most:
                    break
                stop += 1
            yield from self.read(layer, columns[start:stop]).T
            start = stop

    def table(self, kind: str, columns: Sequence[int]) -> AnnData:
        """AnnData of some genes, in memory.

        ``X`` holds the values of `kind`, as ``uns['deepspace']['values']`` says; all layers come
        along, and the mean where ``X`` is not that. Of measured values, those points that were
        measured.
        """
        rows = slice(None)
        layers = {n: self.read(n, columns, rows) for n in self.layers if n != X}
        table = AnnData(
            X=self.read(self.layer_of(kind), columns),
            obs=self.obs.copy(),
            var=self.var.iloc[list(columns)].copy(),
            layers=layers,
            obsm={keys.SPATIAL: self.coords},
            uns=self.uns | {keys.UNS: {**self.uns[keys.UNS], VALUES: kind}},
        )
        if kind != "mean":
            table.layers["mean"] = self.read(X, columns)
        return table if kind != "measured" else only_measured(table)


def is_prediction(uns: Mapping[str, Any], layers: Collection[str], obs: pd.DataFrame) -> bool:
    """Whether a table is what `predict` writes, and not a user's that a prediction was added to."""
    own = uns.get(keys.UNS)
    told = isinstance(own, Mapping) and own.get(VALUES, "mean") == "mean"
    return told and keys.SD in layers and keys.OOD in obs


def noted_sheet(folder: Path) -> Path | None:
    """Cohort sheet that the run which wrote a folder noted there, if it is still in its place."""
    for name in SUMMARIES:
        if (folder / name).is_file():
            try:
                found = json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError:  # another program's
                continue
            noted = found.get("sheet") if isinstance(found, dict) else None
            if isinstance(noted, str) and (folder / noted).exists():
                return folder / noted
    return None


def only_measured(table: AnnData) -> AnnData:
    """Points of a prediction that were measured.

    Raises
    ------
    InputError
        If there are none.
    """
    chosen = table.obs[keys.MEASURED].to_numpy(bool)
    if not chosen.any():
        raise InputError("none of the points was measured; choose --values mean")
    return table[chosen].copy()


def _open(path: Path) -> Any:
    if path.suffix == ".zarr":
        import zarr  # noqa: PLC0415

        return zarr.open_group(path, mode="r")["tables/prediction"]
    return h5py.File(path, "r")
