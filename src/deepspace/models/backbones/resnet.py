"""ResNet50 (He et al. 2016, arXiv:1512.03385; stride in the 3x3), torchvision's key names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepspace.models.backbones.base import Backbone, LayerOutput

_EXPANSION = 4
_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, stride


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut."""

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        c_out = width * _EXPANSION
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False), nn.BatchNorm2d(c_out)
            )
            if stride != 1 or c_in != c_out
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 4 width, h, w)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(Backbone):
    """ResNet50; layer k is the output of `layer{k}`.

    Parameters
    ----------
    n_classes
        Outputs of the classifier; 0 leaves the classifier out.
    """

    layers = range(1, 5)
    width = 2048

    def __init__(self, n_classes: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool, self.relu = nn.MaxPool2d(3, 2, 1), nn.ReLU()
        c_in = 64
        for number, (width, blocks, stride) in enumerate(_STAGES, start=1):
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(Bottleneck(c_in, width, stride if block == 0 else 1))
                c_in = width * _EXPANSION
            self.add_module(f"layer{number}", stage)
        self.fc = nn.Linear(c_in, n_classes) if n_classes else None

    def layer_outputs(self, x: Tensor, layers: Sequence[int]) -> list[LayerOutput]:
        """See `Backbone.layer_outputs`."""
        x = self.pool(self.bn1(self.conv1(x)))
        x = self.relu(x)  # after the maximum, which it leaves as it is: a quarter of the map
        outputs: dict[int, LayerOutput] = {}
        for number in range(1, max(layers) + 1):
            x = self.get_submodule(f"layer{number}")(x)
            outputs[number] = LayerOutput(x)
        return [outputs[layer] for layer in layers]

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (b, n_classes) of preprocessed patches (b, 3, s, s)."""
        if self.fc is None:
            raise RuntimeError("this ResNet50 was built without its classifier (n_classes=0)")
        (last,) = self.layer_outputs(x, [4])
        scores: Tensor = self.fc(last.map.mean(dim=(2, 3)))
        return scores
