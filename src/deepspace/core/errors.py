"""Errors that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class DeepspaceError(Exception):
    """Base of every error that deepspace raises on purpose."""


class InputError(DeepspaceError):
    """The input or the request is wrong: the command line prints it and exits 2.

    A message names the file, the value that is wrong and the next step.
    """


class DiskError(InputError):
    """The disk is full or refuses to be written: what was done so far stays."""


class Problems:
    """Collect all faults of one input, then raise them together.

    Examples
    --------
    >>> problems = Problems("sheet.csv")
    >>> problems.add("row 2: no image")
    >>> problems.add("row 3: mpp is -1; give micrometres per pixel")
    >>> problems.raise_if_any()
    Traceback (most recent call last):
    ...
    deepspace.core.errors.InputError: sheet.csv: 2 problems
      - row 2: no image
      - row 3: mpp is -1; give micrometres per pixel
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.found: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.found)

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def add(self, message: str) -> None:
        """Note one fault."""
        self.found.append(message)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Turn an `InputError` raised inside the block into one more fault."""
        try:
            yield
        except InputError as error:
            self.found.append(str(error))

    def raise_if_any(self) -> None:
        """Raise `InputError` with every fault noted so far."""
        if not self.found:
            return
        if len(self.found) == 1:
            only = self.found[0]
            raise InputError(only if only.startswith(self.where) else f"{self.where}: {only}")
        lines = "".join(f"\n  - {message}" for message in self.found)
        raise InputError(f"{self.where}: {len(self.found)} problems{lines}")
