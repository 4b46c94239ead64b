"""VGG16 and DenseNet121 against a second definition, written from the tables of the papers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as everybody writes it

from deepspace.core.errors import InputError
from deepspace.models.backbones import (
    VGG16,
    Backbone,
    DenseNet121,
    EfficientNetLite0,
    LayerOutput,
    OwnHead,
    ResNet50,
    ViT,
    ViTConfig,
    timm_zoo,
)
from stub_torchvision import timm_or_skip

TINY = ViTConfig(depth=2, dim=24, heads=3, patch=14, grid=4, mlp_dim=96)

# Simonyan & Zisserman 2015, table 1, column D
POOL = 0
VGG_D = [64, 64, POOL, 128, 128, POOL, *[256] * 3, POOL, *[512] * 3, POOL, *[512] * 3, POOL]
# Huang et al. 2017, table 1, DenseNet-121 (k = 32): layers of 1x1 and 3x3 in each block
DENSE_BLOCKS = [6, 12, 24, 16]


def images(side: int, n: int = 1) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def unsettle(network: nn.Module) -> None:
    """Biases, scales and running statistics away from 0 and 1; convolutions that keep the size."""
    generator = torch.Generator().manual_seed(2)
    for value in network.state_dict().values():
        if value.ndim == 1:
            value.add_(torch.rand(value.shape, generator=generator), alpha=0.2)
        elif value.ndim == 4:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)


def vgg_by_table(x: Tensor, weights: Iterator[Tensor]) -> Tensor:
    for entry in VGG_D:
        if entry == POOL:
            x = F.max_pool2d(x, 2, stride=2)
        else:
            x = F.relu(F.conv2d(x, next(weights), next(weights), padding=1))
            assert x.shape[1] == entry
    return x


def fully_connected(x: Tensor, weights: Iterator[Tensor], sizes: tuple[int, ...]) -> Tensor:
    """FC-4096, FC-4096, FC-n: all hidden layers have a ReLU."""
    x = x.flatten(1)
    for number, size in enumerate(sizes, start=1):
        x = F.linear(x, next(weights), next(weights))
        x = F.relu(x) if number < len(sizes) else x
        assert x.shape[1] == size
    return x


def dense_by_table(x: Tensor, state: Iterator[Tensor]) -> Tensor:
    """Up to the mean over the map; `state` in the order in which layers are applied."""

    def normalised(x: Tensor) -> Tensor:
        scale, shift, mean, variance, _ = (next(state) for _ in range(5))
        return F.relu(F.batch_norm(x, mean, variance, scale, shift))

    x = F.conv2d(x, next(state), stride=2, padding=3)
    x = F.max_pool2d(normalised(x), 3, stride=2, padding=1)
    for number, layers in enumerate(DENSE_BLOCKS):
        maps = [x]
        for _ in range(layers):
            narrow = F.conv2d(normalised(torch.cat(maps, 1)), next(state))
            assert narrow.shape[1] == 4 * 32
            maps.append(F.conv2d(normalised(narrow), next(state), padding=1))
            assert maps[-1].shape[1] == 32
        x = torch.cat(maps, 1)
        if number + 1 < len(DENSE_BLOCKS):
            x = F.avg_pool2d(F.conv2d(normalised(x), next(state)), 2)
            assert x.shape[1] == sum(m.shape[1] for m in maps) // 2
    return normalised(x).mean((2, 3))


@pytest.fixture(scope="module")
def full_vgg() -> VGG16:
    """VGG16 with all its weights, as a public file holds it; 7 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = VGG16(7).eval()
    unsettle(network)
    return network


@pytest.mark.parametrize(
    ("build", "maps"),
    [
        (VGG16, [(64, 224), (128, 112), (256, 56), (512, 28), (512, 14)]),
        (DenseNet121, [(256, 56), (512, 28), (1024, 14), (1024, 7)]),
    ],
)
def test_layers_at_224_px_have_the_papers_shapes(
    build: Callable[[], Backbone], maps: list[tuple[int, int]]
) -> None:
    with torch.device("meta"):
        network = build()
        outputs = network.layer_outputs(torch.empty(2, 3, 224, 224), list(network.layers))
        head = network.own_head(24)
        assert head(outputs[-1]).shape == (2, 24)
    assert [output.map.shape for output in outputs] == [(2, c, side, side) for c, side in maps]
    if isinstance(network, VGG16):  # 138,357,544 less 976 outputs
        total = sum(p.numel() for part in (network, head) for p in part.parameters())
        assert total == 138_357_544 - 976 * 4097


def test_vgg16_is_the_papers(full_vgg: VGG16) -> None:
    # 224 px is what the first dense layer was made for: no adaptive pooling takes part
    x = images(224, n=2)
    weights = iter(full_vgg.parameters())
    with torch.inference_mode():
        expected = fully_connected(vgg_by_table(x, weights), weights, (4096, 4096, 7))
        found = full_vgg(x)
    assert next(weights, None) is None
    assert (expected[0] - expected[1]).abs().mean() > 0.01  # far above the tolerance
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_vgg16s_own_head_takes_a_full_files_dense_layers(full_vgg: VGG16) -> None:
    state = full_vgg.state_dict()
    with torch.device("meta"):
        backbone = VGG16().eval()
        head = backbone.own_head(7).eval()
    names = {f"classifier.{number}.{kind}" for number in (0, 3) for kind in ("weight", "bias")}
    assert set(head.start_from(state, "vgg16.pth")) == names
    assert head.output.weight.is_meta  # the last layer is new
    assert full_vgg.classifier is not None
    head.output = full_vgg.classifier[6]
    backbone.features = full_vgg.features
    x = images(64, n=2)
    with torch.inference_mode():
        (last,) = backbone.layer_outputs(x, [5])
        torch.testing.assert_close(head(last), full_vgg(x))
        seen = head.penultimate(last)
        torch.testing.assert_close(head.output(seen), head(last))
    assert seen.shape == (2, 4096)
    assert seen.min() >= 0
    weight = head.get_parameter("classifier.0.weight")
    assert (
        weight.data_ptr() != state["classifier.0.weight"].data_ptr()
    )  # training spares the file's


def test_vgg16s_own_head_takes_timms_names() -> None:
    timm = timm_or_skip()
    with torch.device("meta"):
        state = timm.create_model("vgg16").state_dict()
        head = VGG16().own_head(3)
    assert len(head.start_from(state, "timm")) == 4
    del state["pre_logits.fc2.bias"]
    with pytest.raises(InputError, match=r"timm: .*\n.*1 missing: classifier\.3\.bias"):
        head.start_from(state, "timm")


def test_a_file_without_dense_layers_leaves_the_own_head_as_it_was() -> None:
    with torch.device("meta"):
        network = VGG16()
        head = network.own_head(3)
        assert head.start_from(network.state_dict(), "features.safetensors") == ()


def test_densenet121_is_the_papers() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DenseNet121(10).eval()
        head = network.own_head(10).eval()
    unsettle(network)
    assert network.classifier is not None
    head.output = network.classifier
    x = images(96, n=2)
    state = iter(network.state_dict().values())
    with torch.inference_mode():
        pooled = dense_by_table(x, state)
        expected = F.linear(pooled, next(state), next(state))
        (last,) = network.layer_outputs(x, [4])
        assert next(state, None) is None
        assert (expected[0] - expected[1]).abs().mean() > 0.01  # far above the tolerance
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(head(last), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(head.penultimate(last), pooled, rtol=1e-4, atol=1e-4)


def test_random_vgg16_tells_images_apart() -> None:
    """With torch's own start, thirteen layers forget their input: nothing could be learned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = VGG16().eval()
    with torch.inference_mode():
        (last,) = network.layer_outputs(images(64, n=8), [5])
    pooled = last.map.mean((2, 3))
    assert pooled.std(0).mean() > 0.05 * pooled.mean() > 0.001


def test_default_head_takes_the_class_token_else_the_mean() -> None:
    head = OwnHead(3, 2).eval()
    maps = torch.arange(24.0).reshape(2, 3, 2, 2)
    cls = -torch.ones(2, 3)
    torch.testing.assert_close(head.penultimate(LayerOutput(maps)), maps.mean((2, 3)))
    assert torch.equal(head.penultimate(LayerOutput(maps, cls)), cls)
    expected = F.linear(cls, head.output.weight, head.output.bias)
    torch.testing.assert_close(head(LayerOutput(maps, cls)), expected)
    torch.manual_seed(0)
    dropped = head.train().penultimate(LayerOutput(maps + 1))
    assert (dropped == 0).any()


@pytest.mark.parametrize(
    "build", [VGG16, DenseNet121, ResNet50, EfficientNetLite0, lambda: ViT(TINY)]
)
def test_every_backbone_has_a_head_that_trains_all_of_it(build: Callable[[], Backbone]) -> None:
    """No parameter is left without a gradient, which training in several processes relies on."""
    with torch.device("meta"):
        network = build()
        head = network.own_head(4)
        (last,) = network.layer_outputs(torch.empty(2, 3, 56, 56), [network.layers[-1]])
        head(last).sum().backward()
    assert last.map.shape[1] == network.width
    for part in (network, head):
        assert [name for name, p in part.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_width_of_timms_models(name: str) -> None:
    timm_or_skip()
    backbone = timm_zoo.create(name, pretrained=False).to("meta").eval()
    (last,) = backbone.layer_outputs(
        torch.empty(1, 3, 224, 224, device="meta"), [backbone.layers[-1]]
    )
    assert last.map.shape[1] == backbone.width
