"""What training changes: the parameters, their moments in Adam, the buffers, the best of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepspace.core.errors import InputError
from deepspace.models.checkpoint import BEST

NOW = "now/"  # what the names of the tensors of the network begin with
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def adam(
    network: nn.Module, rate: float, head_rate: float, weight_decay: float
) -> torch.optim.Adam:
    """Optimiser of the trainable parameters, the head with a rate of its own."""
    trainable = {n: p for n, p in network.named_parameters() if p.requires_grad}
    if not trainable:
        raise InputError("training: every parameter is frozen; let the head at least be trained")
    head = [p for n, p in trainable.items() if n.startswith("head.")]
    rest = [p for n, p in trainable.items() if not n.startswith("head.")]
    groups = [
        {"params": head, "lr": head_rate},
        {"params": rest, "lr": rate},
    ]
    optimizer = torch.optim.Adam(
        [group for group in groups if group["params"]], weight_decay=weight_decay, fused=True
    )
    for parameter in trainable.values():  # as Adam does at its first step, but known beforehand
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0, dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def current_tensors(network: nn.Module) -> dict[str, Tensor]:
    """What training changes in the network, by name: the tensors themselves, not copies."""
    trainable = {n: p.detach() for n, p in network.named_parameters() if p.requires_grad}
    current = trainable | dict(network.named_buffers())
    return {NOW + name: tensor for name, tensor in current.items()}


def kept_tensors(network: nn.Module, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """What training keeps beside the network, by name: the best so far, and Adam's moments."""
    best = {
        BEST + name.removeprefix(NOW): tensor.clone()
        for name, tensor in current_tensors(network).items()
    }
    moments = {
        f"{moment}/{name}": optimizer.state[parameter][moment]
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
        for moment in _MOMENTS
    }
    return best | moments
