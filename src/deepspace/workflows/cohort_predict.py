"""Predict many sections: each an output of its own, done once, whatever happens to the others."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd

from deepspace.core.errors import InputError
from deepspace.core.files import atomic_path, check_output, file_name, sha256
from deepspace.core.progress import log
from deepspace.core.provenance import versions
from deepspace.io.sheet import Row, list_sections
from deepspace.output.write import ZARR, write_json
from deepspace.workflows.executors import Executor, check_executor, run_all
from deepspace.workflows.points import grid_stride
from deepspace.workflows.pointwise import picture_of
from deepspace.workflows.predict import PredictOptions, open_trained, predict_to_file

T = TypeVar("T")
Status = Literal["succeeded", "failed", "skipped"]

FORMATS = ("h5ad", "zarr")
MARKER = "cohort.json"
LOGS = "logs"


@dataclass(frozen=True)
class CohortOptions:
    """Which sections, and where they are predicted.

    Attributes
    ----------
    sections : tuple of str
        Which of the sheet; all where it is empty.
    shard : str, optional
        ``i/n``: every n-th section from the i-th, counted from 1.
    format : str
        ``h5ad`` or ``zarr``.
    executor : Executor
        Where to run.
    """

    sections: tuple[str, ...] = ()
    shard: str | None = None
    format: str = "h5ad"
    executor: Executor = field(default_factory=Executor)


@dataclass(frozen=True)
class Task:
    """One section to predict; can be sent to another process."""

    model: Path
    sheet: Path
    row: Row
    out: Path
    at: str
    options: PredictOptions
    overwrite: bool

    @property
    def section(self) -> str:
        """Its name."""
        return self.row.ids.section

    @property
    def marker(self) -> Path:
        """File that tells that the section is done, and of what."""
        return self.out.with_name(f"{self.out.name}.done.json")

    @property
    def begun(self) -> Path:
        """File that tells that a request was found in order and its outputs are deepspace's."""
        return self.out.parent / LOGS / f"{self.out.name}.begun.json"

    def request(self) -> dict[str, Any]:
        """All that decides the result; files by size and time, since hashing slides takes long."""
        options = asdict(replace(self.options, weights=None, device=None))
        return {
            "section": asdict(self.row.ids) | {"mpp": self.row.mpp},
            "files": {role: _stamp(path) for role, path in sorted(self.row.paths.items())},
            "model_sha256": sha256(self.model / "model.json"),
            "at": self.at,
            "options": options,
            "versions": versions(),
        }


@dataclass(frozen=True)
class Outcome:
    """What became of one section."""

    section: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    points: int = 0
    out: str = ""


def predict_cohort(
    model: Path | str,
    sheet: Path | str,
    out: Path | str,
    *,
    at: str = "spots",
    cohort: CohortOptions | None = None,
    options: PredictOptions | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Predict the sections of a sheet, each into a file of its own in the folder `out`.

    A section that is done and of which nothing changed is skipped, so that the same command goes
    on after anything. One that fails does not stop the others. Several shards may be at work in
    one folder at once.

    Parameters
    ----------
    model : Path or str
        Folder written by `train`.
    sheet : Path or str
        Cohort sheet.
    out : Path or str
        Folder; a section's output is ``SECTION-spots.h5ad`` (or ``-between``, ``-gridUM``).
    at : str
        ``spots``, ``between`` or ``grid:UM``.
    cohort : CohortOptions, optional
    options : PredictOptions, optional
    overwrite : bool
        Do sections anew that were done with other inputs or settings.

    Returns
    -------
    dict
        ``succeeded``, ``failed``, ``skipped`` (numbers) and ``sections``, a row each; also
        written as ``run-report.json`` and ``.csv``, for a shard with its number in the name.

    Raises
    ------
    InputError
        If the request as a whole is wrong.
    """
    cohort, out, model = cohort or CohortOptions(), Path(out).absolute(), Path(model).absolute()
    grid_stride(at)
    if cohort.format not in FORMATS:
        raise InputError(f"--format {cohort.format}: take {' or '.join(FORMATS)}")
    check_executor(cohort.executor)  # before anything is written
    options = options or PredictOptions()
    # a model that cannot be used is told once, not by every section
    open_trained(model, options.weights, options.device)
    rows = shard_of(list_sections(sheet, only=cohort.sections or None), cohort.shard)
    kind = at.replace(":", "")
    tasks = [
        Task(
            model,
            Path(sheet).absolute(),
            row,
            out / f"{file_name(row.ids.section)}-{kind}.{cohort.format}",
            at,
            options,
            overwrite,
        )
        for row in rows
    ]
    _make_folder(out, sheet)
    outcomes: dict[str, Outcome] = {}
    for task, found in run_all(predict_one, tasks, cohort.executor):
        outcomes[task.section] = _told(task, found)
        told = [outcomes[t.section] for t in tasks if t.section in outcomes]
        _report(told, out, cohort.shard)
    return _report([outcomes[task.section] for task in tasks], out, cohort.shard)


def _make_folder(out: Path, sheet: Path | str) -> None:
    """Make the folder; shards may do so at once, but nobody else's is taken."""
    if not (out / MARKER).exists():
        foreign = [p for p in out.glob("*") if p.name != LOGS and MARKER[:6] not in p.name]
        # another shard may have made it just now
        if foreign and not (out / MARKER).exists():
            raise InputError(
                f"{out}: holds files that deepspace predict did not write, such as "
                f"{foreign[0].name}; choose another --out"
            )
        if not out.is_dir():
            check_output(out, overwrite=False)
        out.mkdir(parents=True, exist_ok=True)
        # the viewer finds the slides by the sheet
        noted = {"written by": "deepspace predict", "sheet": os.path.relpath(sheet, out)}
        write_json(noted, out / MARKER)
    (out / LOGS).mkdir(exist_ok=True)


def shard_of(names: list[T], shard: str | None) -> list[T]:
    """Every n-th of some things from the i-th of ``i/n``.

    Raises
    ------
    InputError
        If `shard` is not of this form.

    Examples
    --------
    >>> shard_of(["a", "b", "c", "d", "e"], "2/3")
    ['b', 'e']
    """
    if shard is None:
        return names
    first, _, number = shard.partition("/")
    if not (first.isdecimal() and number.isdecimal() and 1 <= int(first) <= int(number)):
        raise InputError(f"--shard {shard}: give i/n with i from 1 to n, as 3/16")
    return names[int(first) - 1 :: int(number)]


def predict_one(task: Task) -> Outcome:
    """Predict one section unless it is done; what goes wrong is an outcome, not an error."""
    start = time.monotonic()
    record = task.out.parent / LOGS / f"{task.out.stem}.log"
    with _logged(record):
        try:
            done = _done(task)
            if done is not None:
                return done
            request = task.request()
            # a run that is killed after its last write is told from a file of the user's
            if _read(task.begun) == {"request": _plain(request)}:
                _remove(task.out, picture_of(task.out))
            marker = ZARR if task.out.is_dir() else None
            check_output(task.out, overwrite=task.overwrite, marker=marker)
            check_output(picture_of(task.out), overwrite=task.overwrite)
            _write({"request": request}, task.begun)
            task.marker.unlink(missing_ok=True)  # of what is about to be replaced
            found = predict_to_file(
                task.model,
                task.sheet,
                task.out,
                section=task.section,
                at=task.at,
                options=task.options,
                overwrite=task.overwrite,
            )
            seconds = round(time.monotonic() - start, 2)
            _write({"request": request, "seconds": seconds, **found}, task.marker)
            task.begun.unlink(missing_ok=True)
        except Exception as error:  # one section must not stop the others
            known = isinstance(error, InputError)
            reason = str(error) if known else f"{_kind(error)}; see {record}"
            with record.open("a", encoding="utf-8") as stream:
                stream.write(traceback.format_exc())
            seconds = round(time.monotonic() - start, 2)
            return Outcome(task.section, "failed", reason, seconds)
    return Outcome(task.section, "succeeded", "", seconds, found["points"], str(task.out))


def _done(task: Task) -> Outcome | None:
    """What is known of a section that was done before, if it was, with the same request.

    Raises
    ------
    InputError
        If it was done with another request and may not be replaced.
    """
    before = _read(task.marker)
    if "points" not in before or not task.out.exists():
        return None
    request = _plain(task.request())
    if before.get("request") == request:
        points = int(before["points"])
        return Outcome(task.section, "skipped", "done before", 0.0, points, str(task.out))
    if task.overwrite:
        return None
    other = [name for name in request if before.get("request", {}).get(name) != request[name]]
    raise InputError(
        f"{task.out}: was predicted with other {', '.join(other)}; add --overwrite to predict it "
        "anew, or choose another --out"
    )


def _remove(*outputs: Path) -> None:
    """Remove what a run wrote that was killed before it could say so."""
    for path in outputs:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    """What a marker says; nothing where there is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found


def _write(values: dict[str, Any], path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _plain(values: dict[str, Any]) -> Any:
    return json.loads(json.dumps(values))


def _stamp(path: Path) -> list[Any]:
    """Path, size and time of a file; of a folder those of what is in it."""
    # MRXS has its pixels in a folder of the same name, DICOM in the files beside
    beside = path.parent.glob("*.dcm") if path.suffix.lower() == ".dcm" else ()
    inside = (path if path.is_dir() else path.with_suffix("")).rglob("*")
    files = sorted({path, *beside, *inside})
    files = [file for file in files if file.is_file()]
    stats = [file.stat() for file in files]
    return [
        str(path.absolute()),
        sum(stat.st_size for stat in stats),
        max((stat.st_mtime_ns for stat in stats), default=0),
    ]


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Keep all that is said about one section in a file."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(min(logging.INFO, log.getEffectiveLevel()))
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()


def _told(task: Task, found: Outcome | BaseException) -> Outcome:
    """Outcome of a task, also where its process died."""
    if isinstance(found, BaseException):
        found = Outcome(task.section, "failed", f"its process ended ({_kind(found)})")
    log.info("section %s: %s%s", found.section, found.status, _because(found))
    return found


def _kind(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _because(found: Outcome) -> str:
    if found.status == "succeeded":
        return f", {found.points} points in {found.seconds:.0f} s"
    return f" ({found.reason})"


def _report(outcomes: list[Outcome], out: Path, shard: str | None) -> dict[str, Any]:
    """Count and write what became of the sections."""
    rows = [
        asdict(o) | {"points_per_second": round(o.points / o.seconds, 1) if o.seconds else None}
        for o in outcomes
    ]
    counts = {s: sum(o.status == s for o in outcomes) for s in ("succeeded", "failed", "skipped")}
    found = {"out": str(out), **counts, "shard": shard, "sections": rows}
    name = "run-report" if shard is None else f"run-report-{shard.replace('/', 'of')}"
    write_json(found, out / f"{name}.json")
    with atomic_path(out / f"{name}.csv") as temporary:
        columns = [*Outcome.__dataclass_fields__, "points_per_second"]
        pd.DataFrame(rows, columns=columns).to_csv(temporary, index=False)
    return found
