"""Outputs that appear whole or not at all, and content hashes."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deepspace.core.errors import InputError


def check_output(path: Path, *, overwrite: bool, marker: str | None = None) -> None:
    """Refuse an output that must not be written, before any work is done.

    Parameters
    ----------
    path : Path
        File or folder to be written.
    overwrite : bool
        Whether the user asked for an existing one to be replaced.
    marker : str, optional
        File inside a folder that tells that deepspace wrote it. A folder without it is never
        replaced: it may hold the user's data.

    Raises
    ------
    InputError
        If `path` exists and is not an empty folder, and `overwrite` is false; if it is a folder
        without `marker`; or if its parent cannot hold a new file.
    """
    path = path.resolve()
    if path == Path.cwd() or path in Path.cwd().parents:
        raise InputError(f"{path}: is the folder you are in, or holds it; choose another --out")
    empty_folder = path.is_dir() and not any(path.iterdir())
    if path.exists() and not empty_folder and not overwrite:
        raise InputError(f"{path}: already exists; choose another --out or add --overwrite")
    if marker is not None and path.exists() and not empty_folder:
        if not path.is_dir():
            raise InputError(f"{path}: is a file, not a folder; choose another --out")
        if not (path / marker).exists():
            raise InputError(
                f"{path}: not replaced, because it holds no {marker}: deepspace replaces only "
                "folders that it wrote; choose another --out"
            )
    if marker is None and path.is_dir() and not empty_folder:
        raise InputError(f"{path}: is a folder, not a file; choose another --out")
    parent = next(p for p in path.absolute().parents if p.exists())
    try:
        # the only sure test: some file systems say yes and then refuse
        with tempfile.TemporaryDirectory(dir=parent):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot write into {parent}; choose another --out") from error


def refuse_inputs(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that is, or holds, one of the files that are read.

    Raises
    ------
    InputError
        Even with ``--overwrite``: what was read would be lost.
    """
    target = out.resolve()
    for path in inputs:
        source = path.resolve()
        if source == target or target in source.parents:
            raise InputError(f"{out}: is or holds the input {path}; choose another --out")


def file_name(name: str) -> str:
    """Name of a file for a gene or a cluster, whatever it is called; different for different names.

    Examples
    --------
    >>> file_name("HLA-A"), file_name("Layer 2/3")
    ('HLA-A', 'Layer_2_3-5cfdb4')
    """
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:100]
    # a name that looks like one of these could be that of another
    if safe and safe == name and not re.search(r"-[0-9a-f]{6}$", name):
        return name
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file name beside `path`; rename it to `path` on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # the suffix stays last, because writers choose their format by it
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it replaces `path` on success."""
    path = path.resolve()  # a link stays a link
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file, and a folder is to be written; choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        yield temporary
        for inner in (*temporary.rglob("*"), temporary):
            _sync(inner)
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-old-"))
            path.replace(retired)
            temporary.replace(path)
            shutil.rmtree(retired)
        else:
            temporary.replace(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, as a hexadecimal string."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
