"""Layers that are put together give what they gave apart; freed memory is used again."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deepspace.core.errors import InputError
from deepspace.models import network
from deepspace.models.allocator import _glibc
from deepspace.models.backbones import VGG16, LayerOutput, ResNet50, ViT
from deepspace.models.backbones.base import Backbone
from deepspace.models.backbones.resnet import Bottleneck
from deepspace.models.backbones.vit import LayerScale, ViTConfig
from deepspace.models.fusing import (
    ConvReLU,
    FusedBlock,
    FusedBottleneck,
    FusedLinear,
    PositiveMaxPool,
    _can_fuse,
    _try_images,
    _try_tokens,
    folded,
    fused,
)
from deepspace.models.network import IMAGENET, NetworkFeatures, Precision, Reading
from make_images import noise

GLIBC = _glibc() is not None


class Normed(Backbone):
    """A convolution and its normalisation, used in the order of their definition or not."""

    layers = range(1, 2)

    def __init__(self, in_order: bool) -> None:
        super().__init__()
        self.in_order = in_order
        self.conv = nn.Conv2d(3, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        generator = torch.Generator().manual_seed(0)
        for part in (self.norm.weight.data, self.norm.bias.data, self.norm.running_mean):
            part.copy_(torch.randn(3, generator=generator))
        self.norm.running_var.fill_(4.0)

    def layer_outputs(self, x: torch.Tensor, layers: Sequence[int]) -> list[LayerOutput]:
        first, then = (self.conv, self.norm) if self.in_order else (self.norm, self.conv)
        return [LayerOutput(then(first(x))) for _ in layers]


@pytest.mark.parametrize("in_order", [True, False])
def test_norms_are_folded_only_where_that_is_right(in_order: bool) -> None:
    torch.manual_seed(0)
    backbone = Normed(in_order)
    reading = Reading((1,), ("mean", "sd"), IMAGENET)
    exact = NetworkFeatures(copy.deepcopy(backbone), reading, 32, "fp32")
    rough = NetworkFeatures(backbone, reading, 32, "bf16")
    a, b = exact(noise(4, 32)), rough(noise(4, 32))
    assert np.linalg.norm(a - b) < network.TOLERANCE * np.linalg.norm(a)
    assert isinstance(rough._backbone.norm, nn.Identity if in_order else nn.BatchNorm2d)
    assert isinstance(backbone.norm, nn.BatchNorm2d)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fused_relu_gives_the_same_bytes(precision: Precision) -> None:
    torch.manual_seed(0)
    features = NetworkFeatures(VGG16(), Reading((2, 3), ("mean", "sd"), IMAGENET), 64, precision)
    made = [m for m in features._fast.modules() if isinstance(m, ConvReLU)]
    assert len(made) == (13 if _can_fuse(features._backbone.features[0].weight, _try_images) else 0)
    found = features(noise(4, 64))
    assert found.std() > 0
    features._fast = features._backbone
    assert found.tobytes() == features(noise(4, 64)).tobytes()


BF16 = torch.zeros(1, dtype=torch.bfloat16)
needs_fused_bf16 = pytest.mark.skipif(
    not (_can_fuse(BF16, _try_images) and _can_fuse(BF16, _try_tokens)),
    reason="no fused bf16 on this processor",
)


def small_vit(**changes: Any) -> ViT:
    config = ViTConfig(depth=3, dim=32, heads=2, patch=16, grid=4, mlp_dim=64)
    vit = ViT(replace(config, **changes))
    for number, part in enumerate(m for m in vit.modules() if isinstance(m, LayerScale)):
        part.lambda1.data.uniform_(0.2, 1.0 + number)
    return vit


BACKBONES = {
    "resnet50": ResNet50,
    "vit": small_vit,
    "gated vit": partial(small_vit, gated=True, registers=2),
    "vit without scales": partial(small_vit, layer_scale=False),
}


@needs_fused_bf16
@pytest.mark.parametrize("name", BACKBONES)
def test_fused_blocks_are_as_close_to_float32(name: str) -> None:
    """Sums and activations are rounded once, not twice."""
    torch.manual_seed(0)
    reading = Reading((2,), ("mean", "sd"), IMAGENET)
    exact = NetworkFeatures(BACKBONES[name](), reading, 64, "fp32")
    rough = NetworkFeatures(copy.deepcopy(exact._backbone), reading, 64, "bf16")
    assert [m for m in rough._fast.modules() if isinstance(m, FusedBottleneck | FusedBlock)]
    wanted, found = exact(noise(4, 64)), rough(noise(4, 64))
    rough._fast = rough._backbone
    plain = np.linalg.norm(rough(noise(4, 64)) - wanted)
    assert 0 < np.linalg.norm(found - wanted) < 1.1 * plain


@needs_fused_bf16
@pytest.mark.parametrize("name", BACKBONES)
def test_layers_that_are_read_are_not_written_over(name: str) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES[name]()

    def features(*layers: int) -> np.ndarray:
        reading = Reading(layers, ("mean",), IMAGENET)
        return NetworkFeatures(copy.deepcopy(backbone), reading, 64, "bf16")(noise(4, 64))

    assert features(1, 2, 3).tobytes() == np.hstack([features(k) for k in (1, 2, 3)]).tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "padding"), [(2, 0), (3, 1)])
@pytest.mark.parametrize("size", [(2, 2), (8, 6), (7, 9), (8, 5), (3, 2)])
def test_largest_values_are_those_of_torch(
    dtype: torch.dtype, kernel: int, padding: int, size: tuple[int, int]
) -> None:
    drawn = torch.randn(2, 16, *size, generator=torch.Generator().manual_seed(0))
    x = drawn.relu().to(dtype).to(memory_format=torch.channels_last)
    x[0, 0] = -0.0
    wanted = nn.MaxPool2d(kernel, 2, padding)(x)
    found = PositiveMaxPool(kernel)(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)


@needs_fused_bf16
def test_pools_after_a_relu_are_replaced() -> None:
    for backbone, count in ((VGG16(), 5), (folded(ResNet50().eval()), 1)):
        made = [m for m in fused(backbone).modules() if isinstance(m, PositiveMaxPool)]
        assert len(made) == count
        assert not [m for m in backbone.modules() if isinstance(m, PositiveMaxPool)]


def test_other_pools_stay_as_they_are() -> None:
    def after(*parts: nn.Module) -> type[nn.Module]:
        return type(fused(Holding(nn.Sequential(*parts))).parts[-1])

    conv = nn.Conv2d(3, 4, 3)
    for pool in (nn.MaxPool2d(2, 2, ceil_mode=True), nn.MaxPool2d(3, 2), nn.AvgPool2d(2, 2)):
        assert after(conv, nn.ReLU(), pool) is type(pool)
    assert after(conv, nn.Identity(), nn.MaxPool2d(2, 2)) is nn.MaxPool2d  # may be negative


def test_scales_are_folded_into_the_layers_before_them() -> None:
    torch.manual_seed(0)
    vit = small_vit()
    found = folded(vit)
    assert not [m for m in found.modules() if isinstance(m, LayerScale)]
    assert [m for m in vit.modules() if isinstance(m, LayerScale)]
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        wanted, made = (net.layer_outputs(x, [3])[0].map for net in (vit, found))
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)


def test_blocks_of_float32_or_with_scales_stay() -> None:
    for vit in (folded(small_vit()), small_vit().to(torch.bfloat16)):
        assert not [m for m in fused(vit).modules() if isinstance(m, FusedBlock)]


def test_norms_that_are_not_folded_stay() -> None:
    made = fused(ResNet50())
    assert not [m for m in made.modules() if isinstance(m, FusedBottleneck)]


def test_a_fused_network_shares_its_weights() -> None:
    backbone = VGG16()
    made = fused(backbone)
    known = {p.data_ptr() for p in backbone.parameters()}
    assert {p.data_ptr() for p in made.parameters()} == known
    assert isinstance(backbone.features[1], nn.ReLU)


class Holding(Backbone):
    """Some layers in their order."""

    def __init__(self, parts: nn.Sequential) -> None:
        super().__init__()
        self.parts = parts


def test_other_paddings_stay_as_they_are() -> None:
    reflecting = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    same = nn.Conv2d(4, 4, 3, padding="same")
    backbone = Holding(nn.Sequential(reflecting, nn.ReLU(), same, nn.ReLU()))
    assert not [m for m in fused(backbone).modules() if isinstance(m, ConvReLU)]


def test_either_operator_is_used_without_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FusedLinear, x: torch.Tensor) -> torch.Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(FusedLinear, "forward", refuse)
    backbone = VGG16()
    able = _can_fuse(backbone.features[0].weight, _try_images)
    assert (fused(backbone) is not backbone) == able


@needs_fused_bf16
def test_a_shortcut_that_others_may_read_is_not_written_over() -> None:
    torch.manual_seed(0)
    blocks = nn.Sequential(nn.Identity(), *(Bottleneck(16, 4, 1) for _ in range(2)))
    backbone = folded(Holding(blocks).eval()).to(torch.bfloat16)
    made = fused(backbone)
    assert [type(part) for part in made.parts] == [nn.Identity, Bottleneck, FusedBottleneck]
    assert [type(part) for part in backbone.parts] == [nn.Identity, Bottleneck, Bottleneck]
    x = torch.randn(1, 16, 8, 8, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    before = x.clone()
    with torch.inference_mode():
        made.parts(x)
    assert x.equal(before)


def test_without_the_operator_the_network_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ConvReLU, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("bf16 path needs the cpu support avx512bw")

    monkeypatch.setattr(ConvReLU, "forward", refuse)
    monkeypatch.setattr(FusedLinear, "forward", refuse)
    backbone = VGG16()
    assert fused(backbone) is backbone


def test_weights_that_are_not_numbers_are_refused() -> None:
    backbone = VGG16()
    with torch.no_grad():
        backbone.features[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="not all finite"):
        NetworkFeatures(backbone, Reading((1,), ("mean",), IMAGENET), 32, "fp32")


# bytes of an array, which glibc always asks the system for
SIZE = 48 << 20
FAULTS = f"""
import resource
import numpy as np
from deepspace.models.allocator import freed_memory_reused

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        bytearray({SIZE})[::4096] = bytes({SIZE} // 4096)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
with freed_memory_reused():
    faults()
    print(faults())
print(faults())
"""


@pytest.mark.skipif(not GLIBC, reason="the allocator is not glibc's, or the user has set it")
def test_freed_memory_is_used_again_and_given_back() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    ).stdout
    before, inside, after = map(int, printed.split())
    assert inside < min(before, after) / 10
