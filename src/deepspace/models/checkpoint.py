"""Where a training stands, in one safetensors file, so that it goes on as if never stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deepspace.core.errors import InputError
from deepspace.core.files import atomic_path
from deepspace.core.progress import log

BEST = "best/"  # what the names of the tensors of the best epoch begin with
_ENTRY = "deepspace"  # of the file's metadata
_SCHEMA = 1
# a checkpoint this much older than the newest belongs to no training that is under way
RECENT_S = 86400.0


@dataclass
class Standing:
    """Where a training stands, at the boundary between two steps.

    Attributes
    ----------
    epoch
        The epoch under way; epoch 0 has no steps, only a validation.
    step
        Its steps done.
    loss_sum, weight_sum
        Over the examples of those steps.
    rows
        History of the epochs done.
    best_epoch
        The one with the lowest validation loss.
    finished
        Nothing is left to do.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    finished: bool = False

    def to_json(self) -> str:
        """Text that `from_json` reads back exactly."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Standing:
        """Standing as written by `to_json`."""
        return cls(**json.loads(text))


class Checkpoint:
    """The file of one training.

    Parameters
    ----------
    path
        The file; without one, nothing is written or read.
    key
        Hash of everything that determines the training; a file with another key is not used.
    minutes
        Time between two files within an epoch.
    clock
        Seconds.
    """

    def __init__(
        self,
        path: Path | None,
        key: str,
        minutes: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._key = key
        self._seconds = 60 * minutes
        self._clock = clock
        self._last = clock()

    def due(self) -> bool:
        """Whether it is time to save within an epoch."""
        return self._path is not None and self._clock() - self._last >= self._seconds

    def save(self, tensors: Mapping[str, Tensor], standing: Standing) -> None:
        """Replace the file, whole or not at all.

        Parameters
        ----------
        tensors
            Everything that the training changes; of a finished one only the best epoch is kept.
        standing
            Where it stands.

        Raises
        ------
        InputError
            If the file cannot be written; the one before stays.
        """
        if self._path is None:
            return
        wanted = _wanted(tensors, standing)
        # a copy on the processor is made only of what is elsewhere, or not in plain order
        plain = {name: tensors[name].detach().cpu().contiguous() for name in wanted}
        about = {
            "schema": _SCHEMA,
            "key": self._key,
            "standing": asdict(standing),
            "sha256": _checksum(plain),
        }
        # one entry: safetensors writes several in any order, and the same state is the same bytes
        metadata = {_ENTRY: json.dumps(about)}
        try:
            with atomic_path(self._path) as temporary:
                save_file(plain, temporary, metadata)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{self._path}: the checkpoint cannot be written ({error}); make room and run "
                "again: training goes on from the checkpoint before"
            ) from error
        self._last = self._clock()

    def load(self, tensors: Mapping[str, Tensor]) -> Standing | None:
        """Put the values of the file into `tensors`, if it belongs to this training.

        Returns
        -------
        Standing or None
            `None`, and `tensors` as they were, if there is no file, or one that is damaged or
            of another training; the log says so.
        """
        if self._path is None or not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[_ENTRY])
                if about["schema"] != _SCHEMA or about["key"] != self._key:
                    log.info("%s: is of another training; starting anew", self._path)
                    return None
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            standing = Standing(**about["standing"])
            _check(stored, tensors, standing, about["sha256"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            log.info("%s: checkpoint is damaged (%s); starting anew", self._path, error)
            return None
        with torch.no_grad():
            for name, values in stored.items():
                tensors[name].copy_(values)
        return standing


def _wanted(tensors: Mapping[str, Tensor], standing: Standing) -> list[str]:
    return [name for name in tensors if name.startswith(BEST) or not standing.finished]


def _check(
    stored: Mapping[str, Tensor], tensors: Mapping[str, Tensor], standing: Standing, checksum: str
) -> None:
    if set(stored) != set(_wanted(tensors, standing)):
        raise ValueError("it holds other tensors than this network")
    for name, values in stored.items():
        expected = tensors[name]
        if values.shape != expected.shape or values.dtype != expected.dtype:
            raise ValueError(f"{name} is {values.dtype} {tuple(values.shape)}")
    if _checksum(stored) != checksum:
        raise ValueError("its checksum is wrong")


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    summed = hashlib.sha256()
    for name in sorted(tensors):
        summed.update(name.encode())
        summed.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return summed.hexdigest()


def make_room(folder: Path, max_bytes: int = 8 << 30) -> None:
    """Remove the oldest checkpoints of a folder until the others fit into `max_bytes`.

    Those written within the last day stay: another process may be training from them.
    """
    files = []
    for path in folder.glob("*.safetensors"):
        # another process may be removing some, or writing one under a hidden name
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            if not path.name.startswith("."):
                files.append((about.st_mtime, about.st_size, path))
    total, newest = 0, max((written for written, _, _ in files), default=0.0)
    for written, size, path in sorted(files, reverse=True):
        total += size
        if total > max_bytes and newest - written > RECENT_S:
            path.unlink(missing_ok=True)
