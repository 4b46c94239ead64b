"""Which spots are held out together. The default splits cannot leak through overlapping patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans

from deepspace.core.errors import InputError
from deepspace.core.progress import log_once
from deepspace.io.section import Section

BoolArray = NDArray[np.bool_]

# spots of a region that is held out, and of a section that can be blanked in parts
LEAST_REGION = 10
LEAST_BLANKED = 2 * LEAST_REGION

LEAK_WARNING = (
    "random spots leak: a held-out spot's neighbours, whose patches overlap or adjoin its own, "
    "are in the training data; scores are too good to be true for a new section"
)


@dataclass(frozen=True)
class Fold:
    """One division of the measured spots.

    `train` and `test` map a section's id to a mask over its spots; a section that takes no
    part is absent.
    """

    name: str
    train: dict[str, BoolArray]
    test: dict[str, BoolArray]

    def training(self, sections: Sequence[Section]) -> list[Section]:
        """Sections reduced to their training spots."""
        return _restricted(sections, self.train)

    def testing(self, sections: Sequence[Section]) -> list[Section]:
        """Sections reduced to their held-out spots."""
        return _restricted(sections, self.test)


def _restricted(sections: Sequence[Section], masks: dict[str, BoolArray]) -> list[Section]:
    chosen = [s for s in sections if s.section in masks and masks[s.section].any()]
    return [s.subset(masks[s.section]) for s in chosen]


@dataclass(frozen=True)
class SplitOptions:
    """Numbers that splits need: folds, gap in um (not less than one field of view), seed."""

    folds: int = 5
    gap_um: float = 0.0
    seed: int = 0


def make_folds(sections: Sequence[Section], how: str, options: SplitOptions) -> list[Fold]:
    """Divide measured sections by `how`: a key of `SPLITS`.

    Raises
    ------
    InputError
        If the sections do not allow this split (one section only, one patient only, tissue too
        small for the gap); the message names a split that they do allow.
    """
    if not sections:
        raise InputError("no measured section: at least one row of the sheet needs counts")
    return SPLITS[how](sections, options)


def widest_step(sections: Sequence[Section], wish: str = "auto") -> str:
    """What can be left out: `wish`, or the next narrower step that these sections allow.

    ``auto`` wishes for patients; a single patient has no other to leave out, so sections are,
    and of a single section blocks.
    """
    steps = ["patient", "section", "block"]
    possible = {"block"}
    if len(sections) > 1:
        possible.add("section")
    if len({s.patient for s in sections}) > 1:
        possible.add("patient")
    wished = steps[0] if wish == "auto" else wish
    return next(step for step in steps[steps.index(wished) :] if step in possible)


def _everything(section: Section) -> BoolArray:
    return np.ones(len(section.coords), dtype=bool)


def _by_section(sections: Sequence[Section], options: SplitOptions) -> list[Fold]:
    if len(sections) < 2:
        raise InputError(
            f"--split section needs two measured sections, found only {sections[0].section}; "
            "use --split block"
        )
    return [_leave_out(sections, s.section, {s.section}) for s in sections]


def _by_patient(sections: Sequence[Section], options: SplitOptions) -> list[Fold]:
    patients = list(dict.fromkeys(s.patient for s in sections))
    if len(patients) < 2:
        raise InputError(
            f"--split patient needs two patients with measured sections, found only "
            f"{patients[0]}; use --split section or block"
        )
    return [
        _leave_out(sections, p, {s.section for s in sections if s.patient == p}) for p in patients
    ]


def _leave_out(sections: Sequence[Section], name: str, out: set[str]) -> Fold:
    masks = {s.section: _everything(s) for s in sections}
    return Fold(
        name=name,
        train={k: m for k, m in masks.items() if k not in out},
        test={k: m for k, m in masks.items() if k in out},
    )


def _by_block(sections: Sequence[Section], options: SplitOptions) -> list[Fold]:
    """Each section in turn, one compact region of it at a time.

    Training spots lie farther than the gap (in x or in y, because patches are square) from
    every held-out spot. Other sections of the same patient take no part: a serial section
    shows the same tissue.
    """
    folds = []
    for section in sections:
        others = {s.section: _everything(s) for s in sections if s.patient != section.patient}
        labels = blocks(section, options)
        for k in range(options.folds):
            test = labels == k
            train = ~test & ~_within(section, test, options.gap_um)
            if train.sum() < 10:
                raise InputError(
                    f"section {section.section}: a gap of {options.gap_um:g} um around block "
                    f"{k + 1} leaves {int(train.sum())} spots to train on; give the encoder a "
                    "narrower field of view ([encoder] fov_um), or measure more sections"
                )
            name = f"{section.section} block {k + 1}"
            folds.append(Fold(name, {**others, section.section: train}, {section.section: test}))
    return folds


def blocks(section: Section, options: SplitOptions) -> NDArray[np.int64]:
    """Label every spot with one of `folds` compact regions (k-means of the coordinates)."""
    if len(section.coords) < LEAST_REGION * options.folds:
        fewer = "use fewer folds ([split] folds), or " if options.folds > 2 else ""
        raise InputError(
            f"section {section.section}: {len(section.coords)} spots are too few for "
            f"{options.folds} blocks; {fewer}measure more sections"
        )
    means = KMeans(n_clusters=options.folds, n_init=10, random_state=options.seed)
    labels: NDArray[np.int64] = means.fit_predict(section.coords).astype(np.int64)
    return labels


def _by_blob(sections: Sequence[Section], options: SplitOptions) -> list[Fold]:
    """Compact regions of one section at a time, everything else measured: failed spots."""
    folds = []
    for section in sections:
        regions = min(options.folds, len(section.coords) // LEAST_REGION)
        if regions < options.folds:
            log_once(
                f"section {section.section}: {len(section.coords)} spots, so "
                + (f"{regions} regions are blanked" if regions > 1 else "nothing of it is blanked")
            )
        if regions > 1:
            labels = blocks(section, replace(options, folds=regions))
            folds += [
                _blanked(sections, section, labels == k, f"{section.section} blob {k + 1}")
                for k in range(regions)
            ]
    if not folds:
        raise InputError(
            f"--split blob needs a section with at least {LEAST_BLANKED} spots; use another split"
        )
    return folds


def _by_alternate(sections: Sequence[Section], options: SplitOptions) -> list[Fold]:
    """Every second spot of one section at a time, everything else measured: super-resolution."""
    return [
        _blanked(sections, section, labels == k, f"{section.section} spots {k + 1} of 2")
        for section in sections
        for labels in [every_second(section.coords)]
        for k in (0, 1)
    ]


def _blanked(sections: Sequence[Section], one: Section, test: BoolArray, name: str) -> Fold:
    masks = {s.section: _everything(s) for s in sections}
    return Fold(name, {**masks, one.section: ~test}, {one.section: test})


def every_second(coords: NDArray[np.float64]) -> NDArray[np.int64]:
    """Label spots 0 and 1 in turn, as on a chessboard, on whatever lattice they lie.

    Row by row, a spot takes the label that fewer of its neighbours have.

    Examples
    --------
    >>> x, y = np.meshgrid(np.arange(3.0), np.arange(2.0))
    >>> every_second(np.stack([x.ravel(), y.ravel()], axis=1))
    array([0, 1, 0, 1, 0, 1])
    """
    tree = cKDTree(coords)
    nearest, _ = tree.query(coords, k=2)
    around = tree.query_ball_point(coords, 1.2 * float(np.median(nearest[:, 1])))
    labels = np.full(len(coords), -1)
    for spot in np.lexsort((coords[:, 0], coords[:, 1])):
        taken = labels[around[spot]]
        labels[spot] = int(np.sum(taken == 0) > np.sum(taken == 1))
    return labels.astype(np.int64)


def _within(section: Section, test: BoolArray, gap_um: float) -> BoolArray:
    gap_px = gap_um / section.slide.require_mpp()
    distance, _ = cKDTree(section.coords[test]).query(section.coords, p=np.inf)
    near: BoolArray = distance <= gap_px
    return near


def _by_spot(sections: Sequence[Section], options: SplitOptions) -> list[Fold]:
    """Random spots of all sections together, as Monjo et al. 2022 did. This leaks."""
    rng = np.random.default_rng(options.seed)
    sizes = [len(s.coords) for s in sections]
    labels = rng.permutation(np.arange(sum(sizes)) % options.folds)
    parts = dict(
        zip((s.section for s in sections), np.split(labels, np.cumsum(sizes)[:-1]), strict=True)
    )
    return [
        Fold(
            name=f"random fold {k + 1}",
            train={name: part != k for name, part in parts.items()},
            test={name: part == k for name, part in parts.items()},
        )
        for k in range(options.folds)
    ]


SPLITS: dict[str, Callable[[Sequence[Section], SplitOptions], list[Fold]]] = {
    "section": _by_section,
    "patient": _by_patient,
    "block": _by_block,
    "blob": _by_blob,
    "alternate": _by_alternate,
    "spot": _by_spot,
}
