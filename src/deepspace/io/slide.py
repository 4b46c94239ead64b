"""A whole-slide image: its pyramid, its pixel size, and windows of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from deepspace.core.errors import InputError
from deepspace.core.files import sha256
from deepspace.io.raster import RasterSource
from deepspace.io.source import Image, PixelSource, plausible
from deepspace.io.tiff import TiffSource
from deepspace.io.vendor import VendorSource

CACHE_BYTES = 256 << 20
_WHITE = 255
_BAND_PX = 512

# the first bytes decide; a name may lie
_BY_MAGIC: tuple[tuple[bytes, Callable[[Path, int], PixelSource]], ...] = (
    (b"II*\x00", TiffSource),
    (b"MM\x00*", TiffSource),
    (b"II+\x00", TiffSource),
    (b"MM\x00+", TiffSource),
    (b"\x89PNG\r\n\x1a\n", RasterSource),
    (b"\xff\xd8\xff", RasterSource),
)
# containers of scanners: TIFFs with a geometry of their own, or no TIFFs at all
_BY_SUFFIX: dict[str, Callable[[Path, int], PixelSource]] = dict.fromkeys(
    (".ndpi", ".mrxs", ".scn", ".svslide", ".vms", ".vmu", ".bif", ".czi", ".dcm"), VendorSource
)


@dataclass(frozen=True)
class Level:
    """One resolution of the pyramid.

    Attributes
    ----------
    width, height
        Size in pixels of this level.
    downsample
        Full-resolution pixels per pixel of this level.
    """

    width: int
    height: int
    downsample: float


@dataclass(frozen=True)
class Slide:
    """A whole-slide image that is read by windows.

    A pixel with index i covers the interval [i, i + 1): the centre of the first one is at 0.5.

    Attributes
    ----------
    path
        The file.
    mpp
        Micrometres per full-resolution pixel, or None where nobody said.
    mpp_source
        Where `mpp` comes from.
    levels
        The pyramid, full resolution first.
    notes
        What a user should hear about this file.
    """

    path: Path
    mpp: float | None
    mpp_source: str | None
    levels: tuple[Level, ...]
    notes: tuple[str, ...]
    _source: PixelSource = field(repr=False, compare=False)

    @property
    def width(self) -> int:
        """Full-resolution width in pixels."""
        return self.levels[0].width

    @property
    def height(self) -> int:
        """Full-resolution height in pixels."""
        return self.levels[0].height

    def block(self, level: int) -> tuple[int, int]:
        """Width and height, in pixels of the level, of the tiles it is stored in."""
        return self._source.blocks[level]

    def level_for(self, downsample: float) -> int:
        """Coarsest level that is still at least as fine as `downsample`."""
        fits = [i for i, lv in enumerate(self.levels) if lv.downsample <= downsample * 1.001]
        return max(fits, key=lambda i: self.levels[i].downsample, default=0)

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> Image:
        """Read a window.

        Parameters
        ----------
        x, y
            Top-left corner in full-resolution pixels.
        width, height
            Size in pixels of `level`.
        level
            Which level of the pyramid.

        Returns
        -------
        uint8 of shape (height, width, 3); parts outside the slide are white.

        Raises
        ------
        InputError
            If a tile cannot be decoded.
        """
        step = self.levels[level].downsample
        return self.read_level(
            level, math.floor(x / step + 0.5), math.floor(y / step + 0.5), width, height
        )

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> Image:
        """Read a window whose corner and size are in pixels of `level`; see `read`."""
        size = self.levels[level]
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + width, size.width), min(y + height, size.height)
        if x1 <= x0 or y1 <= y0:
            return np.full((height, width, 3), _WHITE, np.uint8)
        inside = self._source.read(level, x0, y0, x1 - x0, y1 - y0)
        if inside.shape[:2] == (height, width):
            return inside
        out = np.full((height, width, 3), _WHITE, np.uint8)
        out[y0 - y : y1 - y, x0 - x : x1 - x] = inside
        return out

    def resample(
        self, corner: tuple[float, float], size: tuple[float, float], out: tuple[int, int]
    ) -> Image:
        """Read a window of any position and size at any resolution.

        The level that is just finer than needed is resampled with an antialiasing triangle
        filter. Where a level already has the wanted size to half a pixel, its own pixels are
        given, because resampling would only blur them; the window then moves by less than half
        an output pixel.

        Parameters
        ----------
        corner
            x, y of the top-left corner in full-resolution pixels.
        size
            Width and height in full-resolution pixels.
        out
            Width and height of the result in pixels.

        Returns
        -------
        uint8 of shape (out height, out width, 3); parts outside the slide are white.
        """
        level = self.level_for(min(size[0] / out[0], size[1] / out[1]))
        step = self.levels[level].downsample
        x, y, width, height = (v / step for v in (*corner, *size))
        if abs(width - out[0]) < 0.5 and abs(height - out[1]) < 0.5:
            return self.read_level(level, math.floor(x + 0.5), math.floor(y + 0.5), *out)
        # the filter reaches one output pixel beyond the window
        margin = math.ceil(max(width / out[0], height / out[1], 1.0)) + 1
        left, top = math.floor(x) - margin, math.floor(y) - margin
        right, bottom = math.ceil(x + width) + margin, math.ceil(y + height) + margin
        window = self.read_level(level, left, top, right - left, bottom - top)
        box = (x - left, y - top, x - left + width, y - top + height)
        picture = PillowImage.fromarray(window)
        return np.asarray(picture.resize(out, PillowImage.Resampling.BILINEAR, box=box))

    def overview(self, downsample: float) -> Image:
        """Return the whole slide with `downsample` full-resolution pixels per pixel.

        It is made in bands, so that memory stays small for a slide without a pyramid.
        """
        width, height = (max(1, math.ceil(v / downsample)) for v in (self.width, self.height))
        step = self.levels[self.level_for(downsample)].downsample
        band = max(1, math.ceil(_BAND_PX * step / downsample))
        bands = [
            self.resample(
                (0.0, top * downsample),
                (width * downsample, rows * downsample),
                (width, rows),
            )
            for top in range(0, height, band)
            for rows in [min(band, height - top)]
        ]
        return np.concatenate(bands)

    def thumbnail(self, max_px: int = 2048) -> tuple[Image, float]:
        """Return the whole slide with at most `max_px` on its longer side, and its downsample."""
        downsample = max(1.0, max(self.width, self.height) / max_px)
        return self.overview(downsample), downsample

    def content_hash(self) -> str:
        """SHA-256 of the file, kept for the process while the file does not change."""
        stat = self.path.stat()
        digest = _file_hash(self.path.absolute(), stat.st_mtime_ns, stat.st_size)
        if not self._source.identity:
            return digest
        return hashlib.sha256(f"{digest} {self._source.identity}".encode()).hexdigest()

    def with_mpp(self, mpp: float, source: str) -> Slide:
        """Return the same slide with another pixel size.

        Raises
        ------
        InputError
            If `mpp` is not a size that a slide can have.
        """
        if not plausible(mpp):
            raise InputError(
                f"{self.path}: mpp is {mpp:g} ({source}); give micrometres per pixel, for instance "
                "0.5 for a 20x scan"
            )
        return replace(self, mpp=float(mpp), mpp_source=source)

    def require_mpp(self) -> float:
        """Return the micrometres per pixel.

        Raises
        ------
        InputError
            If nobody said.
        """
        if self.mpp is None:
            hints = "".join(f"; {note}" for note in self.notes)
            raise InputError(
                f"{self.path}: the size of a pixel is unknown (no mpp in the image's metadata"
                f"{hints}); write it into the mpp column of the sheet, in micrometres per pixel"
            )
        return self.mpp

    def close(self) -> None:
        """Give back the file; reading afterwards fails."""
        self._source.close()


def open_slide(path: Path | str, *, cache_bytes: int = CACHE_BYTES) -> Slide:
    """Open an image: reads headers only, pixels come when they are asked for.

    TIFF, BigTIFF, OME-TIFF, Aperio SVS, PNG and JPEG are read directly; other scanner formats
    through OpenSlide (extra ``wsi``). The content decides, not the name.

    Parameters
    ----------
    path
        The file.
    cache_bytes
        Bytes of decoded tiles that are kept (PNG and JPEG share a bound of 1 GiB instead).

    Raises
    ------
    InputError
        If there is no such file or it cannot be read as an H&E image.
    """
    path = Path(path)
    source = _backend(path)(path, cache_bytes)
    levels = tuple(
        Level(width, height, downsample)
        for (width, height), downsample in zip(source.sizes, source.downsamples, strict=True)
    )
    scale = source.scale
    return Slide(path, scale.mpp, scale.source, levels, source.notes + scale.notes, source)


def _backend(path: Path) -> Callable[[Path, int], PixelSource]:
    if not path.exists():
        raise InputError(f"{path}: no such image; correct the path")
    if path.is_dir():
        raise InputError(f"{path}: is a folder, not an image; name the image file inside it")
    try:
        with path.open("rb") as stream:
            magic = stream.read(16)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be opened ({error.strerror}); check its rights"
        ) from error
    if not magic:
        raise InputError(f"{path}: is empty (0 bytes); copy or download it again")
    if path.suffix.lower() in _BY_SUFFIX:
        return _BY_SUFFIX[path.suffix.lower()]
    for start, backend in _BY_MAGIC:
        if magic.startswith(start):
            return backend
    raise InputError(
        f"{path}: is no image that deepspace reads (it begins with {magic[:8]!r}); give a TIFF, "
        "OME-TIFF, SVS, PNG or JPEG, or a scanner format with its usual ending (.ndpi, .mrxs, ...)"
    )


@lru_cache(maxsize=256)
def _file_hash(path: Path, mtime_ns: int, size: int) -> str:
    del mtime_ns, size  # part of the key: a changed file is hashed again
    return sha256(path)
