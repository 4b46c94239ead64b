"""Are these images like those that the model learnt from? Per tile, and for a whole slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from deepspace.core import keys
from deepspace.core.progress import log
from deepspace.data.image_checks import REASONS, Ranges, measure
from deepspace.data.patches import read_patches
from deepspace.data.splits import SplitOptions, blocks
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.io.source import plausible
from deepspace.models.features import FeatureExtractor
from deepspace.models.novelty import FALSE_ALARMS, LEAST_TILES, Held, Novelty, evenly
from deepspace.models.registry import Workbench
from deepspace.models.watch import Watch, watching
from deepspace.workflows.points import share_ahead

FloatArray = NDArray[np.float64]
Strings = NDArray[np.str_]

# training tiles a section: more do not make the limit any surer
MOST_TILES = 1000
MEASURED_TILES = 200
# tiles of a slide whose reasons are looked for, and that are read with another mpp
JUDGED_TILES = 60
# sizes that a wrong objective or a rescaled export gives
FACTORS = (0.25, 0.5, 2.0, 4.0)
LEAST_MEDIAN_P = 0.25
COARSER = 1.25
BLOCKS = 4
PATIENTS = 3
# reasons that hold whatever the scale is
LOCAL = ("ink", "ihc", "glass")
# points at once; the same as in `predict`, so that features are taken from the cache
CHUNK = 4096

Level = Literal["like", "partly", "unlike"]


@dataclass(frozen=True)
class Verdict:
    """Whether a slide is like the training slides, from tiles spread evenly over its tissue.

    Attributes
    ----------
    level : {"like", "partly", "unlike"}
        ``partly``: more odd tiles than on a slide like the training slides; ``unlike``: most.
    tiles : int
        How many were looked at.
    odd : float
        Share of them that is odd.
    expected, most_expected : float
        Share on a slide like the training slides, and what it hardly exceeds.
    reason : str
        Main reason, a key of `deepspace.data.image_checks.REASONS`; empty if `like`.
    reasons : dict of str to float
        Share of the odd tiles with each reason.
    coarser : bool
        Whether the slide has fewer pixels per micrometre than any training slide.
    mpp_like_training : float or None
        Pixel size with which the slide would look like the training slides.
    basis : str
        What the calibration rests on.
    sentence : str
        The verdict in plain words.
    """

    level: Level
    tiles: int
    odd: float
    expected: float
    most_expected: float
    reason: str
    reasons: dict[str, float]
    coarser: bool
    mpp_like_training: float | None
    basis: str
    sentence: str

    def record(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def fit_novelty(sections: Sequence[Section], bench: Workbench) -> Watch:
    """Learn what training tiles look like.

    Parameters
    ----------
    sections : sequence of Section
        Measured sections, reduced to the spots that the model learns from.
    bench : Workbench
        Configuration and cache.

    Returns
    -------
    Watch
        To be saved with the model.
    """
    extractor = watching(bench)
    own = extractor is bench.extractor(bench.config.encoder)
    usable = [s for s in sections if len(s.coords) >= LEAST_TILES] or list(sections)
    tiles, lattices, measures = [], [], []
    share_ahead(extractor, usable)
    for section in usable:
        rows = evenly(len(section.coords), MOST_TILES)
        # features that the model itself takes are known for all spots, as one array
        coords = section.coords if own else section.coords[rows]
        found = extractor.raw(section.slide, coords)
        tiles.append(found[rows] if own else found)
        lattices.append(extractor.raw(section.slide, _lattice(extractor, section.slide)))
    groups = _groups(usable, tiles, lattices, bench.config.seed)
    novelty = Novelty.fit(groups.tiles, groups.held, groups.lattices)
    coarsest = max(s.slide.require_mpp() for s in sections)
    unmeasured = Watch(extractor, novelty, Ranges({}, {}), coarsest)
    for section in usable:
        some = section.coords[evenly(len(section.coords), MEASURED_TILES)]
        measures.append(_measures(unmeasured, section.slide, some))
    log.info("odd images: calibrated on %s", novelty.basis())
    return replace(unmeasured, ranges=Ranges.of(measures))


def _lattice(extractor: FeatureExtractor, slide: Slide) -> FloatArray:
    """Points over the tissue whose features standardise the slide, so that they are known."""
    return extractor.lattice(slide)


@dataclass(frozen=True)
class _Groups:
    """Features of what is left out in turn."""

    held: Held
    tiles: list[FloatArray]
    lattices: list[FloatArray] | None


def _groups(
    sections: Sequence[Section],
    tiles: list[FloatArray],
    lattices: list[FloatArray],
    seed: int,
) -> _Groups:
    """Patients where there are enough to stand for others, else sections, else blocks of one."""
    patients = [s.patient for s in sections]
    names = list(dict.fromkeys(patients))
    if len(names) >= PATIENTS:
        of = [[i for i, p in enumerate(patients) if p == name] for name in names]
        together = [
            [np.concatenate([part[i] for i in rows]) for rows in of] for part in (tiles, lattices)
        ]
        return _Groups("patient", together[0], together[1])
    if len(sections) > 1:
        return _Groups("section", tiles, lattices)
    one = sections[0]
    count = int(np.clip(len(one.coords) // (4 * LEAST_TILES), 2, BLOCKS))
    labels = blocks(one, SplitOptions(count, 0.0, seed))[evenly(len(one.coords), MOST_TILES)]
    return _Groups("block", [tiles[0][labels == k] for k in range(count)], None)


def slide_verdict(watch: Watch, slide: Slide) -> Verdict:
    """Judge a slide before anything is predicted on it.

    A few hundred tiles on a fixed lattice over its tissue are compared with the training tiles.
    If too many are odd, the slide is read again as if its mpp were wrong by the usual factors: a
    pixel size with which it looks like the training slides is likely the true one.

    Parameters
    ----------
    watch : Watch
        Of the model.
    slide : Slide
        It must know its mpp.

    Raises
    ------
    InputError
        If the mpp is unknown, or the slide shows almost no tissue.
    """
    novelty, extractor = watch.novelty, watch.extractor
    coords = _lattice(extractor, slide)
    odd = novelty.distance(extractor.raw(slide, coords)) > 1
    share = float(odd.mean())
    most = _most_expected(novelty, len(coords))
    coarser = slide.require_mpp() > COARSER * watch.coarsest_mpp
    judged = coords[odd]
    judged = judged[evenly(len(judged), JUDGED_TILES)] if len(judged) else judged
    mpp = _likelier_mpp(watch, slide, coords) if share > most else None
    named = _reasons(watch, slide, judged, coarser=coarser, wrong_mpp=mpp is not None)
    counts = pd.Series(named, dtype=object).value_counts(normalize=True).sort_index()
    counts = counts.sort_values(ascending=False, kind="stable")
    level: Level = "like" if share <= most else "partly" if share < 0.5 else "unlike"
    reason = "" if level == "like" else str(counts.index[0])
    return Verdict(
        level=level,
        tiles=len(coords),
        odd=share,
        expected=FALSE_ALARMS,
        most_expected=most,
        reason=reason,
        reasons={str(name): float(value) for name, value in counts.items()},
        coarser=bool(coarser),
        mpp_like_training=mpp,
        basis=novelty.basis(),
        sentence=_sentence(level, share, reason, slide, mpp),
    )


def _most_expected(novelty: Novelty, tiles: int) -> float:
    """Largest share of odd tiles among so few, on a slide like the training slides."""
    return float(stats.binom.ppf(0.975, tiles, novelty.most_odd) / tiles)


def _likelier_mpp(watch: Watch, slide: Slide, coords: FloatArray) -> float | None:
    """Pixel size with which the tiles would be usual, if there is one.

    Few odd tiles are not enough: a blurred slide read as a smaller magnification has few. The
    tiles must lie among the training tiles, where the median p-value is near one half.
    """
    some = coords[evenly(len(coords), JUDGED_TILES)]
    best, found = LEAST_MEDIAN_P, None
    for factor in FACTORS:
        mpp = factor * slide.require_mpp()
        if not plausible(mpp):
            continue
        features = watch.extractor.raw(slide.with_mpp(mpp, "tried"), some)
        p = float(np.median(watch.novelty.p_value(watch.novelty.distance(features))))
        if p >= best:
            best, found = p, mpp
    return found


def _sentence(level: Level, share: float, reason: str, slide: Slide, mpp: float | None) -> str:
    text = (
        f"{share:.0%} of the tiles are unlike the training slides ({FALSE_ALARMS:.0%} are expected)"
    )
    if level == "like":
        return f"{text}: the slide looks like them"
    if mpp is not None:
        return (
            f"{text}: with mpp {mpp:.3g} instead of {slide.require_mpp():.3g} they would be like "
            "them; check the pixel size"
        )
    return f"{text}; main reason: {REASONS[reason]}"


def check_points(
    watch: Watch, slide: Slide, coords: FloatArray, verdict: Verdict | None = None
) -> pd.DataFrame:
    """Tell odd points of a slide; the row of a point never depends on the other points.

    Parameters
    ----------
    watch : Watch
        Of the model.
    slide : Slide
        Where to look.
    coords : ndarray, shape (points, 2)
        x, y in full-resolution pixels.
    verdict : Verdict, optional
        Of this slide, if it is known already.

    Returns
    -------
    DataFrame
        One row a point: `ood_distance` in units of the limit, `ood` where it is above 1, and
        `ood_reason`, a key of `deepspace.data.image_checks.REASONS`, empty where not odd.
    """
    verdict = slide_verdict(watch, slide) if verdict is None else verdict
    parts = [
        watch.novelty.distance(watch.extractor.raw(slide, coords[start : start + CHUNK]))
        for start in range(0, len(coords), CHUNK)
    ]
    # as it is stored, so that the flag and the distance never disagree
    distance = np.concatenate([np.empty(0), *parts]).astype(np.float32).astype(np.float64)
    odd = distance > 1
    reasons = np.full(len(coords), "", dtype="U8")
    wrong = verdict.mpp_like_training is not None
    reasons[odd] = _reasons(watch, slide, coords[odd], coarser=verdict.coarser, wrong_mpp=wrong)
    named = pd.Categorical(reasons, categories=["", *REASONS])
    return pd.DataFrame({keys.OOD: odd, keys.OOD_DISTANCE: distance, keys.OOD_REASON: named})


def _reasons(
    watch: Watch, slide: Slide, coords: FloatArray, *, coarser: bool, wrong_mpp: bool
) -> Strings:
    """Reasons of odd points, given two facts about their slide."""
    if not len(coords):
        return np.empty(0, dtype="U8")
    found = watch.ranges.reasons(_measures(watch, slide, coords))
    if wrong_mpp:
        found[~np.isin(found, LOCAL)] = "mpp"
    elif coarser:
        found[found == "blur"] = "coarse"
    return found


def _measures(watch: Watch, slide: Slide, coords: FloatArray) -> dict[str, FloatArray]:
    """Measures of the tiles around points, in their order."""
    spec = watch.spec
    parts = [
        (index, measure(patches, spec.um_per_px))
        for index, patches in read_patches(slide, coords, spec)
    ]
    order = np.argsort(np.concatenate([index for index, _ in parts]))
    return {
        name: np.concatenate([values[name] for _, values in parts])[order] for name in parts[0][1]
    }
