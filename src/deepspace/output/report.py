"""A report as one self-contained HTML page: chapters of text, tables and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

# pictures of a page 1,100 px wide, sharp on a screen of high resolution too
LARGEST_PX = 1600
QUALITY = 80


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Code:
    """Lines to be copied as they are."""

    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Table:
    """Rows of cells, with a note under them.

    Attributes
    ----------
    head : sequence of str
    rows : sequence of sequences of str
    numbers : collection of int
        Columns that are aligned to the right.
    classes : sequence of str
        ``strong``, ``quiet`` or nothing for each row.
    note : str
    searchable : str
        What the box above the table asks for; no box without it.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    classes: Sequence[str] = ()
    note: str = ""
    searchable: str = ""
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """An embedded image; its caption says in words what is to be seen."""

    source: str
    caption: str
    kind: ClassVar[str] = "picture"

    @classmethod
    def of(cls, path: Path, caption: str) -> Picture:
        """Embed an image file."""
        return cls(embedded(path), caption)


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown on request."""

    summary: str
    blocks: Sequence[Any]
    kind: ClassVar[str] = "folded"


@dataclass(frozen=True)
class Chapter:
    """A heading with what is under it."""

    anchor: str
    title: str
    blocks: Sequence[Any]


@dataclass(frozen=True)
class Page:
    """All of a report.

    Attributes
    ----------
    title, under : str
        Heading and the line under it.
    verdict : sequence of str
        Plain words, shown on top.
    chapters : sequence of Chapter
        Those without blocks are left out.
    warn : bool
        Whether the verdict is bad news.
    """

    title: str
    under: str
    verdict: Sequence[str]
    chapters: Sequence[Chapter] = field(default_factory=list)
    warn: bool = False

    def html(self) -> str:
        """The page, which needs nothing beside it; every name is escaped."""
        environment = Environment(
            loader=PackageLoader("deepspace", "output"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        chapters = [chapter for chapter in self.chapters if chapter.blocks]
        return environment.get_template("report.html.j2").render(
            title=self.title,
            under=self.under,
            verdict=self.verdict,
            chapters=chapters,
            warn=self.warn,
        )


def embedded(path: Path) -> str:
    """An image file as the text of a ``src``, no larger than a page can show.

    Raises
    ------
    OSError
        If the file is no image.
    """
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    image.thumbnail((LARGEST_PX, 4 * LARGEST_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
