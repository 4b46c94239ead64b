"""Scanner formats other than TIFF and SVS, through OpenSlide (extra ``wsi``)."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

from deepspace.core.errors import InputError
from deepspace.io import colour
from deepspace.io.source import Image, Scale, per_axis
from deepspace.io.tiff import open_tiff

_PROBE = """
import sys, openslide
slide = openslide.OpenSlide(sys.argv[1])
slide.read_region((0, 0), slide.level_count - 1, (1, 1))
"""


class VendorSource:
    """Windows of a slide that OpenSlide knows.

    Raises
    ------
    InputError
        If OpenSlide is not installed or does not read the file.
    """

    def __init__(self, path: Path, cache_bytes: int) -> None:
        self.path = path
        openslide = _library(path)
        _probe(path)
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise _unreadable(path, str(error)) from error
        self._slide.set_cache(openslide.OpenSlideCache(cache_bytes))
        self._error: type[Exception] = openslide.OpenSlideError
        properties = self._slide.properties
        self.sizes = tuple((int(w), int(h)) for w, h in self._slide.level_dimensions)
        self.downsamples = tuple(float(d) for d in self._slide.level_downsamples)
        self.blocks = tuple(
            (
                int(properties.get(f"openslide.level[{i}].tile-width", 256)),
                int(properties.get(f"openslide.level[{i}].tile-height", 256)),
            )
            for i in range(len(self.sizes))
        )
        # some formats spread over many files; this hash covers them
        self.identity = str(properties.get("openslide.quickhash-1", ""))
        self.notes: tuple[str, ...] = ()
        self.scale = _scale(properties)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image:
        """Return a window, shape (height, width, 3), that lies wholly inside the level."""
        step = self.downsamples[level]
        corner = (round(x * step), round(y * step))
        try:
            rgba = np.asarray(self._slide.read_region(corner, level, (width, height)))
        except self._error as error:
            raise InputError(
                f"{self.path}: window at x {x}, y {y} of level {level} cannot be decoded "
                f"({error}); the file is damaged: copy or export it again"
            ) from error
        return colour.over_white(rgba[..., :3], rgba[..., 3])

    def close(self) -> None:
        """Give back the file."""
        self._slide.close()


def _library(path: Path) -> ModuleType:
    try:
        return importlib.import_module("openslide")
    except ImportError as error:
        raise InputError(
            f"{path}: {path.suffix} slides need OpenSlide: pip install 'deepspace[wsi]'"
        ) from error


def _probe(path: Path) -> None:
    """Open the slide in another process first: OpenSlide may abort on a forged header."""
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic[:2] in (b"II", b"MM"):
        open_tiff(path).close()
    command = [sys.executable, "-c", _PROBE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it stopped without a message"])[-1]
        raise _unreadable(path, last)


def _unreadable(path: Path, why: str) -> InputError:
    return InputError(
        f"{path}: OpenSlide does not read it ({why}); copy it again with the files that belong to "
        "it, or export it as OME-TIFF"
    )


def _scale(properties: Mapping[str, str]) -> Scale:
    x, y = (properties.get(f"openslide.mpp-{axis}") for axis in "xy")
    if x is None or y is None:
        return Scale()
    return per_axis(float(x), float(y), "the scanner's metadata (OpenSlide)")
