"""Make timm importable beside a torch without a matching torchvision."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

_KEPT: list[torch.library.Library] = []  # operators vanish with the object that declared them


def timm_or_skip() -> ModuleType:
    """timm, an independent implementation; torchvision's missing operators are declared empty."""
    if not _KEPT:
        _declare()
    module: ModuleType = pytest.importorskip("timm")
    return module


def _declare() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    if not hasattr(torch.ops.torchvision, "nms"):
        for name in ("nms", "qnms"):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
    _KEPT.append(library)
