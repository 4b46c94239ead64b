"""A folder that is made step by step, and outlives an interruption."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

from deepspace.core.errors import DiskError, InputError
from deepspace.core.files import atomic_path
from deepspace.core.progress import log

# what a run was started with; its presence tells that deepspace wrote the folder
STAMP = "run.json"
# groups of rows that are done, see `deepspace.core.rows`
GROUPS_DONE = "done.txt"


def partial_folder(path: Path) -> Path:
    """Where the steps of `path` lie until all of them are done."""
    path = path.resolve()
    return path.with_name(f".{path.name}-partial")


@contextmanager
def resumable_folder(path: Path, stamp: Mapping[str, Any], *, overwrite: bool) -> Iterator[Path]:
    """Yield a folder beside `path`, with what an interrupted run has left in it.

    It replaces `path` when all is done, and stays where it is after any exception, so that the
    next run goes on; see `working_folder`, which has the same parameters and errors.
    """
    with working_folder(path, stamp, overwrite=overwrite) as partial:
        yield partial
        path = path.resolve()
        retired = path.with_name(f".{path.name}-old")
        if path.exists():
            shutil.rmtree(retired, ignore_errors=True)
            path.replace(retired)
        partial.replace(path)
        shutil.rmtree(retired, ignore_errors=True)


@contextmanager
def working_folder(path: Path, stamp: Mapping[str, Any], *, overwrite: bool) -> Iterator[Path]:
    """Yield a folder beside `path` to work in, with what an interrupted run has left in it.

    It stays after any exception; only a run that was refused (`InputError`) leaves nothing new,
    unless the disk was at fault (`DiskError`). Whoever writes into it makes each step appear
    whole or not at all (`atomic_path`, `atomic_folder`), leaves out those that are there, and in
    the end moves or removes the folder.

    Parameters
    ----------
    path : Path
        What is to be written; checked by `check_output` before.
    stamp : mapping
        Everything that decides the result, as JSON values. Kept as ``run.json``.
    overwrite : bool
        Whether an unfinished run with another stamp may be thrown away.

    Raises
    ------
    InputError
        If an unfinished run with another stamp is there, and `overwrite` is false; or if another
        process is at work there.
    """
    with _alone(path.resolve()):
        partial = partial_folder(path)
        fresh = not (partial / STAMP).exists()
        _prepare(partial, stamp, overwrite=overwrite)
        try:
            yield partial
        except DiskError:
            raise
        except InputError:
            # what is wrong stays wrong: nothing to go on with, unless a run came further
            if fresh and not (partial / GROUPS_DONE).exists():
                shutil.rmtree(partial, ignore_errors=True)
            raise


def _prepare(partial: Path, stamp: Mapping[str, Any], *, overwrite: bool) -> None:
    """Take up what an interrupted run has left, or begin anew."""
    text = json.dumps(stamp, indent=1, sort_keys=True, allow_nan=False) + "\n"
    if partial.exists() and not (partial / STAMP).exists():
        # killed while it was made or removed: nothing to go on with
        shutil.rmtree(partial)
    if partial.exists() and _read(partial / STAMP) != text:
        differ = _differences(_read(partial / STAMP), stamp)
        if not overwrite:
            raise InputError(
                f"{partial}: an unfinished run of other inputs, settings or versions "
                f"({differ}); repeat that command to finish it, add --overwrite to throw it away, "
                "or choose another --out"
            )
        log.info("%s: an unfinished run of others (%s) is thrown away", partial, differ)
        shutil.rmtree(partial)
    if partial.exists():
        log.info("going on with an interrupted run: %s", partial)
    partial.mkdir(parents=True, exist_ok=True)
    if not (partial / STAMP).exists():
        with atomic_path(partial / STAMP) as temporary:
            temporary.write_text(text, encoding="utf-8")
    _drop_unfinished(partial)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold an output, so that no second run works at it; the system lets go when a run dies.

    The lock is a file of its own, because one that is replaced can be held twice.
    """
    if fcntl is None:
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    with _locked(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _locked(lock: Path) -> BinaryIO:
    """The file, open and locked."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        stream = lock.open("ab")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.close()
            raise InputError(
                f"{lock}: another run is at work here; wait for it, or choose another --out"
            ) from error
        except OSError:
            log.debug("%s: this file system has no locks", lock)
            return stream
        # the one before may have removed the file between our opening and locking it
        with suppress(FileNotFoundError):
            if os.path.samestat(lock.stat(), os.fstat(stream.fileno())):
                return stream
        stream.close()


def _differences(old: str, stamp: Mapping[str, Any], most: int = 4) -> str:
    """Name what differs from the stamp of an earlier run."""
    try:
        before = _flat(json.loads(old))
    except json.JSONDecodeError:
        return "its run.json is damaged"
    now = _flat(json.loads(json.dumps(stamp)))
    names = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested JSON values by their path."""
    if isinstance(value, dict):
        items = {str(k): v for k, v in value.items()}
    elif isinstance(value, list):
        items = {
            str(v.get("section", k) if isinstance(v, dict) else k): v for k, v in enumerate(value)
        }
    else:
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in items.items():
        found |= _flat(inner, f"{name}.{key}" if name else key)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _drop_unfinished(folder: Path) -> None:
    """Remove the temporary names that a killed process left."""
    for path in folder.rglob(".*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
