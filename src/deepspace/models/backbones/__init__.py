"""Backbones in plain torch, with the key names of the public checkpoints."""

from deepspace.models.backbones.base import Backbone, LayerOutput, OwnHead, check_layers
from deepspace.models.backbones.densenet import DenseNet121
from deepspace.models.backbones.efficientnet import EfficientNetLite0
from deepspace.models.backbones.resnet import ResNet50
from deepspace.models.backbones.vgg import VGG16
from deepspace.models.backbones.vit import ViT, ViTConfig

__all__ = [
    "VGG16",
    "Backbone",
    "DenseNet121",
    "EfficientNetLite0",
    "LayerOutput",
    "OwnHead",
    "ResNet50",
    "ViT",
    "ViTConfig",
    "check_layers",
]
