"""Layers of a network put together, so that maps are read and written less often.

Reading and writing a map that is only scaled or clipped costs as much as many a convolution.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as _Norm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deepspace.models.backbones import Backbone
from deepspace.models.backbones.resnet import Bottleneck, ResNet50
from deepspace.models.backbones.vit import MLP, Block, LayerScale


def folded(backbone: Backbone) -> Backbone:
    """Copy in which batch normalisations and layer scales are part of the layers before them.

    A normalisation is taken to follow the convolution that is defined before it. Where that is
    wrong, so is the result, which must therefore be compared with what the network gave before.
    """
    backbone = copy.deepcopy(backbone)
    for module in backbone.modules():
        _fold_norms(module)
        if type(module) is Block:
            module.layer_scale1 = _fold_scale(module.attention.last, module.layer_scale1)
            module.layer_scale2 = _fold_scale(module.mlp.last, module.layer_scale2)
    return backbone


def _fold_norms(module: nn.Module) -> None:
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


def _fold_scale(last: nn.Module, scale: nn.Module) -> nn.Module:
    """What is left to do after a layer that took the scale over."""
    if type(last) is not nn.Linear or type(scale) is not LayerScale:
        return scale
    last.weight.data *= scale.lambda1.data[:, None]
    if last.bias is not None:
        last.bias.data *= scale.lambda1.data
    return nn.Identity()


class ConvReLU(nn.Module):
    """A convolution whose ReLU is applied before its map is written.

    The operator is the one that ``torch.compile`` puts there, without its compiler: on a processor
    only, for maps that are channels_last, without gradients.

    Parameters
    ----------
    conv
        Its weights are shared, not copied.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """Map (b, c, h, w), none of it below 0.

        `beside` is a map that is added before the ReLU; the result is written over it.
        """
        conv = self.conv
        how = (conv.padding, conv.stride, conv.dilation, conv.groups)
        if beside is None:
            alone = torch.ops.mkldnn._convolution_pointwise
            result: Tensor = alone(x, conv.weight, conv.bias, *how, "relu", [], "")
            return result
        # a third of the time of the operator that writes a new map
        into = torch.ops.mkldnn._convolution_pointwise_.binary
        into(beside, x, conv.weight, conv.bias, *how, "add", 1.0, "relu", [], "")
        return beside


class PositiveMaxPool(nn.Module):
    """Largest value of windows of 2 or 3, every second place, of maps without negative values.

    Without gradients; what becomes of not-a-numbers is not said.

    Parameters
    ----------
    kernel
        2 without padding, or 3 with a padding of 1.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to one of half the size."""
        # numbers from 0 on are in the order of their bits, which are compared faster
        bits = x.view(torch.int16 if x.element_size() == 2 else torch.int32)
        for dim in (2, 3):
            bits = self._halved(bits, dim)
        return bits.view(x.dtype)

    def _halved(self, x: Tensor, dim: int) -> Tensor:
        n = x.shape[dim] // 2
        first, second = (x.movedim(dim, 0)[at::2].movedim(0, dim) for at in (0, 1))
        if self.kernel == 2:
            return torch.maximum(first.narrow(dim, 0, n), second)
        if x.shape[dim] % 2 == 0:
            found = torch.maximum(first, second)
        else:
            found = first.clone(memory_format=torch.channels_last)
            inner = found.narrow(dim, 0, n)
            torch.maximum(inner, second, out=inner)
        later = found.narrow(dim, 1, found.shape[dim] - 1)
        torch.maximum(later, second.narrow(dim, 0, found.shape[dim] - 1), out=later)
        return found


class FusedBottleneck(nn.Module):
    """A bottleneck of ResNet whose norms are folded, in three steps instead of eight.

    Without a convolution in its shortcut it writes its result over its input, so that one must
    belong to nobody else.
    """

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.first, self.second = ConvReLU(block.conv1), ConvReLU(block.conv2)
        self.last, self.downsample = ConvReLU(block.conv3), block.downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w)."""
        beside = x if self.downsample is None else self.downsample(x)
        result: Tensor = self.last(self.second(self.first(x)), beside)
        return result


class FusedLinear(nn.Module):
    """A linear layer that does what comes after it before its result is written.

    Parameters
    ----------
    linear
        Its weights are shared, not copied.
    gelu
        Apply the exact GELU to the result.
    """

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        self.linear = linear
        self._after = "gelu" if gelu else "none"

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """Tokens (b, n, d); `beside` are tokens that are added."""
        weight, bias = self.linear.weight, self.linear.bias
        product = torch.ops.mkldnn._linear_pointwise
        if beside is None:
            result: Tensor = product(x, weight, bias, self._after, [], "none")
            return result
        added: Tensor = product.binary(x, beside, weight, bias, "add")
        return added


class FusedBlock(nn.Module):
    """A block of a vision transformer whose linear layers add the biases and the shortcuts."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.attention = block.norm1, block.attention
        self.norm2, self.mlp = block.norm2, block.mlp
        if type(self.mlp) is MLP:
            self.mlp.activation = nn.Identity()
        for module in list(self.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Linear:
                    gelu = type(module) is MLP and name == "fc1"
                    setattr(module, name, FusedLinear(child, gelu=gelu))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (b, n, dim)."""
        x = self.attention.last(self.attention.mixed(self.norm1(x)), x)
        y: Tensor = self.mlp.last(self.mlp.mixed(self.norm2(x)), x)
        return y


_BOTTLENECKS = (Bottleneck, FusedBottleneck)


def fused(backbone: Backbone) -> Backbone:
    """The same network with what follows a convolution or linear layer done in the same step.

    Only where the order is known: inside of `nn.Sequential`, in ResNet's first layers and
    bottlenecks, and in bf16 in the blocks of vision transformers. Weights are shared. On a GPU, or
    where PyTorch or the processor has no such operators, it is the network itself.
    """
    sample = next(backbone.parameters())
    images, tokens = _can_fuse(sample, _try_images), _can_fuse(sample, _try_tokens)
    if not images and not tokens:
        return backbone
    shared = {id(p): p for p in (*backbone.parameters(), *backbone.buffers())}
    backbone = copy.deepcopy(backbone, shared)
    for module in list(backbone.modules()):
        if images and type(module) is nn.Sequential:  # subclasses may have an order of their own
            _fuse_in_order(module)
        elif images and type(module) is ResNet50 and not isinstance(module.bn1, _Norm):
            module.conv1, module.relu = ConvReLU(module.conv1), nn.Identity()
            module.pool = PositiveMaxPool(3)
        elif tokens and type(module) is nn.ModuleList:
            for at, part in enumerate(module):
                if type(part) is Block and _can_be_fused(part):
                    module[at] = FusedBlock(part)
    return backbone


def _fuse_in_order(parts: nn.Sequential) -> None:
    for at, part in enumerate(parts):
        after = parts[at + 1] if at + 1 < len(parts) else None
        if type(part) is nn.Conv2d and type(after) is nn.ReLU and _is_plain(part):
            parts[at], parts[at + 1] = ConvReLU(part), nn.Identity()
            if at + 2 < len(parts) and _halves(parts[at + 2]):
                parts[at + 2] = PositiveMaxPool(2)
        elif type(part) is Bottleneck and not any(isinstance(m, _Norm) for m in part.children()):
            # its input may be read by others, unless it is the map of a block before it
            own = part.downsample is not None or (at > 0 and type(parts[at - 1]) in _BOTTLENECKS)
            parts[at] = FusedBottleneck(part) if own else part


def _can_be_fused(block: Block) -> bool:
    """Whether nothing is left between its branches and their sums, in numbers that gain by it."""
    scales = (block.layer_scale1, block.layer_scale2)
    plain = all(type(scale) is nn.Identity for scale in scales)
    plain &= all(type(branch.last) is nn.Linear for branch in (block.attention, block.mlp))
    return plain and block.norm1.weight.dtype == torch.bfloat16


def _can_fuse(sample: Tensor, attempt: Callable[[torch.dtype], object]) -> bool:
    """Whether the operators work here with numbers like these."""
    if sample.device.type != "cpu" or not torch.backends.mkldnn.enabled:
        return False
    try:
        with torch.inference_mode():
            attempt(sample.dtype)
    except (AttributeError, RuntimeError, TypeError):
        # not built in, another signature, or a type that this processor does not know
        return False
    return True


def _try_images(dtype: torch.dtype) -> None:
    # without numbers: drawing them would move the generator
    conv = nn.Conv2d(16, 16, 3, padding=1, device="meta", dtype=dtype)
    part = ConvReLU(conv.to_empty(device="cpu"))
    image = torch.zeros((1, 16, 8, 8), dtype=dtype).contiguous(memory_format=torch.channels_last)
    part(image, part(image))


def _try_tokens(dtype: torch.dtype) -> None:
    linear = nn.Linear(16, 16, device="meta", dtype=dtype).to_empty(device="cpu")
    tokens = FusedLinear(linear, gelu=True)(torch.zeros((1, 8, 16), dtype=dtype))
    FusedLinear(linear)(tokens, tokens)


def _halves(pool: nn.Module) -> bool:
    wanted = str(nn.MaxPool2d(2, 2))
    return type(pool) is nn.MaxPool2d and str(pool) == wanted and not pool.return_indices


def _is_plain(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
