"""One training in several processes: who is who, and what they tell each other.

`torchrun` starts the processes and sets RANK, WORLD_SIZE and LOCAL_RANK. Without it there is one
process, and everything here does nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from deepspace.core.errors import InputError

# the others wait while one process validates or writes
TIMEOUT = timedelta(hours=4)


def setup(device: str) -> torch.device:
    """Join the other processes, once; return the device of this one.

    Parameters
    ----------
    device
        ``cpu``, or ``cuda``, of which every process on a machine takes its own.

    Raises
    ------
    InputError
        If a variable set by torchrun is no number, or the processes cannot find each other.
    """
    chosen = torch.device(device)
    if world_size() == 1:
        return chosen
    if chosen.type == "cuda":
        chosen = torch.device("cuda", _variable("LOCAL_RANK", 0))
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"process {rank()} of {world_size()} cannot join the others ({reason}); "
                "start all of them with torchrun"
            ) from error
    return chosen


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else _variable("RANK", 0)


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else _variable("WORLD_SIZE", 1)


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks to the user."""
    return rank() == 0


def barrier() -> None:
    """Wait for the other processes."""
    if _several():
        dist.barrier()


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Inside, process 0 goes first: it fills a cache that the others then find full."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


@torch.no_grad()
def share(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Give every process the values that process 0 has in the same tensors."""
    if not _several():
        return
    for tensor in tensors:
        staged = tensor.detach().to(device).contiguous()  # nccl and gloo take nothing else
        dist.broadcast(staged, src=0)
        if not is_main():
            tensor.copy_(staged)


def share_text(text: str, device: torch.device) -> str:
    """Text that process 0 gave."""
    if not _several():
        return text
    letters = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    size = torch.tensor([len(letters)], device=device)
    dist.broadcast(size, src=0)
    if not is_main():
        letters = torch.empty(int(size), dtype=torch.uint8, device=device)
    dist.broadcast(letters, src=0)
    return bytes(letters.tolist()).decode()


def gather(values: Sequence[float], device: torch.device) -> NDArray[np.float64]:
    """Table of the values of every process, (processes, values), the same in all of them."""
    mine = torch.tensor([values], dtype=torch.float64, device=device)
    rows = [mine]
    if _several():
        rows = [torch.empty_like(mine) for _ in range(world_size())]
        dist.all_gather(rows, mine)
    table: NDArray[np.float64] = torch.cat(rows).cpu().numpy()
    return table


def replicate(network: nn.Module, device: torch.device) -> nn.Module:
    """Network whose gradients are averaged over the processes; alone, the network itself."""
    if not _several():
        return network
    ids = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=ids)


@contextlib.contextmanager
def adding_up(network: nn.Module, *, last: bool) -> Iterator[None]:
    """Inside, gradients are added up: those of the processes with the last part of a batch."""
    if isinstance(network, nn.parallel.DistributedDataParallel) and not last:
        with network.no_sync():
            yield
    else:
        yield


def parts_of(batch: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Examples of a batch that this process works on, in parts of at most `size`.

    A process that has none gets one empty part: it takes part in the sum all the same.
    """
    mine = np.array_split(batch, world_size())[rank()]
    return [mine[i : i + size] for i in range(0, len(mine), size)] or [mine]


def _several() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise InputError(f"{name}={text}: is no number; unset it, or start with torchrun")
    return int(text)
