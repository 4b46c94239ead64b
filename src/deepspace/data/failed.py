"""Which spots of a measured section failed: by thresholds, by their neighbours, or as told."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray
from scipy.spatial import KDTree

from deepspace.core import keys
from deepspace.core.config import FailedConfig, QCConfig
from deepspace.core.errors import InputError, Problems
from deepspace.core.progress import log
from deepspace.data.targets import LEAST_SPOTS, qc_mask
from deepspace.data.transforms import total_counts
from deepspace.io.parts import clip_list
from deepspace.io.section import Section
from deepspace.io.text import delimiter, read_text, stream

FloatArray = NDArray[np.float64]

FAILED: Final = "failed"
REASON: Final = "reason"
BARCODE: Final = "barcode"
NO_COUNTS: Final = "no counts"
FEW: Final = "few counts or genes"
OUTLIER: Final = "local outlier"
GIVEN: Final = "given"
REASONS: Final = ("", NO_COUNTS, FEW, OUTLIER, GIVEN)

# quality of a spot and the sign of a failure: too few counts or genes, too much mitochondrial
QUALITY: Final = {"log_counts": -1.0, "log_genes": -1.0, "mitochondrial": 1.0}
# and the least distance to the median of the neighbours that matters: half, and 5 % of the counts.
# Where nearly every spot has every gene of a panel, a few genes fewer are many deviations
LEAST: Final = {"log_counts": np.log(2.0), "log_genes": np.log(2.0), "mitochondrial": 0.05}
# makes the median absolute deviation of normal values their standard deviation
NORMAL_MAD: Final = 0.6745


def find_failed(
    section: Section, qc: QCConfig, options: FailedConfig, given: Collection[str] = ()
) -> pd.DataFrame:
    """Tell which spots in tissue of a measured section have no measurement to rely on.

    A spot failed if it has no counts, if it does not pass `qc`, if it is an outlier among its
    neighbours (`local_scores` beyond ``options.cutoff`` in the direction of a failure), or if
    the user says so. Only spots that pass the other tests are compared, and only with each
    other, so that a hole in the tissue does not make its rim look normal.

    Parameters
    ----------
    section
        Measured.
    qc, options
        Thresholds and the local test.
    given
        Barcodes that the user names, from `read_failed`.

    Returns
    -------
    DataFrame
        One row a spot in tissue, also those without counts; index `barcode`. Columns `failed`
        (bool), `reason` (category: empty, "no counts", "few counts or genes", "local outlier"
        or "given", the first that applies in this order), `log_counts`, `log_genes` (log1p),
        `mitochondrial` (share of counts) and their scores `z_log_counts`, ... (NaN where a spot
        was not compared).

    Raises
    ------
    InputError
        If the section has no counts.
    """
    quality = spot_quality(section.require_counts(), options.mitochondrial)
    passes = pd.Series(qc_mask(section.require_counts(), qc), index=quality.index)
    spots = tissue_spots(section)
    table = quality.reindex(spots.index)
    empty = ~(table["log_counts"] > 0).to_numpy()
    few = ~passes.reindex(spots.index, fill_value=False).to_numpy(dtype=bool)
    named = np.asarray(spots.index.isin(list(given)), np.bool_)
    fit = ~(empty | few | named)
    scores, apart = _scores(section.section, spots, table, fit, options)
    sign, least = np.array([*QUALITY.values()]), np.array([*LEAST.values()])
    beyond = (scores.to_numpy() * sign > options.cutoff) & (apart * sign > least)
    outlier = beyond.any(axis=1)
    rules = {NO_COUNTS: empty, FEW: few, OUTLIER: outlier, GIVEN: named}
    reason = np.select([*rules.values()], [*rules], default="")
    return table.assign(
        **{FAILED: reason != "", REASON: pd.Categorical(reason, categories=list(REASONS))},
        **scores,
    )[[FAILED, REASON, *table.columns, *scores.columns]]


def tissue_spots(section: Section) -> pd.DataFrame:
    """Spots in tissue, with or without counts: index `barcode`, columns `x`, `y` (px)."""
    if section.spots is None:
        coords = section.coords
        index = section.require_counts().obs_names
        return pd.DataFrame({"x": coords[:, 0], "y": coords[:, 1]}, index=index.rename(BARCODE))
    inside = section.spots[keys.IN_TISSUE].to_numpy(dtype=bool)
    return section.spots.loc[inside, ["x", "y"]].rename_axis(BARCODE)


def spot_quality(counts: AnnData, mitochondrial: str) -> pd.DataFrame:
    """Quality of measured spots.

    Parameters
    ----------
    counts
        Raw counts.
    mitochondrial
        Regular expression of the mitochondrial genes.

    Returns
    -------
    DataFrame
        One row a spot: `log_counts` and `log_genes`, log1p of counts and of detected genes, and
        `mitochondrial`, the share of counts in mitochondrial genes (NaN where there are none).
    """
    X = sp.csr_matrix(counts.X)
    total = total_counts(counts)
    genes = np.asarray((X > 0).sum(axis=1)).ravel()
    pattern = re.compile(mitochondrial, re.IGNORECASE)
    chosen = np.array([bool(pattern.search(name)) for name in counts.var_names], np.bool_)
    share = np.full(len(total), np.nan)
    if chosen.any():
        found = np.asarray(X[:, np.flatnonzero(chosen)].sum(axis=1), np.float64).ravel()
        share = np.divide(found, total, out=share, where=total > 0)
    values = (np.log1p(total), np.log1p(genes), share)
    return pd.DataFrame(dict(zip(QUALITY, values, strict=True)), index=counts.obs_names)


def _scores(
    name: str,
    spots: pd.DataFrame,
    table: pd.DataFrame,
    fit: NDArray[np.bool_],
    options: FailedConfig,
) -> tuple[pd.DataFrame, FloatArray]:
    """Scores of the spots that are `fit` to be compared, and their distance to the local median.

    NaN for the others.
    """
    scores = pd.DataFrame(np.nan, index=table.index, columns=[f"z_{column}" for column in QUALITY])
    apart = np.full(scores.shape, np.nan)
    if not options.local:
        return scores, apart
    if fit.sum() <= LEAST_SPOTS:
        log.info(
            "note: %s: %d good spots (by [qc] and --failed) are too few to look for outliers",
            name,
            fit.sum(),
        )
        return scores, apart
    values = table.loc[fit, list(QUALITY)].to_numpy(dtype=np.float64)
    places = spots.loc[fit].to_numpy(dtype=np.float64)
    scores.loc[fit] = local_scores(values, places, options.neighbours)
    apart[fit] = values - np.median(_around(values, places, options.neighbours), axis=1)
    return scores, apart


def local_scores(values: FloatArray, coords: FloatArray, neighbours: int) -> FloatArray:
    """Modified z-score of every spot among its nearest spots.

    ``z = 0.6745 (x - m) / MAD``, with `m` the median and MAD the median absolute deviation of
    the neighbours, the spot itself left out. What does not vary there scores 0.

    Parameters
    ----------
    values
        (spots, qualities).
    coords
        (spots, 2), any unit.
    neighbours
        How many; all others where the section has fewer.

    Returns
    -------
    ndarray, shape (spots, qualities)

    References
    ----------
    Totty, M. et al. SpotSweeper: spatially-aware quality control for spatial transcriptomics.
    bioRxiv (2024), doi:10.1101/2024.06.06.597765. Iglewicz, B. & Hoaglin, D. How to detect and
    handle outliers (ASQC, 1993) for the modified z-score.

    Examples
    --------
    >>> x = np.arange(12.0)
    >>> values = np.r_[10.0, 11, 10, 11, 10, 2, 10, 11, 10, 11, 10, 11][:, None]
    >>> local_scores(values, np.stack([x, 0 * x], axis=1), 8)[5].round(1)
    array([-11.5])
    """
    around = _around(values, coords, neighbours)
    middle = np.median(around, axis=1)
    spread = np.median(np.abs(around - middle[:, None]), axis=1)
    still = np.where(np.isnan(values), np.nan, 0.0)
    found: FloatArray = np.divide(
        NORMAL_MAD * (values - middle), spread, out=still, where=spread > 0
    )
    return found


def _around(values: FloatArray, coords: FloatArray, neighbours: int) -> FloatArray:
    """Values of the nearest spots of each, the spot itself left out (spots, nearest, qualities)."""
    k = min(neighbours, len(coords) - 1)
    _, near = KDTree(coords).query(coords, k=k + 1)
    # spots at one place may come before themselves
    own = near == np.arange(len(coords))[:, None]
    own[~own.any(axis=1), -1] = True
    around: FloatArray = values[near[~own].reshape(len(coords), k)]
    return around


def read_failed(path: Path, sections: Sequence[Section]) -> dict[str, frozenset[str]]:
    """Read a list of failed spots: a table with the columns `section` and `barcode`.

    Parameters
    ----------
    path
        CSV or TSV; other columns are ignored.
    sections
        Those that it may name.

    Returns
    -------
    dict
        Barcodes by section; one entry for each of `sections`.

    Raises
    ------
    InputError
        All faults together: missing columns, unknown or unmeasured sections, barcodes that are
        no spot in tissue.
    """
    text = read_text(path)
    table = pd.read_csv(stream(text), sep=delimiter(text.splitlines()[0]), dtype=str)
    table.columns = pd.Index([str(name).strip().lower() for name in table])
    missing = [name for name in (keys.SECTION, BARCODE) if name not in table]
    if missing:
        raise InputError(
            f"{path}: no column {' and no column '.join(missing)} (found: "
            f"{clip_list([*map(str, table)], 8)}); a list of failed spots has the columns "
            f"{keys.SECTION},{BARCODE}"
        )
    known = {section.section: section for section in sections}
    problems = Problems(str(path))
    found = {name: frozenset[str]() for name in known}
    names = table[keys.SECTION].fillna("").str.strip()
    for name, barcodes in table[BARCODE].fillna("").str.strip().groupby(names, sort=False):
        if name not in known:
            problems.add(f"there is no section {name!r}, only {', '.join(known)}; correct it")
        elif not known[name].measured:
            problems.add(f"section {name}: has no counts, so none of its spots can have failed")
        else:
            strange = sorted(set(barcodes) - set(tissue_spots(known[name]).index))
            found[str(name)] = frozenset(barcodes)
            if strange:
                problems.add(
                    f"section {name}: {len(strange)} of {len(barcodes)} barcodes are no spots in "
                    f"tissue of it ({clip_list(strange)}); correct or remove them"
                )
    problems.raise_if_any()
    return found
