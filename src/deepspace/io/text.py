"""Open text tables: gzip by content, delimiter by content, faults as `InputError`."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

from deepspace.core.errors import InputError

_GZIP = b"\x1f\x8b"
_BINARY = {
    b"\x89HDF": "an HDF5 file",
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive (an Excel sheet?)",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"II*\x00": "a TIFF image",
    b"MM\x00*": "a TIFF image",
}


def need_file(path: Path) -> Path:
    """Return `path` if it is a file.

    Raises
    ------
    InputError
        If there is no such file, or it is a folder.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder, a file is needed here")
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; check the path (paths in a sheet are relative to it)"
        )
    return path


def read_bytes(path: Path) -> bytes:
    """Content of a file, decompressed if it is gzip (whatever its name says).

    Raises
    ------
    InputError
        If the file is missing, unreadable, or a damaged gzip.
    """
    need_file(path)
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(_GZIP) else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path}: the gzip data is damaged or cut short ({error}); download or copy it again"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def read_text(path: Path) -> str:
    """Text of a table, without a byte order mark.

    Raises
    ------
    InputError
        As `read_bytes`; or if the file is empty or not text.
    """
    content = read_bytes(path)
    for magic, kind in _BINARY.items():
        if content.startswith(magic):
            raise InputError(f"{path}: is {kind}, a text table is needed here")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        # spreadsheets on Windows still save cp1252; latin-1 accepts the same letters
        text = content.decode("latin-1")
    if "\x00" in text:
        raise InputError(f"{path}: is not a text table; save it as UTF-8 text")
    if not text.strip():
        raise InputError(f"{path}: is empty; export or copy it again")
    return text


def delimiter(first_line: str) -> str:
    r"""Return tab, semicolon or comma, whichever is the most frequent in the line.

    Examples
    --------
    >>> delimiter("x\ty\tnew_x")
    '\t'
    """
    return max("\t;,", key=first_line.count)


def stream(text: str) -> io.StringIO:
    """Text as a file for pandas."""
    return io.StringIO(text)
