"""VGG16 (Simonyan & Zisserman 2015, arXiv:1409.1556), torchvision's key names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from deepspace.models.backbones.base import Backbone, LayerOutput, OwnHead

_DENSE = 4096
_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _dense_layers() -> list[nn.Module]:
    """The classifier less its last dropout and layer."""
    layers: list[nn.Module] = [
        nn.Linear(512 * 7 * 7, _DENSE),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(_DENSE, _DENSE),
        nn.ReLU(inplace=True),
    ]
    _initialise(layers)
    return layers


def _initialise(modules: Iterable[nn.Module]) -> None:
    """Random weights that keep the activations' size through ReLUs (He et al. 2015).

    Thirteen convolutions that start as torch would have them forget their input.
    """
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.get_parameter("bias"))


class _VGGHead(OwnHead):
    """Max-pooling 5, adaptive mean to 7 x 7, three dense layers."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__(_DENSE, n_outputs)
        self.classifier = nn.Sequential(*_dense_layers())

    def pooled(self, last: LayerOutput) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(nn.functional.max_pool2d(last.map, 2), 7)
        vectors: Tensor = self.classifier(torch.flatten(x, 1))
        return vectors

    def start_from(self, state: Mapping[str, Tensor], origin: str) -> tuple[str, ...]:
        return super().start_from(_from_timm(state), origin)


def _from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's dense layers, which it stores as convolutions, to torchvision's names."""
    renamed = dict(state)
    for theirs, ours in (("pre_logits.fc1", "classifier.0"), ("pre_logits.fc2", "classifier.3")):
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in state:
                value = state[f"{theirs}.{kind}"]
                renamed[f"{ours}.{kind}"] = value.flatten(1) if kind == "weight" else value
    return renamed


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
    width = 512

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
        _initialise(modules)
        self.classifier = (
            nn.Sequential(*_dense_layers(), nn.Dropout(), nn.Linear(_DENSE, n_classes))
            if n_classes
            else None
        )

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

    def own_head(self, n_outputs: int) -> OwnHead:
        """See `Backbone.own_head`; the three dense layers of the paper, dropout 0.5."""
        return _VGGHead(n_outputs)
