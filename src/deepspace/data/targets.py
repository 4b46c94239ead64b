"""From raw counts to what is predicted: quality control, gene choice, transforms, the targets."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from deepspace.core.config import QCConfig, TargetConfig
from deepspace.core.errors import InputError
from deepspace.data.ceiling import reliability
from deepspace.data.clusters import fit_clusters, restore_clusters
from deepspace.data.transforms import TRANSFORMS, Null, pearson_residuals, total_counts
from deepspace.io.section import Section

FloatArray = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]

# fewer spots of a section tell nothing
LEAST_SPOTS = 10


def qc_mask(counts: AnnData, qc: QCConfig) -> NDArray[np.bool_]:
    """Spots that pass the thresholds, shape (spots,)."""
    X = sp.csr_matrix(counts.X)
    total = total_counts(counts)
    genes = np.asarray((X > 0).sum(axis=1)).ravel()  # files may store zeros
    return (total >= qc.min_counts) & (genes >= qc.min_genes)


def apply_qc(sections: Sequence[Section], qc: QCConfig) -> tuple[list[Section], list[str]]:
    """Measured sections reduced to the spots that pass, with one report line a section.

    Raises
    ------
    InputError
        If a section keeps fewer than 10 spots.
    """
    kept: list[Section] = []
    report: list[str] = []
    for section in sections:
        if section.counts is None:
            continue
        mask = qc_mask(section.counts, qc)
        report.append(
            f"{section.section}: {int(mask.sum())} of {mask.size} spots pass "
            f"(at least {qc.min_counts} UMI and {qc.min_genes} genes)"
        )
        if mask.sum() < LEAST_SPOTS:
            raise InputError(
                f"section {section.section}: only {int(mask.sum())} of {mask.size} spots have "
                f"{qc.min_counts} UMI and {qc.min_genes} genes; lower [qc] min_counts and "
                "min_genes in the configuration, or leave the section's counts out of the sheet"
            )
        kept.append(section.subset(mask))
    return kept, report


class Target(Protocol):
    """What a model learns: a spot's counts as numbers, and predicted numbers as a result."""

    @property
    def kind(self) -> str:
        """Key of `TARGETS`."""
        ...

    @property
    def loss(self) -> str:
        """What a network minimises: ``smooth_l1`` or ``cross_entropy``."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Genes or clusters, in the order of the columns."""
        ...

    @property
    def wide(self) -> Target:
        """The same names first, then others that are learnt along to help them."""
        ...

    def encode(self, counts: AnnData) -> FloatArray:
        """Raw counts to target values, shape (spots, names)."""
        ...

    def labelled(self, counts: AnnData) -> NDArray[np.bool_]:
        """Spots that can be learnt from, shape (spots,)."""
        ...

    def settled(self, sections: Sequence[Section]) -> tuple[Sequence[Section], Target]:
        """Sections and a target by which a spot's values do not depend on the spots beside it."""
        ...

    def decode(self, values: FloatArray) -> FloatArray:
        """Target values to what is written: log1p CP10k, or probabilities."""
        ...

    def decode_sd(self, values: FloatArray, sd: FloatArray) -> FloatArray:
        """Standard deviation after `decode`."""
        ...

    def subset(self, names: Sequence[str]) -> Self:
        """The same target for some of its names."""
        ...

    def noise_variance(self, counts: AnnData, seed: int) -> FloatArray:
        """Variance of the measurement noise in target units, shape (names,)."""
        ...

    def thinness(self, counts: AnnData) -> FloatArray:
        """Noise variance of these spots as a share of the training spots' mean, shape (spots,)."""
        ...

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """What its row of `TARGETS` restores it from: JSON values and arrays."""
        ...


@dataclass(frozen=True)
class ExpressionTarget:
    """Genes as a regression target.

    Attributes
    ----------
    names : tuple of str
        Genes, in the order of the columns.
    transform : str
        A key of `TRANSFORMS`.
    null : Null
        What the training data say of each gene's level; only Pearson residuals use it.
    context : ExpressionTarget, optional
        These genes and others, learnt together because genes vary together; forgotten once a
        model is fitted.
    """

    names: tuple[str, ...]
    transform: str
    null: Null
    context: ExpressionTarget | None = None
    kind = "expression"
    loss = "smooth_l1"

    @property
    def wide(self) -> ExpressionTarget:
        """Target with its context."""
        return self.context or self

    def encode(self, counts: AnnData) -> FloatArray:
        """Raw counts to target values, shape (spots, genes)."""
        X = sp.csr_matrix(counts.X)
        columns = counts.var_names.get_indexer(list(self.names))
        if (columns < 0).any():
            missing = [n for n, c in zip(self.names, columns, strict=True) if c < 0]
            raise InputError(f"genes not in these counts: {', '.join(missing[:10])}")
        chosen = X[:, columns].toarray().astype(np.float64)
        return TRANSFORMS[self.transform].encode(chosen, total_counts(counts), self.null)

    def labelled(self, counts: AnnData) -> NDArray[np.bool_]:
        """Every spot, shape (spots,)."""
        return np.ones(counts.n_obs, dtype=np.bool_)

    def settled(self, sections: Sequence[Section]) -> tuple[Sequence[Section], ExpressionTarget]:
        """Expression depends on the spot's own counts alone."""
        return sections, self

    def subset(self, names: Sequence[str]) -> ExpressionTarget:
        """The same target for some of its genes."""
        column = {name: j for j, name in enumerate(self.names)}
        fractions = self.null.fractions[[column[name] for name in names]]
        null = replace(self.null, fractions=fractions)
        return ExpressionTarget(tuple(names), self.transform, null)

    def decode(self, values: FloatArray) -> FloatArray:
        """Target values to log1p of counts per 10,000."""
        return TRANSFORMS[self.transform].decode(values, self.null)

    def decode_sd(self, values: FloatArray, sd: FloatArray) -> FloatArray:
        """Standard deviation after `decode`: half of what one sd to either side spans.

        Where both sides decode to zero counts that span is 0, which is no certainty: the span at
        the gene's mean stands in there.
        """
        span = (self.decode(values + sd) - self.decode(values - sd)) / 2
        instead = (self.decode(sd) - self.decode(-sd)) / 2
        return np.where(span > 0, span, instead)

    def noise_variance(self, counts: AnnData, seed: int) -> FloatArray:
        """Variance of the measurement noise by thinning (`reliability`), shape (genes,)."""
        return reliability(counts, self, seed=seed, repeats=2).noise_variance

    def thinness(self, counts: AnnData) -> FloatArray:
        """Noise variance of these spots as a share of the training spots' mean, shape (spots,).

        A spot of few counts is a noisier measurement of the same expression.
        """
        usual = self.null.noise_depth or self.null.depth
        share: FloatArray = usual / np.maximum(total_counts(counts), 1.0)
        return share ** TRANSFORMS[self.transform].noise_power

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """What `restore_expression` makes it again from: JSON values and arrays."""
        values = {
            "transform": self.transform,
            "depth": self.null.depth,
            "spots": self.null.spots,
            "noise_depth": self.null.noise_depth,
        }
        return values, {"fractions": self.null.fractions}


def restore_expression(
    names: Sequence[str], values: Mapping[str, Any], arrays: Arrays
) -> ExpressionTarget:
    """Take back what `ExpressionTarget.state` gave."""
    # models saved before intervals knew of depth do not tell the last one
    null = Null(arrays["fractions"], values["depth"], values["spots"], values.get("noise_depth"))
    return ExpressionTarget(tuple(names), values["transform"], null)


def fit_target(sections: Sequence[Section], config: TargetConfig) -> Target:
    """Fit what `config` asks for, on these (training) sections only.

    Raises
    ------
    InputError
        As `fit_expression` and `fit_clusters` do.
    """
    return TARGETS[config.kind].fit(sections, config)


def fit_expression(sections: Sequence[Section], config: TargetConfig) -> ExpressionTarget:
    """Choose the genes and fit the transform, on these (training) sections only.

    Parameters
    ----------
    sections : sequence of Section
        Measured sections, reduced to training spots that passed quality control.
    config : TargetConfig
        `genes` is ``variable:N`` (largest variance of Pearson residuals), ``expressed:N``
        (largest mean share of a spot's counts), a file with one gene a line, or names
        separated by commas. Only genes present in every section can be chosen. The patterns
        in `exclude` apply to the two rules, not to genes that were named.

    Raises
    ------
    InputError
        If genes are unknown, or the rule is not understood.
    """
    measured = [s.counts for s in sections if s.counts is not None]
    shared = _shared_genes(measured)
    totals = np.zeros(len(shared))
    for counts in measured:
        totals += np.asarray(counts[:, shared].X.sum(axis=0), dtype=np.float64).ravel()
    depths = np.concatenate([total_counts(c) for c in measured])
    # a gene without any count gets half a one, so that residuals stay finite
    floored = np.maximum(totals, 0.5) / max(float(depths.sum()), 1.0)
    fractions = dict(zip(shared, np.where(totals > 0, floored, 0.0), strict=True))
    floor = dict(zip(shared, floored, strict=True))
    null = Null(
        np.empty(0),
        max(float(np.median(depths)), 1.0),
        len(depths),
        float(1.0 / np.mean(1.0 / np.maximum(depths, 1.0))),
    )
    candidates = _candidates(shared, fractions, config.exclude)
    shares = replace(null, fractions=np.array([fractions[g] for g in candidates]))
    rule, _, number = config.genes.partition(":")
    if rule in GENE_RULES and number:
        score = GENE_RULES[rule](measured, candidates, shares)
        order = np.argsort(-score, kind="stable")[: int(number)]
        names = [candidates[i] for i in order]
    else:
        names = _named_genes(config.genes, shared)

    def target(genes: Sequence[str]) -> ExpressionTarget:
        chosen = np.array([floor[g] for g in genes])
        return ExpressionTarget(tuple(genes), config.transform, replace(null, fractions=chosen))

    if len(names) >= config.context:
        return target(names)
    most = np.argsort(-_mean_share(measured, candidates, shares), kind="stable")
    others = [candidates[i] for i in most if candidates[i] not in set(names)]
    wide = target([*names, *others[: config.context - len(names)]])
    return replace(target(names), context=wide)


def check_genes(sections: Sequence[Section], config: TargetConfig) -> None:
    """Refuse a rule or names of genes that `fit_expression` would refuse, at no cost.

    Raises
    ------
    InputError
        As `fit_expression` does.
    """
    measured = [s.counts for s in sections if s.counts is not None]
    rule, _, number = config.genes.partition(":")
    if config.kind != "expression" or not measured:
        return
    if not (rule in GENE_RULES and number):
        _named_genes(config.genes, _shared_genes(measured))


def _shared_genes(measured: Sequence[AnnData]) -> list[str]:
    shared = measured[0].var_names
    for counts in measured[1:]:
        shared = shared[shared.isin(counts.var_names)]
    if not len(shared):
        raise InputError(
            "no gene is present in every measured section: gene names differ (symbols in one, "
            "Ensembl ids in another?); run `deepspace inspect` on the sheet"
        )
    return list(shared)


def _candidates(
    shared: list[str], fractions: dict[str, float], exclude: Sequence[str]
) -> list[str]:
    drop = re.compile("|".join(f"(?:{p})" for p in exclude), re.IGNORECASE) if exclude else None
    return [g for g in shared if fractions[g] > 0 and not (drop and drop.match(g))]


def _mean_share(measured: Sequence[AnnData], genes: list[str], _: Null) -> FloatArray:
    total, spots = np.zeros(len(genes)), 0
    for counts in measured:
        X = sp.csr_matrix(counts.X)
        depth = np.maximum(total_counts(counts), 1.0)
        columns = counts.var_names.get_indexer(genes)
        total += np.asarray(sp.diags(1.0 / depth).dot(X[:, columns]).sum(axis=0)).ravel()
        spots += X.shape[0]
    return total / spots


def _residual_variance(measured: Sequence[AnnData], genes: list[str], null: Null) -> FloatArray:
    squares, spots = np.zeros(len(genes)), sum(c.n_obs for c in measured)
    for counts in measured:
        X = sp.csr_matrix(counts.X)
        depth = total_counts(counts)
        columns = counts.var_names.get_indexer(genes)
        for start in range(0, len(genes), 1000):  # bounds the dense block's memory
            part = slice(start, start + 1000)
            dense = X[:, columns[part]].toarray().astype(np.float64)
            here = replace(null, fractions=null.fractions[part])
            squares[part] += (pearson_residuals(dense, depth, here) ** 2).sum(axis=0)
    variance: FloatArray = squares / spots
    return variance


GENE_RULES: dict[str, Callable[[Sequence[AnnData], list[str], Null], FloatArray]] = {
    "expressed": _mean_share,
    "variable": _residual_variance,
}


def _named_genes(text: str, shared: list[str]) -> list[str]:
    path = Path(text)
    if "," not in text and path.suffix in (".txt", ".csv", ".tsv") and not path.exists():
        raise InputError(f"--genes {text}: no such file; correct the path")
    if "," not in text and path.is_file():
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    else:
        names = [name.strip() for name in text.split(",")]
    names = list(dict.fromkeys(name for name in names if name and not name.startswith("#")))
    if not names:
        raise InputError(f"--genes {text}: no gene named")
    known = set(shared)
    missing = [name for name in names if name not in known]
    if missing:
        hints = []
        for name in missing[:10]:
            near = difflib.get_close_matches(name, shared, n=1)
            hints.append(f"{name} (did you mean {near[0]}?)" if near else name)
        raise InputError(
            f"--genes: {len(missing)} of {len(names)} genes are not in every measured section: "
            f"{', '.join(hints)}. Give expressed:N, variable:N, an existing file with one gene "
            "a line, or names separated by commas"
        )
    return names


@dataclass(frozen=True)
class TargetKind:
    """How a kind of target is fitted on sections, and restored from names, values and arrays."""

    fit: Callable[[Sequence[Section], TargetConfig], Target]
    restore: Callable[[Sequence[str], Mapping[str, Any], Arrays], Target]


TARGETS: dict[str, TargetKind] = {
    "expression": TargetKind(fit_expression, restore_expression),
    "clusters": TargetKind(
        partial(fit_clusters, measure=fit_expression),
        partial(restore_clusters, expression=restore_expression),
    ),
}
