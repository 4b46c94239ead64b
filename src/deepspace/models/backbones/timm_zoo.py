"""Any model of timm, through the extra `zoo`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from deepspace.core.errors import InputError
from deepspace.models.backbones.base import Backbone, LayerOutput


class TimmBackbone(Backbone):
    """A model of timm; layer k is its k-th intermediate feature, counted from 0.

    Attributes
    ----------
    mean, sd
        Per channel, on the scale 0-1, that the model's weights expect.
    size_px
        Side of the patches it was trained for.
    ignore
        Pattern of its classifier's names, which are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        info: Any = model.feature_info
        config: Any = model.pretrained_cfg
        self.model = model
        self.layers = range(len(info))
        self.width = int(info[-1]["num_chs"])
        self.mean: tuple[float, ...] = tuple(config["mean"])
        self.sd: tuple[float, ...] = tuple(config["std"])
        self.size_px = int(config["input_size"][-1])
        heads = config.get("classifier") or ()
        names = [heads] if isinstance(heads, str) else list(heads)
        self.ignore = "|".join(re.escape(f"{name}.") for name in names) or r"$^"

    def layer_outputs(self, x: Tensor, layers: Sequence[int]) -> list[LayerOutput]:
        """See `Backbone.layer_outputs`."""
        order = sorted(layers)
        read: Any = self.model.forward_intermediates
        found = read(x, indices=order, output_fmt="NCHW", intermediates_only=True)
        by_layer = dict(zip(order, found, strict=True))
        return [LayerOutput(by_layer[layer]) for layer in layers]


def import_timm() -> ModuleType:
    """Return the module timm.

    Raises
    ------
    InputError
        If it is not installed, or if torchvision, which it needs, does not match torch.
    """
    try:
        import timm  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise InputError(
            f"timm cannot be imported ({error}): pip install 'deepspace[zoo]'"
        ) from error
    except RuntimeError as error:
        # a torchvision built for CUDA beside a torch built for the CPU
        raise InputError(
            f"timm needs a torchvision built like torch {torch.__version__} ({error}); "
            "install torch and torchvision from the same index, as pytorch.org says"
        ) from error
    module: ModuleType = timm
    return module


def create(name: str, *, pretrained: bool) -> TimmBackbone:
    """Build model `name` of timm without its classifier.

    Raises
    ------
    InputError
        If timm has no such model, cannot give its middle layers, or cannot fetch its weights.
    """
    timm = import_timm()
    if not timm.is_model(name):
        close = ", ".join(difflib.get_close_matches(name, timm.list_models(), 5))
        hint = f"such as {close}" if close else "see timm.list_models()"
        raise InputError(f"encoder timm:{name}: timm {timm.__version__} has no such model; {hint}")
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"encoder timm:{name}: its weights could not be fetched "
            f"({str(error).splitlines()[0]}); download them where the hub can be reached "
            "and add --weights FILE"
        ) from error
    if not hasattr(model, "forward_intermediates"):
        raise InputError(f"encoder timm:{name}: timm cannot give its middle layers; take another")
    return TimmBackbone(model)
