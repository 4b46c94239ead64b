"""TIFF of every kind: BigTIFF, OME-TIFF, Aperio SVS, tiled or striped, with or without pyramid."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image as PillowImage

from deepspace.core.errors import InputError
from deepspace.io import colour
from deepspace.io.resolution import tiff_scale
from deepspace.io.source import (
    MAX_WHOLE_IMAGE,
    ArrayLRU,
    Image,
    Scale,
    downsample_of,
    jpeg_is_whole,
    threads,
)

_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_JPEG = {6, 7, 34892, 33007}
_APERIO_J2K_YCBCR = 33003
_ROWS_AT_ONCE = 128


class TiffSource:
    """Windows of a TIFF, decoded tile by tile (or strip by strip) through a bounded cache.

    Parameters
    ----------
    path
        The file.
    cache_bytes
        Bytes of decoded tiles that are kept.

    Raises
    ------
    InputError
        If the file is damaged or truncated, or is not an 8-bit picture.
    """

    identity = ""

    def __init__(self, path: Path, cache_bytes: int) -> None:
        self.path = path
        self._file = open_tiff(path)
        try:
            pages, self.notes, self.scale = _read_headers(path, self._file)
            self._levels = [_Page(path, page) for page in pages]
        except InputError:
            self._file.close()
            raise
        except Exception as error:  # a damaged header can break the parser anywhere
            self._file.close()
            raise _damaged(path, error) from error
        self.sizes = tuple((p.width, p.height) for p in self._levels)
        self.blocks = tuple((p.block_width, p.block_height) for p in self._levels)
        self.downsamples = tuple(downsample_of(self.sizes[0], size) for size in self.sizes)
        missing = sum(int((p.counts == 0).sum()) for p in self._levels)
        if missing:
            self.notes += (f"{missing} tiles hold no data and are read as white",)
        self._cache = ArrayLRU(cache_bytes)
        self._lock = threading.Lock()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image:
        """Return a window, shape (height, width, 3), that lies wholly inside the level."""
        page = self._levels[level]
        columns = range(x // page.block_width, (x + width - 1) // page.block_width + 1)
        rows = range(y // page.block_height, (y + height - 1) // page.block_height + 1)
        places = [(row, column) for row in rows for column in columns]
        out: Image = np.empty((height, width, 3), np.uint8)

        def paste(place: tuple[int, int]) -> None:
            block = self._block(level, *place)
            top, left = place[0] * page.block_height - y, place[1] * page.block_width - x
            y0, y1 = max(top, 0), min(top + block.shape[0], height)
            x0, x1 = max(left, 0), min(left + block.shape[1], width)
            out[y0:y1, x0:x1] = block[y0 - top : y1 - top, x0 - left : x1 - left]

        if len(places) < 16:
            for place in places:
                paste(place)
        else:  # the decoders release the interpreter lock
            with ThreadPoolExecutor(threads()) as pool:
                list(pool.map(paste, places))
        return out

    def close(self) -> None:
        """Give back the file."""
        self._file.close()
        self._cache.clear()

    def _block(self, level: int, row: int, column: int) -> Image:
        return self._cache.get((level, row, column), lambda: self._decode(level, row, column))

    def _decode(self, level: int, row: int, column: int) -> Image:
        page = self._levels[level]
        parts = [self._raw(offset, count) for offset, count in page.segments(row, column)]
        try:
            return page.decode(parts, row, column)
        except InputError:
            raise
        except Exception as error:  # each codec has its own exception classes
            raise InputError(
                f"{self.path}: tile in row {row}, column {column} of level {level} cannot be "
                f"decoded ({error}); the file is damaged: copy or export it again"
            ) from error

    def _raw(self, offset: int, count: int) -> bytes | None:
        if count == 0:
            return None
        with self._lock:
            handle = self._file.filehandle
            handle.seek(offset)
            data: bytes = handle.read(count)
        if len(data) < count:
            raise InputError(
                f"{self.path}: ends within a tile (at byte {offset + len(data):,}); "
                "the file is truncated: copy it again"
            )
        return data


class _Page:
    """One resolution level: where its blocks lie in the file and how they become RGB."""

    def __init__(self, path: Path, page: tifffile.TiffPage) -> None:
        self.path = path
        self.page = page
        self.width, self.height = int(page.imagewidth), int(page.imagelength)
        self.samples = int(page.samplesperpixel)
        self.planes = self.samples if page.planarconfig == 2 and self.samples > 1 else 1
        self.offsets = np.asarray(page.dataoffsets, np.int64)
        self.counts = np.asarray(page.databytecounts, np.int64)
        # an uncompressed picture in one piece is read by rows, never whole
        self.rowwise = bool(page.is_contiguous) and page.compression == 1 and self.planes == 1
        self.rowwise = self.rowwise and not page.is_tiled and page.bitspersample == 8
        if page.is_tiled:
            self.block_width, self.block_height = int(page.tilewidth), int(page.tilelength)
        elif self.rowwise:
            self.block_width, self.block_height = self.width, min(_ROWS_AT_ONCE, self.height)
        else:
            self.block_width = self.width
            self.block_height = min(int(page.rowsperstrip), self.height)
        if min(self.width, self.height, self.block_width, self.block_height) < 1:
            raise _damaged(path, ValueError("its header gives a size of zero"))
        # made now: tifffile looks into the file for it, which in a thread would move the handle
        # from under another one that reads
        page.decode  # noqa: B018
        self.columns = -(-self.width // self.block_width)
        self.rows = -(-self.height // self.block_height)
        self._check()

    def _check(self) -> None:
        expected = self.rows * self.columns * self.planes
        if not self.rowwise and not len(self.offsets) == len(self.counts) == expected:
            raise InputError(
                f"{self.path}: its header promises {expected} tiles and lists {len(self.counts)}; "
                "the file is damaged: copy or export it again"
            )
        size = self.path.stat().st_size
        end = int((self.offsets + self.counts).max(initial=0))
        if self.rowwise:
            end = int(self.offsets[0]) + self.width * self.height * self.samples
        if end > size or (self.counts < 0).any():
            raise InputError(
                f"{self.path}: pixel data reach to byte {end:,}, but the file has only {size:,}; "
                "it is truncated: copy or download it again"
            )
        if not self.counts.any():
            raise InputError(f"{self.path}: holds no pixel data; export it again")
        if self.block_width * self.block_height > MAX_WHOLE_IMAGE:
            raise InputError(
                f"{self.path}: is one compressed piece of {self.width} x {self.height} pixels; "
                f"make it tiled: vips tiffsave '{self.path.name}' '{self.path.stem}_tiled.tif' "
                "--tile --pyramid --bigtiff --compression jpeg --Q 90"
            )

    def segments(self, row: int, column: int) -> list[tuple[int, int]]:
        """Offset and byte count of each plane of a block."""
        if self.rowwise:
            line = self.width * self.samples
            top = row * self.block_height
            lines = min(self.block_height, self.height - top)
            return [(int(self.offsets[0]) + top * line, lines * line)]
        first = row * self.columns + column
        step = self.rows * self.columns
        indices = [first + plane * step for plane in range(self.planes)]
        return [(int(self.offsets[i]), int(self.counts[i])) for i in indices]

    def decode(self, parts: list[bytes | None], row: int, column: int) -> Image:
        """Bytes of a block as RGB, shape (rows, columns, 3), without the padding at the edges."""
        height = min(self.block_height, self.height - row * self.block_height)
        width = min(self.block_width, self.width - column * self.block_width)
        if any(part is None for part in parts):
            return np.full((height, width, 3), 255, np.uint8)
        first = row * self.columns + column
        step = self.rows * self.columns
        planes = [
            self._decode_part(part, first + i * step)
            for i, part in enumerate(parts)
            if part is not None
        ]
        block = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        if block.shape[0] < height or block.shape[1] < width:
            raise ValueError(f"it has {block.shape[1]} x {block.shape[0]} pixels")
        return self._rgb(block[:height, :width])

    def _decode_part(self, part: bytes, index: int) -> NDArray[np.uint8]:
        page = self.page
        if self.rowwise:
            flat: NDArray[np.uint8] = np.frombuffer(part, np.uint8)
            return flat.reshape(-1, self.width, self.samples)
        if page.compression in _JPEG:
            if not jpeg_is_whole(part):
                raise ValueError("the JPEG data stop early")
            tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
            array = page.decode(part, index, **tables)[0]
        else:
            array = page.decode(part, index)[0]
        decoded: NDArray[np.uint8] = np.asarray(array)[0]
        return decoded

    def _rgb(self, block: NDArray[np.uint8]) -> Image:
        page = self.page
        kind = int(page.photometric)
        if kind == _PALETTE:
            palette = (np.asarray(page.colormap) >> 8).astype(np.uint8)
            return np.ascontiguousarray(palette.T[block[..., 0]])
        if page.compression == _APERIO_J2K_YCBCR:
            picture = PillowImage.fromarray(np.ascontiguousarray(block[..., :3]), "YCbCr")
            return np.array(picture.convert("RGB"))
        if kind in (_MINISWHITE, _MINISBLACK):
            grey = block[..., 0] if kind == _MINISBLACK else 255 - block[..., 0]
            rgb = colour.grey_to_rgb(grey)
        else:
            rgb = block[..., :3]
        colours = 1 if kind in (_MINISWHITE, _MINISBLACK) else 3
        if self.samples > colours:
            associated = tuple(page.extrasamples or ())[:1] == (1,)
            return colour.over_white(rgb, block[..., colours], premultiplied=associated)
        return np.ascontiguousarray(rgb)


def open_tiff(path: Path) -> tifffile.TiffFile:
    """Open a TIFF and read its first page, or raise `InputError`."""
    with _quiet():
        try:
            file = tifffile.TiffFile(path)
        except Exception as error:  # a damaged header can break the parser anywhere
            raise _damaged(path, error) from error
        try:
            file.pages[0]
        except Exception as error:
            file.close()
            raise _damaged(path, error) from error
    return file


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: starts like a TIFF but cannot be read ({error}); it is damaged or truncated: "
        "copy or export it again"
    )


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Gather what tifffile would log: it becomes part of an error or a note instead."""
    messages: list[str] = []
    logger = logging.getLogger("tifffile")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _read_headers(
    path: Path, file: tifffile.TiffFile
) -> tuple[list[tifffile.TiffPage], tuple[str, ...], Scale]:
    """Choose the pages of the pyramid and check that they can be shown as RGB."""
    for ending in ("bif", "scn", "ndpi"):  # their tiles overlap or lie in several scans
        if getattr(file, f"is_{ending}"):
            raise InputError(
                f"{path}: is a scanner's own TIFF; name it {path.stem}.{ending}, so that OpenSlide "
                "reads it (pip install 'deepspace[wsi]')"
            )
    with _quiet() as messages:
        base, candidates, image = _candidates(file)
        scale = tiff_scale(file, base, image)
        levels = [base, *_smaller(base, candidates)]
    equal = sum(
        page is not base and page.shape == base.shape and not page.is_reduced
        for page in candidates
        if not file.is_svs  # its thumbnail may be as large as a tiny slide
    )
    notes = tuple(f"tifffile warns: {message}" for message in messages)
    _check_kind(path, base)
    if equal and base.samplesperpixel == 1:
        raise InputError(
            f"{path}: holds {equal + 1} grey pictures of the same size, perhaps one a colour; save "
            "it as one RGB picture (in Fiji: Image > Type > RGB Color, then save as TIFF)"
        )
    if equal:
        notes += (f"holds {equal + 1} pictures of the same size; the first is read",)
    return levels, notes, scale


def _candidates(
    file: tifffile.TiffFile,
) -> tuple[tifffile.TiffPage, list[tifffile.TiffPage], int]:
    """Full-resolution page, the pages that may be its levels, and its number as OME image."""
    main = [page.aspage() for page in file.pages]
    image = 0
    if file.is_ome:
        image, series = max(enumerate(file.series), key=lambda s: s[1].keyframe.size)
        base = series.keyframe.aspage()
        others = [page.aspage() for page in series.pages if page is not None]
    elif file.is_svs:
        base, others = main[0], main
    else:
        base = max(main, key=lambda page: page.imagewidth * page.imagelength)
        others = main
    inner = [page.aspage() for page in base.pages] if base.pages is not None else []
    return base, [*inner, *others], image


def _smaller(
    base: tifffile.TiffPage, candidates: list[tifffile.TiffPage]
) -> list[tifffile.TiffPage]:
    """Lower resolutions of `base` among the pages, largest first; never label or macro."""
    found: dict[int, tifffile.TiffPage] = {}
    for page in candidates:
        width, height = page.imagewidth, page.imagelength
        if width >= base.imagewidth or height >= base.imagelength:
            continue
        # a label or overview picture is striped where the pyramid is tiled
        if page.is_tiled != base.is_tiled or not (page.is_tiled or page.is_reduced):
            continue
        kind = (page.photometric, page.samplesperpixel, page.bitspersample)
        if kind != (base.photometric, base.samplesperpixel, base.bitspersample):
            continue
        # each side may be rounded either way, at every halving
        ratio = base.imagewidth / width
        if abs(base.imagelength / ratio - height) > 2 + height / 1000:
            continue
        found.setdefault(width, page)
    return [found[width] for width in sorted(found, reverse=True)]


def _check_kind(path: Path, page: tifffile.TiffPage) -> None:
    kind, samples = int(page.photometric), int(page.samplesperpixel)
    if page.dtype != np.uint8 or page.bitspersample != 8:
        bits = (
            page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
        )
        raise colour.refuse(path, f"has {bits} bits a channel")
    if kind not in (_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _YCBCR):
        name = getattr(page.photometric, "name", str(kind))
        raise colour.refuse(path, f"is stored as {name} colours")
    if kind == _YCBCR and page.compression not in _JPEG | {_APERIO_J2K_YCBCR}:
        raise colour.refuse(path, "is stored as YCBCR without JPEG compression")
    wanted = {_PALETTE: (1,), _MINISWHITE: (1, 2), _MINISBLACK: (1, 2)}.get(kind, (3, 4))
    if samples not in wanted:
        raise colour.refuse(path, f"has {samples} channels of photometric kind {kind}")
