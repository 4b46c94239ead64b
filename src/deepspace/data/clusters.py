"""Clusters as a classification target: labels that came with the data, or computed ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from deepspace.core import keys
from deepspace.core.classification import Labels, label_order
from deepspace.core.config import TargetConfig
from deepspace.core.errors import InputError
from deepspace.core.progress import log, log_once
from deepspace.data.clustering import CLUSTERINGS, NEIGHBOURS, SEED, by_size
from deepspace.io.section import Section

if TYPE_CHECKING:
    from deepspace.data.targets import Target

FloatArray = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]
Measure = Callable[[Sequence[Section], TargetConfig], "Target"]

# a cluster of fewer training spots cannot be learnt
LEAST_CLUSTER = 5
# fewer labelled spots of a section tell nothing
LEAST_LABELLED = 10
COMPONENTS = 20
NONE = ""


class Labeller(Protocol):
    """Where the label of a spot comes from."""

    def __call__(self, counts: AnnData) -> Labels:
        """Label of each spot, shape (spots,); empty where there is none."""
        ...

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """What `LABELLERS` makes it again from: JSON values and arrays."""
        ...


@dataclass(frozen=True)
class ClusterTarget:
    """Clusters as a target of classification.

    Attributes
    ----------
    names : tuple of str
        Clusters, in the order of the columns.
    labeller : Labeller
        Where the label of a spot comes from.
    how : str
        ``given``, ``kmeans`` or ``leiden``.
    """

    names: tuple[str, ...]
    labeller: Labeller
    how: str
    kind = "clusters"
    loss = "cross_entropy"

    @property
    def wide(self) -> ClusterTarget:
        """The target itself: clusters need no others beside them."""
        return self

    def labels(self, counts: AnnData) -> Labels:
        """True cluster of each spot, shape (spots,); empty where there is none."""
        return self.labeller(counts)

    def encode(self, counts: AnnData) -> FloatArray:
        """Indicator of each spot's cluster, shape (spots, clusters).

        A row of zeros is a spot without a label, or of a cluster that is not in `names`.
        """
        same: FloatArray = self.labels(counts)[:, None] == np.array(self.names)
        return same.astype(np.float64)

    def labelled(self, counts: AnnData) -> NDArray[np.bool_]:
        """Spots that can be learnt from, shape (spots,)."""
        return np.isin(self.labels(counts), self.names)

    def settled(self, sections: Sequence[Section]) -> tuple[Sequence[Section], ClusterTarget]:
        """Labels written down: computed ones are centred on whatever part of a section is asked."""
        found = []
        for section in sections:
            counts = section.require_counts().copy()
            counts.obs[keys.CLUSTER] = self.labels(counts)
            found.append(replace(section, counts=counts))
        return found, replace(self, labeller=Given())

    def subset(self, names: Sequence[str]) -> ClusterTarget:
        """The same target for some of its clusters; the spots of others have no label."""
        return replace(self, names=tuple(names))

    def decode(self, values: FloatArray) -> FloatArray:
        """Values to probabilities: clipped at 0 and divided by their sum.

        Regression on indicators estimates the probabilities of the classes and sums to one, but
        may leave 0 to 1 (Hastie, Tibshirani & Friedman, The Elements of Statistical Learning,
        2nd ed., section 4.2); rows that are probabilities stay as they are.

        Examples
        --------
        >>> target = ClusterTarget(("a", "b", "c"), Given(), "given")
        >>> target.decode(np.array([[0.9, 0.3, -0.2], [0.5, 0.25, 0.25]]))
        array([[0.75, 0.25, 0.  ],
               [0.5 , 0.25, 0.25]])
        """
        clipped = np.maximum(values, 0.0)
        total = clipped.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            shares: FloatArray = np.where(total == 0, 1.0 / values.shape[1], clipped / total)
        return shares

    def decode_sd(self, values: FloatArray, sd: FloatArray) -> FloatArray:
        """Standard deviation, at most one half: that of a value between 0 and 1."""
        return np.minimum(sd, 0.5)

    def noise_variance(self, counts: AnnData, seed: int) -> FloatArray:
        """Zeros, shape (clusters,): a label is taken as it is."""
        return np.zeros(len(self.names))

    def thinness(self, counts: AnnData) -> FloatArray:
        """Ones, shape (spots,): there is no noise of counting."""
        return np.ones(counts.n_obs)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """What `restore_clusters` makes it again from: JSON values and arrays."""
        values, arrays = self.labeller.state()
        return {"clusters": self.how, **values}, arrays

    def named_like(self, other: ClusterTarget, sections: Sequence[Section]) -> ClusterTarget:
        """The same clusters under the names of `other`'s that they overlap most.

        Computed clusters have no names of their own, so the folds of an evaluation number them
        differently. One-to-one names with the largest number of shared spots of `sections`
        (Hungarian method); clusters left over get new numbers.
        """
        if not isinstance(self.labeller, Carried):
            return self
        counts = [s.require_counts() for s in sections]
        own, theirs = (np.concatenate([t.labels(c) for c in counts]) for t in (self, other))
        shared = [[np.sum((own == a) & (theirs == b)) for b in other.names] for a in self.names]
        rows, columns = linear_sum_assignment(-np.array(shared))
        names = {self.names[r]: other.names[c] for r, c in zip(rows, columns, strict=True)}
        spare = (str(n) for n in itertools.count(1) if str(n) not in other.names)
        names |= {name: next(spare) for name in self.names if name not in names}
        return replace(
            self, names=tuple(label_order(names.values())), labeller=self.labeller.renamed(names)
        )


class Given:
    """Labels as they came with the data, in ``obs['cluster']``."""

    def __call__(self, counts: AnnData) -> Labels:
        """Label of each spot, shape (spots,); empty where there is none."""
        if keys.CLUSTER not in counts.obs:
            return np.full(counts.n_obs, NONE, dtype=np.str_)
        labels = counts.obs[keys.CLUSTER].astype(object)
        return np.asarray(labels.where(labels.notna(), NONE), dtype=np.str_)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Nothing."""
        return {}, {}


@dataclass(frozen=True)
class Carried:
    """Computed labels of reference spots, carried to any spot by its nearest neighbours.

    Expression is centred on the mean of the counts given, which should be those of one section:
    that takes out differences between sections. Then it is projected on the components of the
    reference, where the `NEIGHBOURS` nearest reference spots vote with weight 1 / distance; a
    reference spot keeps its own label.

    Attributes
    ----------
    expression : Target
        Genes and transform that the components are of.
    components : ndarray, shape (components, genes)
    scores : ndarray, shape (spots, components)
        Reference spots.
    labels : ndarray of str, shape (spots,)
        Their clusters.
    """

    expression: Target
    components: FloatArray
    scores: FloatArray
    labels: Labels

    def __call__(self, counts: AnnData) -> Labels:
        """Label of each spot, shape (spots,)."""
        here = [name for name in self.expression.names if name in counts.var_names]
        values = centred(self.expression.subset(here), counts)
        columns = np.isin(self.expression.names, here)
        vote = KNeighborsClassifier(
            min(NEIGHBOURS, len(self.labels)), weights="distance", algorithm="kd_tree"
        ).fit(self.scores, self.labels)
        found: Labels = vote.predict(project(values, self.components[:, columns]))
        return found

    def renamed(self, names: Mapping[str, str]) -> Carried:
        """The same with other names of clusters."""
        return replace(self, labels=np.array([names[label] for label in self.labels]))

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Genes with their transform, and the reference."""
        values, arrays = self.expression.state()
        names = label_order(self.labels.tolist())
        known = {"genes": list(self.expression.names), "expression": values, "labels": names}
        own = {
            "components": self.components,
            "scores": self.scores,
            "labels": np.array([names.index(label) for label in self.labels], dtype=np.int64),
        }
        return known, own | arrays


def centred(expression: Target, counts: AnnData) -> FloatArray:
    """Expression of the spots of one section minus its mean, shape (spots, genes)."""
    values = expression.encode(counts)
    difference: FloatArray = values - values.mean(axis=0)
    return difference


def project(values: FloatArray, components: FloatArray) -> FloatArray:
    """Scores on principal components, shape (spots, components)."""
    scores: FloatArray = values @ components.T
    return scores


def prepare_clusters(
    sections: Sequence[Section], config: TargetConfig
) -> tuple[list[Section], TargetConfig]:
    """Settle where the labels come from, before anything is held out.

    Returns
    -------
    tuple
        Sections to learn from and to score on, without those that lack the given labels; and
        the configuration with ``auto`` replaced by what it means here.

    Raises
    ------
    InputError
        If the labels are to be the given ones, but there are none, or they are of separate
        Space Ranger runs.
    """
    lacking = [s for s in sections if _labelled(s) < LEAST_LABELLED]
    present = [s for s in sections if s not in lacking]
    runs = {s.sources.get("clusters") if s.clusters_of_run else None for s in present}
    separate = len(runs) > 1
    if config.clusters == "auto":
        how = "kmeans" if lacking or separate else "given"
        reason = _why(lacking, separate=separate) or "every measured section has labels"
        log_once(f"clusters: {how} ({reason})")
        config = config.model_copy(update={"clusters": how})
    if config.clusters != "given":
        return list(sections), config
    if separate or not present:
        raise InputError(f"[target] clusters = given: {_why(lacking, separate=separate)}; {CURE}")
    for section in lacking:
        log_once(f"section {section.section}: has no cluster labels and is left out")
    _note_numbers(present)
    return present, config


CURE = (
    "give labels that mean the same everywhere in the sheet's column clusters (from an "
    "aggregated analysis), or compute them here with clusters = kmeans or leiden"
)


def _labelled(section: Section) -> int:
    return int((Given()(section.require_counts()) != NONE).sum())


def _why(lacking: Sequence[Section], *, separate: bool) -> str:
    """What keeps given labels from being used; empty if nothing does."""
    if separate:
        return (
            "the labels come from separate Space Ranger runs, whose cluster 1 is another thing "
            "in each section"
        )
    names = ", ".join(s.section for s in lacking)
    return f"fewer than {LEAST_LABELLED} spots have labels in {names}" if lacking else ""


def _note_numbers(sections: Sequence[Section]) -> None:
    """Say so where numbers that may have been given file by file are taken as common."""
    own = [s for s in sections if "clusters" not in s.sources]
    labels = {label for s in own for label in Given()(s.require_counts())} - {NONE}
    if len(own) > 1 and all(label.isdecimal() for label in labels):
        log_once(
            "note: the cluster numbers in the files of "
            f"{', '.join(s.section for s in own)} are taken to mean the same in all of them; if "
            f"each was clustered alone they do not: {CURE}"
        )


def fit_clusters(
    sections: Sequence[Section], config: TargetConfig, measure: Measure
) -> ClusterTarget:
    """Clusters of these (training) sections.

    Parameters
    ----------
    sections : sequence of Section
        Measured sections, reduced to training spots that passed quality control.
    config : TargetConfig
        `clusters` says where labels come from; computed ones use `genes` and `transform`.
    measure : callable
        Fits the expression that clusters are computed from.

    Raises
    ------
    InputError
        If there are fewer than two clusters to tell apart, or labels cannot be had this way.
    """
    sections, config = prepare_clusters(sections, config)
    if config.clusters == "given":
        labels = np.concatenate([Given()(s.require_counts()) for s in sections])
        return ClusterTarget(_large_enough(labels), Given(), "given")
    expression = measure(sections, config)
    values = [centred(expression, s.require_counts()) for s in sections]
    stacked = np.concatenate(values)
    if len(stacked) <= config.n_clusters * LEAST_CLUSTER:
        raise InputError(
            f"{len(stacked)} training spots are too few for {config.n_clusters} clusters; lower "
            "[target] n_clusters, or give labels in the sheet's column clusters"
        )
    pca = PCA(min(COMPONENTS, *stacked.shape), random_state=SEED).fit(stacked)
    scores = np.concatenate([project(part, pca.components_) for part in values])
    labels = by_size(CLUSTERINGS[config.clusters](scores, config))
    names = _large_enough(labels)
    kept = np.isin(labels, names)  # the spots of a tiny cluster join their neighbours'
    carried = Carried(expression, pca.components_, scores[kept], labels[kept])
    return ClusterTarget(names, carried, config.clusters)


def _large_enough(labels: Labels) -> tuple[str, ...]:
    """Clusters with spots enough to learn them; the others are named in the log."""
    found, spots = np.unique(labels[labels != NONE], return_counts=True)
    small = label_order(found[spots < LEAST_CLUSTER].tolist())
    if small:
        log.info(
            "clusters with fewer than %d training spots are not learnt: %s",
            LEAST_CLUSTER,
            ", ".join(small),
        )
    names = label_order(found[spots >= LEAST_CLUSTER].tolist())
    if len(names) < 2:
        raise InputError(
            f"{len(names)} cluster with at least {LEAST_CLUSTER} training spots: two are needed; "
            "look at the labels, or compute others with [target] n_clusters or resolution"
        )
    return tuple(names)


def restore_clusters(
    names: Sequence[str],
    values: Mapping[str, Any],
    arrays: Arrays,
    expression: Callable[[Sequence[str], Mapping[str, Any], Arrays], Target],
) -> ClusterTarget:
    """Take back what `ClusterTarget.state` gave; `expression` restores the genes."""
    how = values["clusters"]
    if how == "given":
        return ClusterTarget(tuple(names), Given(), how)
    measured = expression(values["genes"], values["expression"], arrays)
    labels = np.array(values["labels"], dtype=np.str_)[arrays["labels"]]
    carried = Carried(measured, arrays["components"], arrays["scores"], labels)
    return ClusterTarget(tuple(names), carried, how)
