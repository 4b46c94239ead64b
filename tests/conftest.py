"""Shared fixtures."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# the same examples in every run: a failure here can be repeated there
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

SHARED = Path(os.environ.get("DEEPSPACE_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_works() -> None:
    """A background job of a script ignores Ctrl-C, and so would everything that it starts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """Numba (in scanpy, squidpy) sets torch's threads too; with others, sums differ in a bit."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features are cached for this run alone; weights come only where a test gives them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPSPACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("DEEPSPACE_WEIGHTS", raising=False)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the real data; tests that need it skip where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data at {SHARED}: set DEEPSPACE_SHARED to its folder")
    return SHARED


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No folder of weights, an empty hub cache, and a hub that cannot be reached."""
    monkeypatch.delenv("DEEPSPACE_WEIGHTS", raising=False)
    if importlib.util.find_spec("huggingface_hub"):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("deepspace.models.weights._resolves", lambda endpoint: False)
