"""PNG and JPEG: no random access, so the picture is decoded once and kept for a while."""

from __future__ import annotations

import zlib
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import JpegImagePlugin, PngImagePlugin
from PIL.Image import Exif
from PIL.Image import Image as PillowImage

from deepspace.core.errors import InputError
from deepspace.io import colour
from deepspace.io.source import (
    MAX_WHOLE_IMAGE,
    ArrayLRU,
    Image,
    Scale,
    jpeg_is_whole,
    per_axis,
    plausible,
)

_JPEG = b"\xff\xd8\xff"
_EXIF_ORIENTATION = 0x0112
_PNG_BIT_DEPTH_AT = 24

_decoded = ArrayLRU(1 << 30)
"""Pictures decoded lately, shared by the process: sections are visited again and again."""


class RasterSource:
    """Windows of a PNG or JPEG.

    Raises
    ------
    InputError
        If the file is damaged, is not an 8-bit picture, or is too large to be decoded whole.
    """

    identity = ""

    def __init__(self, path: Path, cache_bytes: int) -> None:
        del cache_bytes  # the decoded pictures have their own bound, for the whole process
        self.path = path
        with _open(path) as picture:
            width, height = picture.size
            _check_kind(path, picture)
            self.notes = _orientation_notes(path, picture)
            self.scale = _scale(picture)
        if width * height > MAX_WHOLE_IMAGE:
            raise InputError(
                f"{path}: has {width} x {height} pixels, and {path.suffix} gives no access to "
                f"parts of a picture; make it a tiled TIFF: vips tiffsave '{path.name}' "
                f"'{path.stem}.tif' --tile --pyramid --bigtiff --compression jpeg --Q 90"
            )
        self.sizes: tuple[tuple[int, int], ...] = ((width, height),)
        self.blocks: tuple[tuple[int, int], ...] = self.sizes
        self.downsamples: tuple[float, ...] = (1.0,)
        stat = path.stat()
        self._key = (path.absolute(), stat.st_mtime_ns, stat.st_size)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image:
        """Return a window, shape (height, width, 3), that lies wholly inside the picture."""
        del level  # there is one
        return _decoded.get(self._key, self._decode)[y : y + height, x : x + width].copy()

    def close(self) -> None:
        """Nothing is held open."""

    def _decode(self) -> Image:
        data = self.path.read_bytes()
        try:
            pixels = _decode_jpeg(data) if data.startswith(_JPEG) else _decode_png(data)
        except Exception as error:  # each codec has its own exception classes
            raise InputError(
                f"{self.path}: the picture cannot be decoded ({error}); it is truncated or "
                "damaged: copy or export it again"
            ) from error
        return _rgb(pixels)


def _open(path: Path) -> PillowImage:
    """Open by the first bytes; the classes are used directly, as `PIL.Image.open` limits size."""
    kinds = {
        b"\x89PNG": PngImagePlugin.PngImageFile,
        b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    }
    with path.open("rb") as stream:
        magic = stream.read(4)
    make = next(kind for start, kind in kinds.items() if magic.startswith(start))
    try:
        return make(path)
    except Exception as error:  # a damaged header can break the parser anywhere
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: starts like a picture but cannot be read ({error}); it is damaged: "
        "copy or export it again"
    )


def _check_kind(path: Path, picture: PillowImage) -> None:
    if picture.format == "PNG":
        with path.open("rb") as stream:
            bits = stream.read(_PNG_BIT_DEPTH_AT + 1)[-1]
        if bits > 8:
            raise colour.refuse(path, f"has {bits} bits a channel")
    if picture.mode not in {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}:
        raise colour.refuse(path, f"is stored as {picture.mode} colours")


def _orientation_notes(path: Path, picture: PillowImage) -> tuple[str, ...]:
    exif = Exif()
    try:
        exif.load(picture.info.get("exif", b""))  # unlike getexif(), this decodes no pixels
    except Exception as error:  # a damaged block can break the parser anywhere
        raise _damaged(path, error) from error
    turned = exif.get(_EXIF_ORIENTATION, 1)
    if turned == 1:
        return ()
    return (
        f"its EXIF tag says that viewers should turn it (orientation {turned}); it is read as "
        "stored, because coordinates count the pixels of the file",
    )


def _scale(picture: PillowImage) -> Scale:
    dpi = picture.info.get("dpi")
    if not dpi or 0 in dpi:
        return Scale()
    x, y = 25400 / float(dpi[0]), 25400 / float(dpi[1])
    # 72, 96 or 300 dpi are the defaults of picture editors and state nothing
    return per_axis(x, y, "the picture's resolution (dpi)") if plausible(x) else Scale()


def _decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    if not jpeg_is_whole(data):
        raise ValueError("the JPEG data stop early")
    pixels: NDArray[np.uint8] = imagecodecs.jpeg8_decode(data)
    return pixels


def _decode_png(data: bytes) -> NDArray[np.uint8]:
    _check_png(data)
    pixels: NDArray[np.uint8] = imagecodecs.png_decode(data)
    return pixels


def _check_png(data: bytes) -> None:
    """Compare the checksum of every chunk: the decoder only warns."""
    at, kind = 8, b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise ValueError("the PNG data stop early")
        length = int.from_bytes(data[at : at + 4], "big")
        body = memoryview(data)[at + 4 : at + 8 + length]
        stored = int.from_bytes(data[at + 8 + length : at + 12 + length], "big")
        if zlib.crc32(body) != stored:
            raise ValueError(f"a checksum is wrong at byte {at:,}")
        kind = bytes(body[:4])
        at += 12 + length


def _rgb(pixels: NDArray[np.uint8]) -> Image:
    """Bring decoded pixels, shape (h, w) or (h, w, 1 to 4), into RGB over white."""
    if pixels.ndim == 2:
        return colour.grey_to_rgb(pixels)
    if pixels.shape[2] == 3:
        return pixels
    if pixels.shape[2] == 1:
        return colour.grey_to_rgb(pixels[..., 0])
    out = np.empty((*pixels.shape[:2], 3), np.uint8)
    for top in range(0, len(pixels), 1024):  # in parts, because the sums need 16 bits
        part = pixels[top : top + 1024]
        rgb = part[..., :3] if part.shape[2] == 4 else colour.grey_to_rgb(part[..., 0])
        out[top : top + 1024] = colour.over_white(rgb, part[..., -1])
    return out
