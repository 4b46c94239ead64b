"""Values of one gene at every point, read from a file without reading the others."""

from __future__ import annotations

import shutil
import tempfile
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem
from numpy.typing import NDArray
from scipy import sparse

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.core.progress import log, track
from deepspace.data.transforms import log1p_cp10k, total_counts
from deepspace.output.prediction_file import PredictionFile

Column = NDArray[np.float32]

# one column of a file may cost so many bytes of reading; of more, the matrix is turned once
MOST_BYTES = 1 << 26
# columns that a hover or another layer asks for again
KEPT = 32
BAND_BYTES = 1 << 27
# column of `Measured.var`: counts of each gene
TOTAL = "total_counts"


class Values(Protocol):
    """Points with values of genes.

    Attributes
    ----------
    obs, var : DataFrame
        One row a point; one row a gene or cluster.
    coords : ndarray, shape (points, 2)
        x, y, full-resolution pixels.
    layers : tuple of str
        What `column` knows.
    """

    obs: pd.DataFrame
    var: pd.DataFrame
    coords: NDArray[np.float64]
    layers: tuple[str, ...]

    def column(self, layer: str, gene: int) -> Column:
        """Values of one gene, shape (points,); not-a-number where there are none."""
        ...


class ShownPrediction(PredictionFile):
    """A prediction on disk, of which single columns are asked for again and again.

    Parameters
    ----------
    path : Path
        ``.h5ad``, or ``.zarr`` with the table ``prediction``.

    Raises
    ------
    InputError
        If it is no prediction of deepspace, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = threading.Lock()
        self._turned: dict[str, NDArray[np.float32]] = {}
        self.column = lru_cache(KEPT)(self._column)

    def forget_pictures(self) -> None:
        """Let go of the copies of the slide."""
        self.library.pop("images", None)

    def _column(self, layer: str, gene: int) -> Column:
        """See `Values`."""
        stored = self.stored(layer)
        with self._lock:
            if layer not in self._turned and (
                not hasattr(stored, "shape") or _cost(stored) > MOST_BYTES
            ):
                self._turned[layer] = self._turn(layer, stored)
        if layer in self._turned:
            return np.asarray(self._turned[layer][gene], np.float32)
        return np.asarray(stored[:, gene], np.float32)

    def _turn(self, layer: str, stored: Any) -> NDArray[np.float32]:
        """Matrix with the genes first, in a file without a name, gone when it is let go."""
        if not hasattr(stored, "shape"):  # sparse
            return np.ascontiguousarray(read_elem(stored).toarray().T, np.float32)
        points, genes = stored.shape
        with tempfile.TemporaryDirectory(
            prefix="deepspace-view-", ignore_cleanup_errors=True
        ) as scratch:
            _require_room(Path(scratch), 4 * points * genes)
            where = Path(scratch) / "turned.npy"
            turned = np.lib.format.open_memmap(where, "w+", np.float32, (genes, points))
        rows = max(1, BAND_BYTES // (4 * genes))
        log.info("preparing %s of %s", layer, self.path.name)
        starts = range(0, points, rows)
        for start in track(starts, total=len(starts), text="turning the table"):
            turned[:, start : start + rows] = np.asarray(stored[start : start + rows]).T
        found: NDArray[np.float32] = turned
        return found


class Measured:
    """Counts of a section as log1p of counts per 10,000.

    Parameters
    ----------
    counts : AnnData
        Raw counts, ``obsm['spatial']``.
    """

    def __init__(self, counts: AnnData) -> None:
        self.obs = counts.obs
        self.var = pd.DataFrame(index=counts.var_names.astype(str))
        self.var[TOTAL] = np.asarray(counts.X.sum(axis=0)).ravel()
        self.coords = np.asarray(counts.obsm[keys.SPATIAL], np.float64)
        self.layers: tuple[str, ...] = (keys.MEASURED,)
        self._counts = sparse.csc_matrix(counts.X)
        self._depth = total_counts(counts)
        self.genes = {name: k for k, name in enumerate(self.var.index)}

    def column(self, layer: str, gene: int) -> Column:
        """See `Values`."""
        del layer  # there is one
        own = np.asarray(self._counts[:, [gene]].toarray(), np.float64)
        return log1p_cp10k(own, self._depth)[:, 0].astype(np.float32)


def _require_room(folder: Path, size: int) -> None:
    # a full disk would end the process while it writes into the map
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InputError(
            f"{folder.parent}: {size / 1e9:.1f} GB are needed to look at this prediction gene by "
            f"gene, {free / 1e9:.1f} are free; make room, or set TMPDIR to a folder on another disk"
        )


def _cost(stored: Any) -> int:
    """Bytes that are decoded to read one column."""
    width = stored.chunks[1] if stored.chunks else 1
    return int(stored.shape[0] * width * stored.dtype.itemsize)
