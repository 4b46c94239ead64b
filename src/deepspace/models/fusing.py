"""Layers of a network put together, so that maps are read and written less often.

Reading and writing a map that is only scaled or clipped costs as much as many a convolution.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deepspace.models.backbones import Backbone


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

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w), none of it below 0."""
        conv = self.conv
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise(
            *(x, conv.weight, conv.bias),
            *(conv.padding, conv.stride, conv.dilation, conv.groups),
            *("relu", [], ""),
        )
        return fused


def with_fused_relu(backbone: Backbone) -> Backbone:
    """The same network with each convolution and the ReLU that follows it in one step.

    Only inside of `nn.Sequential`, where the order is known. Weights are shared. On a GPU, or
    where PyTorch or the processor has no such operator, it is the network itself.
    """
    if not _can_fuse(next(backbone.parameters())):
        return backbone
    shared = {id(p): p for p in (*backbone.parameters(), *backbone.buffers())}
    backbone = copy.deepcopy(backbone, shared)
    for module in backbone.modules():
        if type(module) is not nn.Sequential:  # subclasses may have an order of their own
            continue
        for at in range(len(module) - 1):
            conv = module[at]
            if type(conv) is nn.Conv2d and _is_plain(conv) and type(module[at + 1]) is nn.ReLU:
                module[at], module[at + 1] = ConvReLU(conv), nn.Identity()
    return backbone


def _can_fuse(sample: Tensor) -> bool:
    """Whether the operator works here with numbers like these."""
    if sample.device.type != "cpu" or not torch.backends.mkldnn.enabled:
        return False
    conv = nn.Conv2d(1, 1, 3, padding=1).to(sample.dtype)
    try:
        with torch.inference_mode():
            ConvReLU(conv)(torch.zeros((1, 1, 4, 4), dtype=sample.dtype))
    except (AttributeError, RuntimeError, TypeError):
        # not built in, another signature, or a type that this processor does not know
        return False
    return True


def _is_plain(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
