"""What a result was made of: inputs with hashes, configuration, versions, seed."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from deepspace.core.files import sha256

PACKAGES = (
    "deepspace",
    "anndata",
    "imagecodecs",
    "numpy",
    "pandas",
    "pillow",
    "scikit-image",
    "scikit-learn",
    "scipy",
    "tifffile",
    "torch",
)


def versions() -> dict[str, str]:
    """Versions of Python, of deepspace and of the libraries that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def input_hashes(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """SHA-256 of every input file, keyed by its path relative to the folder `root`.

    Folders, such as a SpatialData store, contribute every file in them.
    """
    hashes: dict[str, str] = {}
    for path in sorted(set(paths)):
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            name = os.path.relpath(file.absolute(), root.absolute())
            hashes[Path(name).as_posix()] = sha256(file)
    return hashes


def provenance(
    command: str, config: Mapping[str, Any], inputs: Mapping[str, str], seed: int
) -> dict[str, Any]:
    """Record that goes with every result; plain JSON values only, and no clock."""
    return {
        "command": command,
        "config": dict(config),
        "inputs": dict(inputs),
        "seed": seed,
        "versions": versions(),
    }
