"""What the training loop asks of a `cnn`: outputs, validation, statistics of every slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepspace.core.metrics import pearson
from deepspace.models.base import FloatArray
from deepspace.models.examples import Patches, Rows
from deepspace.models.loop import Examples, PatchRows
from deepspace.models.losses import Loss
from deepspace.models.trainable import TrainableNetwork

BATCH = 16  # bounds the memory of what needs no gradients


@dataclass(frozen=True)
class Found:
    """Features that the last layer sees (n, d), and outputs (n, names)."""

    seen: FloatArray
    outputs: FloatArray


@torch.no_grad()
def forward(
    network: TrainableNetwork,
    patches: PatchRows,
    section: Rows,
    rows: Rows,
    *,
    bf16: bool,
) -> Found:
    """Run a network over some rows, in small batches of one size."""
    network.eval()
    device = network.head.weight.device
    seen, outputs = [], []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        x = torch.from_numpy(patches[part]).to(device).permute(0, 1, 4, 2, 3).float() / 255
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            z = network.standardised(x, torch.from_numpy(section[part]).to(device))
        seen.append(z.float().cpu().numpy())
        outputs.append(network.head(z.float()).cpu().numpy())
    if not seen:
        nothing = np.empty((0, network.head.in_features))
        return Found(nothing, np.empty((0, network.head.out_features)))
    return Found(
        np.concatenate(seen).astype(np.float64), np.concatenate(outputs).astype(np.float64)
    )


@dataclass(frozen=True)
class Validation:
    """Loss and mean correlation of the first `names` targets at the held-out spots."""

    examples: Examples
    rows: Rows
    loss: Loss
    names: int
    bf16: bool

    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Scores of the network as it is."""
        assert isinstance(network, TrainableNetwork)
        examples = self.examples
        found = forward(network, examples.patches, examples.section, self.rows, bf16=self.bf16)
        outputs = torch.from_numpy(found.outputs[:, : self.names])
        labels = examples.labels[self.rows, : self.names]
        ones = torch.ones(len(self.rows))
        total = self.loss.value(outputs.float(), torch.from_numpy(labels), ones)
        values = self.loss.activate(outputs).numpy()
        return {
            "loss": float(total) / len(self.rows),
            "correlation": _mean_known(pearson(labels, values)),
        }


def _mean_known(correlations: NDArray[np.floating[Any]]) -> float:
    """Mean over targets that vary at the held-out spots; NaN where none does."""
    known = correlations[~np.isnan(correlations)]
    return float(known.mean()) if len(known) else float("nan")


@dataclass(frozen=True)
class Refresh:
    """Statistics of every slide's features in the network as it has become."""

    lattices: Sequence[Patches]
    bf16: bool

    def __call__(self, network: nn.Module) -> None:
        """Set `centre` and `spread` of the network."""
        assert isinstance(network, TrainableNetwork)
        network.eval()
        for number, lattice in enumerate(self.lattices):
            starts = range(0, len(lattice), BATCH)
            features = torch.cat([self._features(network, lattice[k : k + BATCH]) for k in starts])
            spread = features.std(0, correction=0)
            # a feature that is constant on this slide carries nothing
            spread[spread <= 1e-6 * features.abs().amax(0)] = torch.inf
            network.centre[number] = features.mean(0)
            network.spread[number] = spread

    @torch.no_grad()
    def _features(self, network: TrainableNetwork, patches: Patches) -> Tensor:
        device = network.centre.device
        x = torch.from_numpy(np.array(patches)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            return network.features(x.permute(0, 1, 4, 2, 3).float() / 255).float()
