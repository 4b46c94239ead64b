"""Pooling of a network's maps."""

from __future__ import annotations

import pytest
import torch

from deepspace.models.backbones import LayerOutput
from deepspace.models.network import pool

HOW = ("mean", "sd")


def maps(*shape: int) -> torch.Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 3
    return drawn.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("side", [1, 7, 56])
def test_mean_and_sd_of_each_channel(side: int) -> None:
    x = maps(2, 5, side, side)
    flat = x.flatten(2)
    wanted = torch.cat([flat.mean(2), flat.std(2, correction=0)], dim=1)
    torch.testing.assert_close(pool(LayerOutput(x), HOW), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3, -1e4])
def test_a_constant_map_has_no_spread(value: float) -> None:
    x = torch.full((1, 3, 112, 112), value, requires_grad=True)
    found = pool(LayerOutput(x), HOW)
    assert found[0, 3:].tolist() == [0, 0, 0]
    assert found[0, :3].tolist() == pytest.approx([value] * 3, rel=1e-6)
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_half_precision_around_it_does_not_reach_it() -> None:
    x = maps(2, 5, 7, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pool(LayerOutput(x), HOW)
    assert found.dtype == torch.float32
    assert found.equal(pool(LayerOutput(x), HOW))


def test_gradient_is_that_of_the_formula() -> None:
    x = maps(1, 2, 3, 3).requires_grad_()
    pool(LayerOutput(x), HOW).sum().backward()
    y = x.detach().clone().requires_grad_()
    flat = y.flatten(2)
    (flat.mean(2) + flat.std(2, correction=0)).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-6)
