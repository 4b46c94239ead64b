from __future__ import annotations

import math

import pytest
import torch

from deepspace.models.losses import LOSSES

OUTPUTS = torch.tensor([[0.5, 3.0], [0.0, -1.0]])
LABELS = torch.tensor([[0.0, 1.0], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        # half the square below 1, the distance less 0.5 above
        ("smooth_l1", (0.125 + 1.5) / 2, (0.0 + 0.5) / 2),
        ("mse", (0.25 + 4.0) / 2, (0.0 + 1.0) / 2),
    ],
)
def test_regression_by_hand(name: str, first: float, second: float) -> None:
    loss = LOSSES[name]
    found = loss.value(OUTPUTS, LABELS, torch.tensor([1.0, 0.2]))
    assert found.item() == pytest.approx(first + 0.2 * second)
    assert torch.equal(loss.activate(OUTPUTS), OUTPUTS)


def test_cross_entropy_by_hand() -> None:
    # softmax of (0, ln 3) is (1/4, 3/4)
    outputs = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)], [5.0, -5.0]])
    labels = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]])
    loss = LOSSES["cross_entropy"]
    torch.testing.assert_close(loss.activate(outputs)[0], torch.tensor([0.25, 0.75]))
    found = loss.value(outputs, labels, torch.tensor([1.0, 2.0, 100.0]))
    hard, soft = math.log(4), -0.5 * (math.log(0.25) + math.log(0.75))
    assert found.item() == pytest.approx(hard + 2 * soft)


def test_an_unlabelled_row_has_no_gradient() -> None:
    outputs = torch.zeros(2, 3, requires_grad=True)
    labels = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    LOSSES["cross_entropy"].value(outputs, labels, torch.ones(2)).backward()
    assert outputs.grad is not None
    third = 1 / 3
    torch.testing.assert_close(
        outputs.grad, torch.tensor([[0.0, 0.0, 0.0], [third, third - 1, third]])
    )


@pytest.mark.parametrize("name", LOSSES)
def test_parts_of_a_batch_add_up(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(7, 3, generator=generator)
    labels = torch.softmax(torch.randn(7, 3, generator=generator), dim=1)
    weights = torch.rand(7, generator=generator)
    value = LOSSES[name].value
    parts = [
        value(*(x[rows] for x in (outputs, labels, weights))) for rows in ([0, 1, 2], [3, 4, 5, 6])
    ]
    torch.testing.assert_close(sum(parts), value(outputs, labels, weights))


@pytest.mark.parametrize("name", LOSSES)
def test_outputs_in_bf16_are_summed_in_float32(name: str) -> None:
    outputs = OUTPUTS.bfloat16()
    found = LOSSES[name].value(outputs, LABELS, torch.ones(2))
    assert found.dtype == torch.float32
    assert torch.equal(found, LOSSES[name].value(outputs.float(), LABELS, torch.ones(2)))
