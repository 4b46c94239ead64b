"""What a network is trained to make small: a literal table, one loss = one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Loss:
    """A loss and what turns a network's outputs into values of the target.

    Attributes
    ----------
    value
        Of outputs (b, k), labels (b, k) and weights (b,): the sum over the examples of weight
        times loss. It is not divided by b, so that parts of a batch can be added up.
    activate
        From outputs (b, k) to values (b, k) in the target's units.
    """

    value: Callable[[Tensor, Tensor, Tensor], Tensor]
    activate: Callable[[Tensor], Tensor]


def _smooth_l1(outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    losses = functional.smooth_l1_loss(outputs.float(), labels, reduction="none")
    return (weights * losses.mean(1)).sum()


def _mse(outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return (weights * (outputs.float() - labels).square().mean(1)).sum()


def _cross_entropy(outputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    losses = -(labels * functional.log_softmax(outputs.float(), dim=1)).sum(1)
    return (weights * losses).sum()


def _as_is(outputs: Tensor) -> Tensor:
    return outputs


def _softmax(outputs: Tensor) -> Tensor:
    return torch.softmax(outputs.float(), dim=1)


# smooth_l1 (beta 1) and mse are means over the outputs. cross_entropy takes probabilities as
# labels; a row of zeros, an unlabelled spot, adds nothing.
LOSSES: dict[str, Loss] = {
    "smooth_l1": Loss(_smooth_l1, _as_is),
    "mse": Loss(_mse, _as_is),
    "cross_entropy": Loss(_cross_entropy, _softmax),
}
