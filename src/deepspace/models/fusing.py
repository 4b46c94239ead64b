"""Layers of a network put together, so that maps are read and written less often.

Reading and writing a map that is only scaled or clipped costs as much as many a convolution.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as _Norm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deepspace.models.backbones import Backbone
from deepspace.models.backbones.resnet import Bottleneck


def without_norms(backbone: Backbone) -> Backbone:
    """Copy in which each batch normalisation is folded into the convolution defined before it.

    Where layers are not used in the order of their definition this is wrong, so that the result
    must be compared with what the network gave before.
    """
    backbone = copy.deepcopy(backbone)
    for module in backbone.modules():
        before: tuple[str, nn.Module] | None = None
        for name, child in list(module.named_children()):
            if (
                before is not None
                and isinstance(before[1], nn.Conv2d)
                and type(child) is nn.BatchNorm2d  # subclasses do more
                and child.num_features == before[1].out_channels
            ):
                setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(module, name, nn.Identity())
            before = name, child
    return backbone


class ConvReLU(nn.Module):
    """A convolution whose ReLU is applied before its map is written; on a processor only.

    The operator is the one that ``torch.compile`` puts there, without its compiler.

    Parameters
    ----------
    conv
        Its weights are shared, not copied.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """Map (b, c, h, w), none of it below 0; `beside` is a map that is added before."""
        conv = self.conv
        how = (conv.padding, conv.stride, conv.dilation, conv.groups)
        fuse = torch.ops.mkldnn._convolution_pointwise
        if beside is None:
            fused: Tensor = fuse(x, conv.weight, conv.bias, *how, "relu", [], "")
            return fused
        added: Tensor = fuse.binary(
            *(x, beside, conv.weight, conv.bias), *how, *("add", 1.0, "relu", [], "")
        )
        return added


class FusedBottleneck(nn.Module):
    """A bottleneck of ResNet whose norms are folded, in three steps instead of eight."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.first, self.second = ConvReLU(block.conv1), ConvReLU(block.conv2)
        self.last, self.downsample = ConvReLU(block.conv3), block.downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w)."""
        beside = x if self.downsample is None else self.downsample(x)
        fused: Tensor = self.last(self.second(self.first(x)), beside)
        return fused


def with_fused_relu(backbone: Backbone) -> Backbone:
    """The same network with each convolution and the ReLU that follows it in one step.

    Only where the order is known: inside of `nn.Sequential`, and in the bottlenecks of ResNet.
    Weights are shared. On a GPU, or where PyTorch or the processor has no such operator, it is the
    network itself.
    """
    if not _can_fuse(next(backbone.parameters())):
        return backbone
    shared = {id(p): p for p in (*backbone.parameters(), *backbone.buffers())}
    backbone = copy.deepcopy(backbone, shared)
    for module in list(backbone.modules()):
        if type(module) is nn.Sequential:  # subclasses may have an order of their own
            _fuse_in_order(module)
    return backbone


def _fuse_in_order(parts: nn.Sequential) -> None:
    for at, part in enumerate(parts):
        after = parts[at + 1] if at + 1 < len(parts) else None
        if type(part) is nn.Conv2d and type(after) is nn.ReLU and _is_plain(part):
            parts[at], parts[at + 1] = ConvReLU(part), nn.Identity()
        elif type(part) is Bottleneck and not any(isinstance(m, _Norm) for m in part.children()):
            parts[at] = FusedBottleneck(part)


def _can_fuse(sample: Tensor) -> bool:
    """Whether the operator works here with numbers like these."""
    if sample.device.type != "cpu" or not torch.backends.mkldnn.enabled:
        return False
    # without numbers: drawing them would move the generator
    conv = nn.Conv2d(16, 16, 3, padding=1, device="meta", dtype=sample.dtype)
    part = ConvReLU(conv.to_empty(device="cpu"))
    image = torch.zeros((1, 16, 8, 8), dtype=sample.dtype)
    image = image.contiguous(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            part(image, part(image))
    except (AttributeError, RuntimeError, TypeError):
        # not built in, another signature, or a type that this processor does not know
        return False
    return True


def _is_plain(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
