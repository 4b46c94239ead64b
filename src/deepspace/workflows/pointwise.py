"""Predict the points of one section group by group: in memory, or durable on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array
import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from deepspace.core import keys
from deepspace.core.classification import most_probable
from deepspace.core.progress import log, track
from deepspace.core.resume import working_folder
from deepspace.core.rows import RowStore
from deepspace.data.cache import content_key
from deepspace.data.image_checks import REASONS
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.models.base import SavablePredictor
from deepspace.models.dense import compact_groups
from deepspace.models.store import GeneCard, ModelCard
from deepspace.models.watch import Watch
from deepspace.output.plot import spot_size_um
from deepspace.output.write import MEAN, prediction_anndata, write_prediction
from deepspace.workflows.figures import draw_prediction
from deepspace.workflows.novelty import Verdict, check_points, slide_verdict
from deepspace.workflows.points import Points

FloatArray = NDArray[np.float64]

# most points and values of a group: what memory holds, and what is computed again after a kill
# (but for its features, which are kept in smaller blocks)
GROUP, GROUP_VALUES = 4096, 2**24
VALUES = (MEAN, keys.SD, keys.SD_LATENT)
ODD = "odd"
ODD_COLUMNS = (keys.OOD_DISTANCE, keys.OOD_REASON)
NAMED = ("", *REASONS)


@dataclass(frozen=True)
class Job:
    """All that a prediction is made of, checked.

    Attributes
    ----------
    predictor, card, watch
        The model, its card, and what it knows of its training images.
    section : Section
        Without counts.
    points : Points
        Where to predict.
    record : dict
        Provenance.
    columns : sequence of int
        Which of the card's columns are kept.
    side_um : float
        Stride of a grid; 0 for spots.
    """

    predictor: SavablePredictor
    card: ModelCard
    watch: Watch
    section: Section
    points: Points
    record: dict[str, Any]
    columns: Sequence[int]
    side_um: float = 0.0

    @property
    def cards(self) -> list[GeneCard]:
        """Cards of the columns that are kept."""
        return [self.card.columns[k] for k in self.columns]

    def groups(self) -> list[NDArray[np.int64]]:
        """Rows of the points in compact groups, each in ascending order."""
        size = max(1, min(GROUP, GROUP_VALUES // max(1, len(self.card.columns))))
        return compact_groups(self.points.coords, size)


@dataclass(frozen=True)
class Values:
    """Decoded predictions, each (points, names).

    log1p of counts per 10,000, or probabilities of clusters.
    """

    mean: FloatArray
    sd: FloatArray
    sd_latent: FloatArray


def predict_at(predictor: SavablePredictor, slide: Slide, coords: FloatArray) -> Values:
    """Predict and decode."""
    found, target = predictor.predict(slide, coords), predictor.target
    return Values(
        target.decode(found.mean),
        target.decode_sd(found.mean, found.sd),
        target.decode_sd(found.mean, found.sd_latent),
    )


def predict_points(job: Job) -> AnnData:
    """Predict, as AnnData in memory."""
    verdict = _judge(job)
    groups, size = job.groups(), len(job.points.coords)
    found = {name: np.empty((size, width), np.float32) for name, width in _widths(job).items()}
    for number, values in _predicted(job, verdict, groups, list(range(len(groups)))):
        for name, rows in values.items():
            found[name][groups[number]] = rows
    return _assembled(job, verdict, found)


@contextmanager
def predict_to_disk(job: Job, out: Path, *, overwrite: bool) -> Iterator[AnnData]:
    """Predict into a file, group by group, and yield it as AnnData whose values lie on disk.

    Every finished group is durable: a run that was killed goes on where it stopped, and gives the
    same bytes as one that was not. The AnnData can be used inside the block only.

    Parameters
    ----------
    job : Job
    out : Path
        ``.h5ad`` or ``.zarr``; its picture is written beside it.
    overwrite : bool
        Replace `out`, and throw away an unfinished run of something else.

    Raises
    ------
    InputError
        If another run is at work on `out`, or an unfinished one was of something else.
    DiskError
        If the disk is full.
    """
    verdict = _judge(job)
    columns = [card.name for card in job.cards]
    stamp = job.record | {"columns": columns, "out": out.suffix, "made_of": _made_of(job)}
    with working_folder(out, stamp, overwrite=overwrite) as folder:
        groups = job.groups()
        store = RowStore(folder, _widths(job), groups)
        for number, values in _predicted(job, verdict, groups, store.missing()):
            store.put(number, values)
        # several threads would write the parts of a file in any order
        with dask.config.set(scheduler="synchronous"):
            found = _assembled(job, verdict, {name: _lazy(store, name) for name in store.widths})
            picture = picture_of(out)
            draw_prediction(found, job.section, picture, kind=job.card.kind, side_um=job.side_um)
            write_prediction(found, out, overwrite=overwrite)
            yield found
        shutil.rmtree(folder)


def _made_of(job: Job) -> dict[str, str]:
    """Hashes of what decides the rows and has no file that the record names, or several."""
    values, arrays = job.predictor.state()
    names = [str(name) for name in job.points.obs.index]
    return {
        "slide": job.section.slide.content_hash(),
        "points": content_key({"coords": job.points.coords, "names": names}),
        "model": content_key({"values": values, "arrays": arrays}),
    }


def picture_of(out: Path) -> Path:
    """Name of the picture that goes with a prediction."""
    return out.with_name(f"{out.stem}-maps.png")


def _judge(job: Job) -> Verdict:
    """Whether the slide is like the training slides, told before anything is predicted."""
    verdict = slide_verdict(job.watch, job.section.slide)
    log.info("section %s: %s", job.section.section, verdict.sentence)
    size = len(job.columns), job.card.kind, len(job.points.coords)
    log.info("predicting %d columns of %s at %d points of %s", *size, job.section.section)
    return verdict


def _widths(job: Job) -> dict[str, int]:
    return {**dict.fromkeys(VALUES, len(job.columns)), ODD: len(ODD_COLUMNS)}


def _predicted(
    job: Job, verdict: Verdict, groups: list[NDArray[np.int64]], missing: list[int]
) -> Iterator[tuple[int, dict[str, NDArray[np.floating]]]]:
    """Values of the groups that are missing, each with its number."""
    slide = job.section.slide
    # one group has a bar of its own, for its features
    many = len(groups) > 1
    steps = track(missing, total=len(missing), text="predicting") if many else missing
    for number in steps:
        coords = job.points.coords[groups[number]]
        odd = check_points(job.watch, slide, coords, verdict)
        found = predict_at(job.predictor, slide, coords)
        values = {MEAN: found.mean, keys.SD: found.sd, keys.SD_LATENT: found.sd_latent}
        told = [odd[keys.OOD_DISTANCE], odd[keys.OOD_REASON].cat.set_categories(NAMED).cat.codes]
        yield (
            number,
            {
                **{name: array[:, list(job.columns)] for name, array in values.items()},
                ODD: np.column_stack(told).astype(np.float32),
            },
        )


def _lazy(store: RowStore, name: str) -> dask.array.Array:
    """A matrix on disk as an array that is read band by band."""
    width = store.widths[name]
    heights = tuple(stop - start for start, stop in store.bands(name))

    def read(block_info: dict[int | None, Any]) -> NDArray[np.float32]:
        return store.read(name, *block_info[None]["array-location"][0])

    return dask.array.map_blocks(  # type: ignore[no-untyped-call,no-any-return]
        read, chunks=(heights or (0,), (width,)), dtype=np.float32, meta=np.empty((0, 0), "f4")
    )


def _assembled(job: Job, verdict: Verdict, found: Mapping[str, Any]) -> AnnData:
    """AnnData of what was predicted, whether it lies in memory or on disk."""
    var = verdict_table(job.cards)
    distance, reason = np.asarray(found[ODD]).T
    odd = {
        keys.OOD: distance > 1,
        keys.OOD_DISTANCE: distance.astype(np.float64),
        keys.OOD_REASON: pd.Categorical.from_codes(reason.astype(np.int8), pd.Index(NAMED)),
    }
    return prediction_anndata(
        {name: found[name] for name in VALUES},
        job.points.coords,
        job.points.obs.assign(**odd, **OBS[job.card.kind](found[MEAN], list(var.index))),
        var,
        section=job.section,
        provenance=job.record | {"images": verdict.record()},
        spot_diameter_px=spot_size_um(job.section) / job.section.slide.require_mpp(),
    )


def verdict_table(columns: Sequence[GeneCard]) -> pd.DataFrame:
    """What is known of each column, as `var` of a prediction."""
    numbers = {
        keys.SCORE: "score",
        keys.SCORE_LOW: "low",
        keys.SCORE_HIGH: "high",
        keys.CEILING: "ceiling",
        keys.P_VALUE: "p_value",
        keys.Q_VALUE: "q_value",
    }
    table = {
        name: np.array([getattr(c, field) for c in columns], dtype=np.float64)
        for name, field in numbers.items()
    }
    verdicts = pd.Categorical([c.verdict for c in columns], ["predictable", "weak", "no"])
    return pd.DataFrame(
        {keys.PREDICTABLE: [c.predictable for c in columns], **table, keys.VERDICT: verdicts},
        index=[column.name for column in columns],
    )


def _most_probable(probabilities: Any, names: list[str]) -> dict[str, Any]:
    values = np.asarray(probabilities)
    return {
        keys.CLUSTER: pd.Categorical(most_probable(values, names), categories=names),
        keys.CLUSTER_PROBABILITY: values.max(axis=1),
    }


# columns of obs that come from the values of a kind of target, in memory or on disk
OBS: dict[str, Callable[[Any, list[str]], dict[str, Any]]] = {
    "expression": lambda values, names: {},
    "clusters": _most_probable,
}
