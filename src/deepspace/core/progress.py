"""What a program says while it works: log lines and progress bars on standard error.

Silent in Python unless `show` is called; the command line calls it, `--quiet` does not.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

log = logging.getLogger("deepspace")
log.addHandler(logging.NullHandler())

_state = {"shown": False}
_said: set[str] = set()


def log_once(text: str) -> None:
    """Log a line that many steps would repeat."""
    if text not in _said:
        _said.add(text)
        log.info(text)


class _Handler(logging.Handler):
    """Writes above a running bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def show(*, quiet: bool = False) -> Iterator[None]:
    """Print log lines and bars to standard error inside the block, unless `quiet`."""
    if quiet:
        yield
        return
    handler = _Handler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    before, level = _state["shown"], log.level
    _state["shown"] = True
    _said.clear()
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        _state["shown"] = before
        log.setLevel(level)
        log.removeHandler(handler)


def _options() -> dict[str, Any]:
    """Bars appear after two seconds; in a log file they print a line now and then."""
    interactive = sys.stderr.isatty()
    return {
        "delay": 2,
        "leave": False,
        "disable": not _state["shown"],
        "file": sys.stderr,
        "mininterval": 0.1 if interactive else 20.0,
        "ncols": None if interactive else 80,
    }


def track(steps: Iterable[T], *, total: int, text: str) -> Iterator[T]:
    """Pass `steps` on, with a bar once they take more than two seconds."""
    yield from tqdm(steps, total=total, desc=text, **_options())


@contextmanager
def counter(total: int, text: str, *, initial: int = 0, shown: bool = True) -> Iterator[tqdm[None]]:
    """Bar that the caller advances with ``update(n)``, shown after two seconds."""
    options = _options()
    options["disable"] |= not shown
    with tqdm(total=total, initial=initial, desc=text, **options) as bar:
        yield bar
