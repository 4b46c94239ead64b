"""Killed at any moment: nothing unreadable, nothing done twice that was done, the same bytes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from calls import call
from deepspace.core.resume import partial_folder
from deepspace.simulate import BlockConfig, simulate_block

pytestmark = pytest.mark.slow

# 20 were tried by hand; a run in CI has fewer, since each starts Python anew
KILLS = int(os.environ.get("DEEPSPACE_KILLS", "6"))
LEAST = KILLS // 2
SETTINGS = """
[qc]
min_genes = 20
[target]
context = 0
[encoder]
fov_um = [150.0]
[evaluate]
moves = 0
leak_gap = "none"
"""
NETWORK = SETTINGS.replace(
    "[encoder]", '[encoder]\nname = "vgg16"\nweights = "random:0"\nsize_px = 16\nlayers = [2]'
)
CNN = NETWORK + '[cnn]\nepochs = 1\nprecision = "fp32"\n'

# dies at the n-th write that is brought to the disk: of features, checkpoints, groups, results
KILLED = """
import os, signal, sys
from deepspace.models import features
from deepspace.workflows import pointwise
pointwise.GROUP = features.BLOCK = 12
left, real = int(sys.argv.pop(1)), os.fsync
def fsync(handle):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)
os.fsync = fsync
from deepspace.cli import main
main()
"""


def run(arguments: list[object], cache: Path, at: int = 0) -> int:
    """Run a command with a feature cache of its own, killed at a write; its return code."""
    command = [sys.executable, "-c", KILLED, str(at), *map(str, arguments)]
    environment = os.environ | {"DEEPSPACE_CACHE": str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode <= 0, done.stderr
    return done.returncode


def run_killed(arguments: list[object], cache: Path, seed: int) -> int:
    """Run a command, killed at random writes, until it ends by itself; how often it was killed."""
    rng, killed = random.Random(seed), 0
    while run(arguments, cache, rng.randint(1, 12) if killed < KILLS else 0) < 0:
        killed += 1
    return killed


def content(path: Path) -> dict[str, bytes]:
    """Bytes of a file, or of all files of a folder by name."""
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(files)}


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = BlockConfig.preset("tiny", seed=1, unmeasured=("S2",))
    return simulate_block(config).write(tmp_path_factory.mktemp("block"))


@pytest.mark.parametrize(
    ("model", "settings"), [("probe", SETTINGS), ("cnn", CNN)], ids=["features", "network"]
)
def test_training(sheet: Path, tmp_path: Path, model: str, settings: str) -> None:
    (tmp_path / "settings.toml").write_text(settings)
    options = ["--model", model, "--genes", "expressed:15", "--quiet"]
    options += ["--config", tmp_path / "settings.toml"]
    whole, killed = ["train", sheet, "--out", tmp_path / "a"], ["train", sheet, "--out"]
    assert run([*whole, *options], tmp_path / "one") == 0
    assert run_killed([*killed, tmp_path / "b", *options], tmp_path / "two", seed=1) >= LEAST
    one, other = content(tmp_path / "a"), content(tmp_path / "b")
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def test_prediction(sheet: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(SETTINGS)
    options = ["--genes", "expressed:15", "--config", tmp_path / "settings.toml", "--quiet"]
    assert call("train", sheet, "--out", tmp_path / "model", *options)[0] == 0
    options = ["--section", "S2", "--at", "grid:40", "--all-genes", "--quiet"]
    command = ["predict", tmp_path / "model", sheet, *options, "--out"]
    assert run([*command, tmp_path / "a.h5ad"], tmp_path / "one") == 0
    assert run_killed([*command, tmp_path / "b.h5ad"], tmp_path / "two", seed=0) >= LEAST
    assert (tmp_path / "a.h5ad").read_bytes() == (tmp_path / "b.h5ad").read_bytes()
    assert (tmp_path / "a-maps.png").read_bytes() == (tmp_path / "b-maps.png").read_bytes()
    assert not partial_folder(tmp_path / "b.h5ad").exists()
