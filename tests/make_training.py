"""A tiny network and examples for it, so that a training takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from deepspace.models.loop import Examples, LoopConfig, Steps
from deepspace.models.losses import LOSSES

CONFIG = LoopConfig(
    epochs=3, batch=5, accumulate=1, learning_rate=1e-2, head_learning_rate=3e-2,
    weight_decay=1e-3, patience=10, seed=4, precision="fp32", checkpoint_minutes=1e9, device="cpu",
)  # fmt: skip


class Tiny(nn.Module):
    """Two fields of view through one convolution, a frozen one before it, and a head."""

    def __init__(self, *, dropout: float = 0.0, norm: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.frozen = nn.Conv2d(3, 3, 1).requires_grad_(False)
        self.trunk = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(8, 3)
        self.register_buffer("centre", torch.zeros(2, 3))

    def forward(self, x: Tensor, section: Tensor) -> Tensor:
        maps = self.norm(self.trunk(self.frozen(x.flatten(0, 1)))).relu()
        pooled = maps.mean((2, 3)).view(len(x), -1)
        return self.head(self.drop(pooled)) - self.centre[section]


def make_examples(n: int = 22) -> Examples:
    rng = np.random.default_rng(1)
    colour = rng.integers(40, 200, (n, 1, 1, 1, 3))
    patches = (colour + rng.integers(-40, 56, (n, 2, 8, 8, 3))).astype(np.uint8)
    bright = patches.mean((1, 2, 3)) / 255 - 0.5
    return Examples(
        patches=patches,
        labels=(4 * bright + rng.normal(0, 0.1, (n, 3))).astype(np.float32),
        weights=rng.uniform(0.5, 2, n).astype(np.float32),
        section=rng.integers(0, 2, n),
    )


def shade(x: Tensor, seeds: Sequence[int]) -> Tensor:
    """Brightness changed at random, by each seed alone."""
    factors = [torch.rand((), generator=torch.Generator().manual_seed(s)) for s in seeds]
    return x * (0.8 + 0.2 * torch.stack(factors).view(-1, 1, 1, 1, 1))


def centre(network: nn.Module) -> None:
    network.centre.copy_(network.head.bias.expand(2, 3) / 2)


def validation(examples: Examples) -> Callable[[nn.Module], dict[str, float]]:
    x = torch.from_numpy(examples.patches).permute(0, 1, 4, 2, 3) / 255

    def validate(network: nn.Module) -> dict[str, float]:
        outputs = network(x, torch.from_numpy(examples.section))
        labels = torch.from_numpy(examples.labels)
        loss = (outputs - labels).abs().mean()
        return {"loss": float(loss), "correlation": float(outputs.mean())}

    return validate


STEPS = Steps(
    loss=LOSSES["smooth_l1"], augment=shade, validate=validation(make_examples()), refresh=centre
)
PLAIN = replace(STEPS, augment=lambda x, seeds: x, refresh=lambda network: None)


def content(network: nn.Module) -> dict[str, bytes]:
    return {name: t.detach().numpy().tobytes() for name, t in network.state_dict().items()}
