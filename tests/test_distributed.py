"""Training in several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from deepspace.core.errors import InputError
from deepspace.models import distributed
from train_in_two import GRADIENT_CASES, train_case

CPU = torch.device("cpu")


def test_one_process_is_alone_and_needs_no_setup() -> None:
    assert distributed.setup("cpu") == CPU
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    distributed.barrier()
    assert distributed.share_text("ä", CPU) == "ä"
    assert distributed.gather([1.0, 2.0], CPU).tolist() == [[1.0, 2.0]]
    network = torch.nn.Linear(1, 1)
    assert distributed.replicate(network, CPU) is network


def test_torchruns_variables_tell_who_is_who(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (3, 4, False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match=r"process 3 of 4 cannot join .* torchrun"):
        distributed.setup("cpu")
    monkeypatch.setenv("WORLD_SIZE", "four")
    with pytest.raises(InputError, match="WORLD_SIZE=four: is no number"):
        distributed.setup("cpu")


@given(n=st.integers(1, 40), size=st.integers(1, 9), world=st.integers(1, 8))
def test_every_example_of_a_batch_is_worked_on_once(n: int, size: int, world: int) -> None:
    batch = np.arange(100, 100 + n)
    done, counts = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(world))
        for rank in range(world):
            patch.setenv("RANK", str(rank))
            parts = distributed.parts_of(batch, size)
            assert all(0 < len(part) <= size for part in parts) or [len(p) for p in parts] == [0]
            done += [int(row) for part in parts for row in part]
            counts.append(sum(len(part) for part in parts))
    assert done == batch.tolist()
    assert max(counts) - min(counts) <= 1


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what two gloo processes wrote."""
    folder = tmp_path_factory.mktemp("two")
    tests = Path(__file__).parent
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*run, str(tests / "train_in_two.py"), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def results(folder: Path, name: str) -> list[dict[str, torch.Tensor]]:
    return [load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1)]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_two_processes_equal_one(two: Path, case: str) -> None:
    expected = train_case(*GRADIENT_CASES[case])
    first, second = results(two, case)
    assert equal(first, second)
    assert first.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(first[name], values, atol=1e-6, rtol=0, msg=name)
        if name.startswith("gradient/"):
            assert values.abs().max() > 1e-4, name


@pytest.mark.slow
def test_start_buffers_and_scores_are_those_of_process_0(two: Path) -> None:
    first, second = results(two, "own")
    assert equal(first, second)
    rows = [(two / f"own-{rank}.json").read_text() for rank in (0, 1)]
    assert rows[0] == rows[1]
    assert [row["loss"] for row in json.loads(rows[0])[0]] == [5.0] * 4


@pytest.mark.slow
def test_stopped_together_and_resumed_gives_the_same_bytes(two: Path) -> None:
    assert [(two / f"stopped-{rank}").read_text() for rank in (0, 1)] == ["4", "4"]
    whole = results(two, "whole")
    assert equal(*whole)
    for name in ("resumed", "finished"):
        assert all(equal(state, whole[0]) for state in results(two, name))
        for rank in (0, 1):
            written = (two / f"{name}-{rank}.json").read_text()
            assert written == (two / "whole-0.json").read_text()
    assert (two / "only-0").exists()
    assert not (two / "only-1").exists()


@pytest.mark.slow
def test_loss_that_diverges_in_one_process_stops_both(two: Path) -> None:
    said = [(two / f"diverged-{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert "training loss at step 1 is nan" in said[0]
