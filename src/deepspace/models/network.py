"""From patches to features through a network: preprocess, read layers, pool."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepspace.core.errors import InputError
from deepspace.models.backbones import Backbone, LayerOutput
from deepspace.models.fusing import folded, fused

Pooling = Literal["mean", "sd", "cls"]
Precision = Literal["auto", "fp32", "bf16"]

MEAN_SD: tuple[Pooling, ...] = ("mean", "sd")
VERSION = 3  # raise it when the same network gives other features
# every batch has the size of its kind of device, so that a patch's features never depend on its
# batch: a processor is faster with maps that its caches hold, a GPU with many at once
BATCHES = {"cpu": 8, "cuda": 64}
TOLERANCE = 0.02  # largest relative difference of bf16 from fp32 features that `auto` accepts
_FAST_BF16 = ("amx_bf16", "avx512_bf16")


@dataclass(frozen=True)
class InputTransform:
    """What a network expects: (value - mean) / sd per channel, on the scale 0-255.

    Attributes
    ----------
    mean, sd
        Per channel, in the network's channel order.
    bgr
        Channels are blue, green, red.
    """

    mean: tuple[float, float, float]
    sd: tuple[float, float, float]
    bgr: bool = False

    @classmethod
    def unit(cls, mean: Sequence[float], sd: Sequence[float]) -> InputTransform:
        """Transform of RGB whose mean and sd are given on the scale 0-1."""
        r, g, b = (255 * value for value in mean)
        sr, sg, sb = (255 * value for value in sd)
        return cls((r, g, b), (sr, sg, sb))

    def __call__(self, patches: Tensor) -> Tensor:
        """Network input (b, 3, s, s) float32 of RGB patches (b, s, s, 3) uint8, where they lie."""
        b, h, w, _ = patches.shape
        x = (patches.flip(3) if self.bgr else patches).reshape(b, h, w * 3).float()
        # whole lines at a time: three numbers at a time are slow
        mean, sd = (torch.tensor(v, device=x.device).repeat(w) for v in (self.mean, self.sd))
        return x.sub_(mean).div_(sd).view(b, h, w, 3).permute(0, 3, 1, 2)


IMAGENET = InputTransform.unit((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = InputTransform.unit((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = InputTransform.unit(
    (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)
H_OPTIMUS = InputTransform.unit((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))


def parse_input(text: str, origin: str) -> InputTransform:
    """Transform named by the `input` metadata of a safetensors file.

    Raises
    ------
    InputError
        If the text is none of the known ones.

    Examples
    --------
    >>> parse_input("BGR, 0-255, minus (103.939,116.779,123.68)", "vgg16.safetensors").bgr
    True
    """
    if text == "RGB, ImageNet mean/std":
        return IMAGENET
    number = r"\s*([\d.]+)\s*"
    match = re.fullmatch(rf"(RGB|BGR), 0-255, minus \({number},{number},{number}\)", text)
    if match is None:
        raise InputError(
            f"{origin}: its metadata say input: {text!r}, which is unknown; "
            "use 'RGB, ImageNet mean/std' or 'BGR, 0-255, minus (b,g,r)'"
        )
    order, a, b, c = match.groups()
    return InputTransform((float(a), float(b), float(c)), (1.0, 1.0, 1.0), bgr=order == "BGR")


def pool(output: LayerOutput, how: Sequence[Pooling]) -> Tensor:
    """Pooled features (b, d) of one layer, the poolings side by side, in float32."""
    if "cls" in how and output.cls is None:
        raise ValueError("this backbone has no class token")
    with torch.autocast(output.map.device.type, enabled=False):
        # a processor keeps one map at a time in its caches, a GPU wants all of them
        together = 1 if output.map.device.type == "cpu" else len(output.map)
        parts = [_moments(part, how) for part in torch.split(output.map, together)]
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if output.cls is not None:
            found["cls"] = output.cls.float()
        return torch.cat([found[name] for name in how], dim=1)


def _moments(maps: Tensor, how: Sequence[Pooling]) -> dict[Pooling, Tensor]:
    """Mean and, if asked for, standard deviation of every channel, (b, c) each."""
    maps = maps.flatten(2).mT.float()  # (b, n, c)
    # against one place of the map, so that a constant one has no rounding errors
    first = maps[:, :1]
    maps = maps - first
    # Tensor.var takes several times as long where the channels lie together
    mean = maps.mean(1, keepdim=True)
    found: dict[Pooling, Tensor] = {"mean": (first + mean)[:, 0]}
    if "sd" in how:
        found["sd"] = _root((maps - mean).square_().mean(1))
    return found


def _root(variance: Tensor) -> Tensor:
    """Standard deviation; of a constant map 0, with a gradient of 0."""
    constant = variance <= 0
    return torch.where(constant, 0.0, variance.masked_fill(constant, 1.0).sqrt())


@dataclass(frozen=True)
class Reading:
    """What is read from a backbone.

    Attributes
    ----------
    layers
        Layer numbers of the backbone.
    pooling
        How each layer is pooled: `mean` and `sd` over its map, `cls` for the class token.
    transform
        What the backbone expects.
    """

    layers: tuple[int, ...]
    pooling: tuple[Pooling, ...]
    transform: InputTransform


class NetworkFeatures:
    """Pooled middle layers of a backbone.

    Parameters
    ----------
    backbone
        The network with its weights, float32.
    reading
        What is read from it.
    size_px
        Side of the patches.
    precision
        ``auto`` takes bf16 on hardware that computes it fast, if the pooled features of an
        artificial stained patch differ from float32's by at most `TOLERANCE`; that choice is the
        same every time on one machine.
    device
        Torch device, such as ``cpu`` or ``cuda``.

    Attributes
    ----------
    precision : str
        ``fp32`` or ``bf16``, as chosen.
    reading : Reading
        As given.
    feature_names : tuple of str
        One per column.
    """

    def __init__(
        self,
        backbone: Backbone,
        reading: Reading,
        size_px: int,
        precision: Precision = "auto",
        device: str = "cpu",
    ) -> None:
        self._device = _device(device)
        self._batch = BATCHES.get(self._device.type, BATCHES["cpu"])
        if precision not in get_args(Precision):
            raise InputError(f"precision {precision!r}: take {', '.join(get_args(Precision))}")
        self.reading = reading
        self._dtype = torch.float32
        backbone.eval().requires_grad_(False)
        if not all(bool(p.isfinite().all()) for p in backbone.parameters()):
            raise InputError(
                "weights of the network are not all finite numbers: the file is damaged, or its "
                "training diverged; take another one"
            )
        self._take(_placed(backbone, self._device, self._dtype))
        self.precision: str = "fp32"
        if precision == "bf16" or (precision == "auto" and fast_bf16(self._device)):
            self._use_bf16(stained_patch(size_px), insist=precision == "bf16")
        with torch.inference_mode():
            outputs = self._outputs(np.zeros((1, size_px, size_px, 3), np.uint8))
        self.feature_names = tuple(
            f"layer{layer}_{name}_{channel}"
            for layer, output in zip(reading.layers, outputs, strict=True)
            for name in reading.pooling
            for channel in range(output.map.shape[1])
        )

    @torch.inference_mode()
    def __call__(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (b, d) float32 of RGB patches (b, s, s, 3)."""
        features = np.empty((len(patches), len(self.feature_names)), np.float32)
        for start in range(0, len(patches), self._batch):
            part = patches[start : start + self._batch]
            features[start : start + self._batch] = self._pooled(part)
        return features

    def _pooled(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of at most a batch of patches, computed in a full one."""
        full = np.zeros((self._batch, *patches.shape[1:]), np.uint8)
        full[: len(patches)] = patches
        return self._compute(full)[: len(patches)]

    def _compute(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        pooled = [pool(output, self.reading.pooling) for output in self._outputs(patches)]
        features: NDArray[np.float32] = torch.cat(pooled, dim=1).cpu().numpy()
        return features

    @torch.inference_mode()
    def maps(self, patches: NDArray[np.uint8], mark: slice | None = None) -> list[Tensor]:
        """Map (b, c, h, w) float32 of every layer read, of patches (b, s, s, 3) of any side.

        The columns `mark` of the network's input are set to not-a-number first.
        """
        return [output.map.float() for output in self._outputs(patches, mark)]

    def _outputs(self, patches: NDArray[np.uint8], mark: slice | None = None) -> list[LayerOutput]:
        x = self.reading.transform(self._uploaded(patches)).to(self._dtype)
        if mark is not None:
            x[..., mark] = torch.nan
        x = x.contiguous(memory_format=torch.channels_last)
        # a fused ReLU may turn not-a-numbers into zeros
        backbone = self._fast if mark is None else self._backbone
        return backbone.layer_outputs(x, self.reading.layers)

    def _uploaded(self, patches: NDArray[np.uint8]) -> Tensor:
        """Patches on the device, as bytes: a quarter of what they are as numbers."""
        x = torch.from_numpy(np.ascontiguousarray(patches))
        if self._device.type == "cuda":
            return x.pin_memory().to(self._device, non_blocking=True)
        return x.to(self._device)

    def _take(self, backbone: Backbone) -> None:
        self._backbone, self._fast = backbone, fused(backbone)

    @torch.inference_mode()
    def _use_bf16(self, patch: NDArray[np.uint8], *, insist: bool) -> None:
        exact_backbone, exact = self._backbone, self._compute(patch[None])
        self._dtype, self.precision = torch.bfloat16, "bf16"
        # where the layers are not used in the order of their definition, folding is wrong
        for prepare in (folded, copy.deepcopy):
            self._take(_placed(prepare(exact_backbone), self._device, self._dtype))
            rough = self._compute(patch[None])
            if np.linalg.norm(rough - exact) <= TOLERANCE * np.linalg.norm(exact):
                return
        if not insist:
            self._dtype, self.precision = torch.float32, "fp32"
            self._take(exact_backbone)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used ({reason}); take cpu") from error
    return device


def _placed(backbone: Backbone, device: torch.device, dtype: torch.dtype) -> Backbone:
    placed: Backbone = backbone.to(device=device, dtype=dtype)
    # channels_last is what makes bf16 pay on a processor
    return placed.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def fast_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in _FAST_BF16)


def stained_patch(size_px: int) -> NDArray[np.uint8]:
    """Artificial H&E patch (s, s, 3): eosin of varying depth with nuclei, always the same."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size_px, :size_px] / size_px
    eosin = 0.3 + 0.2 * np.sin(7 * x + 3 * y) * np.cos(5 * y)
    haematoxylin = np.full_like(eosin, 0.05)
    for cx, cy, radius in rng.uniform((0, 0, 0.01), (1, 1, 0.04), (60, 3)):
        haematoxylin[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = 0.6
    density = haematoxylin[..., None] * (0.65, 0.70, 0.29) + eosin[..., None] * (0.07, 0.99, 0.11)
    density += rng.normal(0, 0.02, density.shape)
    patch: NDArray[np.uint8] = (255 * np.exp(-density)).clip(0, 255).astype(np.uint8)
    return patch
