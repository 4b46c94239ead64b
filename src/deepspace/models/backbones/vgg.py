"""VGG16 (Simonyan & Zisserman 2015, arXiv:1409.1556), torchvision's key names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepspace.models.backbones.base import Backbone, LayerOutput

_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(Backbone):
    """VGG16 without batch normalisation.

    Layer k is the output of block k, the last ReLU before max-pooling k; layer 3 is
    `features.15` in torchvision's numbering.

    Parameters
    ----------
    n_classes
        Outputs of the classifier; 0 leaves the classifier out.
    """

    layers = range(1, 6)

    def __init__(self, n_classes: int = 0) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        self._ends: list[int] = []
        c_in = 3
        for widths in _WIDTHS:
            for width in widths:
                modules += [nn.Conv2d(c_in, width, 3, padding=1), nn.ReLU(inplace=True)]
                c_in = width
            self._ends.append(len(modules) - 1)
            modules.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*modules)
        self.classifier = _classifier(n_classes) if n_classes else None

    def layer_outputs(self, x: Tensor, layers: Sequence[int]) -> list[LayerOutput]:
        """See `Backbone.layer_outputs`."""
        outputs: dict[int, LayerOutput] = {}
        for index, module in enumerate(self.features):
            x = module(x)
            if index in self._ends:
                block = self._ends.index(index) + 1
                outputs[block] = LayerOutput(x)
                if block == max(layers):
                    break
        return [outputs[layer] for layer in layers]

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (b, n_classes) of preprocessed patches (b, 3, s, s)."""
        if self.classifier is None:
            raise RuntimeError("this VGG16 was built without its classifier (n_classes=0)")
        x = nn.functional.adaptive_avg_pool2d(self.features(x), 7)
        scores: Tensor = self.classifier(torch.flatten(x, 1))
        return scores


def _classifier(n_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, n_classes),
    )
