"""DenseNet121 (Huang et al. 2017, arXiv:1608.06993), torchvision's key names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepspace.models.backbones.base import Backbone, LayerOutput, OwnHead

_GROWTH = 32
_BOTTLENECK = 4
_BLOCKS = (6, 12, 24, 16)


class _DenseLayer(nn.Module):
    def __init__(self, c_in: int) -> None:
        super().__init__()
        middle = _BOTTLENECK * _GROWTH
        self.norm1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, middle, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, _GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        y = self.conv2(torch.relu(self.norm2(y)))
        return torch.cat([x, y], dim=1)


class _Transition(nn.Module):
    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(c_in)
        self.conv = nn.Conv2d(c_in, c_in // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(self.conv(torch.relu(self.norm(x))), 2, stride=2)


class _DenseNetHead(OwnHead):
    """ReLU, mean over the map, one dense layer."""

    def __init__(self, width: int, n_outputs: int) -> None:
        super().__init__(width, n_outputs, dropout=0.0)

    def pooled(self, last: LayerOutput) -> Tensor:
        return torch.relu(last.map).mean(dim=(2, 3))


class DenseNet121(Backbone):
    """DenseNet121; layer k is the output of `features.denseblock{k}`, before its transition.

    The last layer is read after `features.norm5`.

    Parameters
    ----------
    n_classes
        Outputs of the classifier; 0 leaves the classifier out.
    """

    layers = range(1, 5)
    width = 1024

    def __init__(self, n_classes: int = 0) -> None:
        super().__init__()
        self.features = nn.Module()
        self.features.add_module("conv0", nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(64))
        channels = 64
        for number, n_layers in enumerate(_BLOCKS, start=1):
            block = nn.Sequential()
            for index in range(1, n_layers + 1):
                block.add_module(f"denselayer{index}", _DenseLayer(channels))
                channels += _GROWTH
            self.features.add_module(f"denseblock{number}", block)
            if number < len(_BLOCKS):
                self.features.add_module(f"transition{number}", _Transition(channels))
                channels //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, n_classes) if n_classes else None

    def layer_outputs(self, x: Tensor, layers: Sequence[int]) -> list[LayerOutput]:
        """See `Backbone.layer_outputs`."""
        part = self.features.get_submodule
        x = torch.relu(part("norm0")(part("conv0")(x)))
        x = nn.functional.max_pool2d(x, 3, stride=2, padding=1)
        outputs: dict[int, LayerOutput] = {}
        for number in range(1, max(layers) + 1):
            if number > 1:
                x = part(f"transition{number - 1}")(x)
            x = part(f"denseblock{number}")(x)
            outputs[number] = LayerOutput(part("norm5")(x) if number == len(_BLOCKS) else x)
        return [outputs[layer] for layer in layers]

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (b, n_classes) of preprocessed patches (b, 3, s, s)."""
        if self.classifier is None:
            raise RuntimeError("this DenseNet121 was built without its classifier (n_classes=0)")
        (last,) = self.layer_outputs(x, [4])
        scores: Tensor = self.classifier(torch.relu(last.map).mean(dim=(2, 3)))
        return scores

    def own_head(self, n_outputs: int) -> OwnHead:
        """See `Backbone.own_head`."""
        return _DenseNetHead(self.width, n_outputs)
