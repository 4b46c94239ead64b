"""What makes a computation give the same bytes again: seeds, and algorithms without races."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator

import torch


def stable_seed(*numbers: int) -> int:
    """Seed made of whole numbers, the same on every machine, 0 to 2^63 - 1.

    Examples
    --------
    >>> stable_seed(0, 1, 2) == stable_seed(0, 1, 2), stable_seed(0, 1, 2) == stable_seed(0, 12)
    (True, False)
    """
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch draws by `seed`; its own state stays as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Take the algorithms that give the same bytes every time, where an accelerator has several."""
    if device.type == "cpu":  # one algorithm each, and asking takes seconds
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may not
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
