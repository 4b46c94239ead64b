"""What each of two processes does, started by torchrun for test_distributed.py."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deepspace.core.errors import InputError
from deepspace.models import distributed
from deepspace.models.loop import History, train_network
from make_training import CONFIG, PLAIN, STEPS, Tiny, make_examples

# 5 examples are a share of 3 and one of 2; of 11, the last batch is one: nothing for process 1
GRADIENT_CASES = {
    "one step": (5, {}),
    "empty share": (11, {}),
    "accumulated": (11, {"accumulate": 2}),
    "more parts than examples": (3, {"batch": 3, "accumulate": 4}),
}


def train_case(n: int, changes: dict[str, int]) -> dict[str, Tensor]:
    """Parameters after an epoch, and the gradients of its last step."""
    network = Tiny()
    losses = iter([2.0, 1.0])
    steps = replace(PLAIN, validate=lambda _: {"loss": next(losses)})
    train_network(network, make_examples(n), replace(CONFIG, epochs=1, **changes), steps)
    gradients = {
        f"gradient/{name}": parameter.grad.contiguous()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }
    return {**network.state_dict(), **gradients}


def write(name: str, network: nn.Module, history: History) -> None:
    rank = distributed.rank()
    save_file(network.state_dict(), OUT / f"{name}-{rank}.safetensors")
    (OUT / f"{name}-{rank}.json").write_text(json.dumps([history.rows, history.best_epoch]))


def noisy(*, seed: int = 0) -> Tiny:
    return Tiny(dropout=0.5, norm=True, seed=seed)


def own_view() -> None:
    """Every process finds its own buffers and scores; those of process 0 count."""
    rank = distributed.rank()

    def refresh(network: nn.Module) -> None:
        network.centre.fill_(rank + 1)

    def validate(network: nn.Module) -> dict[str, float]:
        assert (network.centre == 1).all()
        return {"loss": 5.0 - rank, "correlation": float("nan")}

    network = noisy(seed=rank)  # even the start is process 0's
    steps = replace(STEPS, refresh=refresh, validate=validate)
    write("own", network, train_network(network, make_examples(), CONFIG, steps))


def stop_and_go_on() -> None:
    """Ctrl-C reaches one process only; both stop, and go on from a file that one can see."""
    rank, calls = distributed.rank(), []

    def augment(x: Tensor, seeds: list[int]) -> Tensor:
        calls.append(1)
        if rank == 1 and len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return STEPS.augment(x, seeds)

    config = replace(CONFIG, checkpoint_minutes=0.0)
    network = noisy()
    write("whole", network, train_network(network, make_examples(), config, STEPS))
    path = OUT / f"only-{rank}" / "c.safetensors"
    try:
        train_network(
            noisy(), make_examples(), config, replace(STEPS, augment=augment), checkpoint=path
        )
    except KeyboardInterrupt:
        (OUT / f"stopped-{rank}").write_text(str(len(calls)))
    network = noisy()
    history = train_network(network, make_examples(), config, STEPS, checkpoint=path)
    write("resumed", network, history)
    network = noisy()  # finished: both return at once
    write(
        "finished", network, train_network(network, make_examples(), config, STEPS, checkpoint=path)
    )


def diverge() -> None:
    """The loss of one share is no number; both say so."""
    examples = make_examples(5)
    last = np.random.default_rng([CONFIG.seed, 1]).permutation(5)[-1]
    examples.labels[last] = np.nan
    try:
        train_network(Tiny(), examples, CONFIG, STEPS)
    except InputError as error:
        (OUT / f"diverged-{distributed.rank()}").write_text(str(error))


if __name__ == "__main__":
    OUT = Path(sys.argv[1])
    torch.set_num_threads(1)
    for name, case in GRADIENT_CASES.items():
        save_file(train_case(*case), OUT / f"{name}-{distributed.rank()}.safetensors")
    own_view()
    stop_and_go_on()
    diverge()
    distributed.barrier()
