"""Vision transformers (Dosovitskiy et al. 2021; DINOv2, Oquab et al. 2023, arXiv:2304.07193).

Key names are those of Hugging Face's `Dinov2Model`; `from_timm` renames the checkpoints of timm
and of Meta's hub. One class holds DINOv2 and the pathology models that share its design.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepspace.core.errors import InputError
from deepspace.models.backbones.base import Backbone, LayerOutput

_EPS = 1e-6


@dataclass(frozen=True)
class ViTConfig:
    """Shape of a vision transformer.

    Attributes
    ----------
    depth, dim, heads
        Blocks, width of a token, attention heads.
    patch, grid
        Pixels along a token's side, and tokens along the side that positions were trained for.
    mlp_dim
        Hidden width of the MLP, after gating where it is gated.
    gated
        SwiGLU (Shazeer 2020) instead of GELU.
    registers
        Register tokens (Darcet et al. 2024) after the class token.
    prefix_positions
        How many of the class and register tokens have a position embedding.
    layer_scale
        Learned scale of every residual branch (Touvron et al. 2021).
    """

    depth: int
    dim: int
    heads: int
    patch: int
    grid: int
    mlp_dim: int
    gated: bool = False
    registers: int = 0
    prefix_positions: int = 1
    layer_scale: bool = True


class _Embeddings(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        n_positions = config.prefix_positions + config.grid**2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, config.dim))
        self.position_embeddings = nn.Parameter(torch.randn(1, n_positions, config.dim) * 0.02)
        self.patch_embeddings = nn.Module()
        self.patch_embeddings.projection = nn.Conv2d(
            3, config.dim, config.patch, stride=config.patch
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (b, 1 + registers + h * w, dim) of patches (b, 3, s, s)."""
        registers, placed = self.config.registers, self.config.prefix_positions
        maps: Tensor = self.patch_embeddings.get_submodule("projection")(x)
        h, w = maps.shape[2:]
        tokens = maps.flatten(2).transpose(1, 2)
        prefix: Tensor = self.cls_token
        if registers:
            prefix = torch.cat([prefix, self.register_tokens], dim=1)
        positions = self.position_embeddings
        prefix = torch.cat([prefix[:, :placed] + positions[:, :placed], prefix[:, placed:]], dim=1)
        tokens = tokens + resize_positions(positions[:, placed:], (h, w))
        return torch.cat([prefix.expand(len(x), -1, -1), tokens], dim=1)


def resize_positions(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate position embeddings (1, n * n, c) to (1, h * w, c), as Hugging Face does.

    Bicubic, corners not aligned, no antialiasing.
    """
    n = round(grid.shape[1] ** 0.5)
    if (n, n) == size:
        return grid
    square = grid.float().reshape(1, n, n, -1).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(square, size=size, mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(grid.dtype)


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.ModuleDict(
            {name: nn.Linear(dim, dim) for name in ("query", "key", "value")}
        )
        self.output = nn.ModuleDict({"dense": nn.Linear(dim, dim)})

    @property
    def last(self) -> nn.Module:
        """The layer that ends the branch."""
        return self.output["dense"]

    def mixed(self, x: Tensor) -> Tensor:
        """Values (b, n, dim) weighted over the tokens."""
        query, key, value = (
            self.attention[name](x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return mixed.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.last(self.mixed(x))
        return projected


class MLP(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1: nn.Module = nn.Linear(dim, hidden)
        self.activation: nn.Module = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    @property
    def last(self) -> nn.Module:
        """The layer that ends the branch."""
        return self.fc2

    def mixed(self, x: Tensor) -> Tensor:
        """Activations (b, n, hidden)."""
        y: Tensor = self.activation(self.fc1(x))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (b, n, dim)."""
        y: Tensor = self.last(self.mixed(x))
        return y


class _GatedMLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.weights_in = nn.Linear(dim, 2 * hidden)
        self.weights_out = nn.Linear(hidden, dim)

    @property
    def last(self) -> nn.Module:
        """The layer that ends the branch."""
        return self.weights_out

    def mixed(self, x: Tensor) -> Tensor:
        """Activations (b, n, hidden)."""
        gate, value = self.weights_in(x).chunk(2, dim=-1)
        y: Tensor = nn.functional.silu(gate) * value
        return y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.mixed(x))
        return y


class LayerScale(nn.Module):
    """A factor per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (b, n, dim)."""
        return x * self.lambda1


class Block(nn.Module):
    """Attention and MLP, each beside a shortcut."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, eps=_EPS)
        self.attention = _Attention(dim, config.heads)
        self.layer_scale1: nn.Module = LayerScale(dim) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = _GatedMLP(dim, config.mlp_dim) if config.gated else MLP(dim, config.mlp_dim)
        self.layer_scale2: nn.Module = LayerScale(dim) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (b, n, dim)."""
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        y: Tensor = x + self.layer_scale2(self.mlp(self.norm2(x)))
        return y


class ViT(Backbone):
    """A vision transformer; layer k is the output of block k, counted from 1.

    The last layer is read after the final layer normalisation, the others before any.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = range(1, config.depth + 1)
        self.width = config.dim
        self.embeddings = _Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Block(config) for _ in self.layers)})
        self.layernorm = nn.LayerNorm(config.dim, eps=_EPS)

    def layer_outputs(self, x: Tensor, layers: Sequence[int]) -> list[LayerOutput]:
        """See `Backbone.layer_outputs`.

        Raises
        ------
        InputError
            If the side of the patches is not a multiple of the token's.
        """
        side = x.shape[-1]
        if side % self.config.patch:
            raise InputError(
                f"patches of {side} px cannot be cut into tokens of {self.config.patch} px; "
                f"use a multiple, such as {self.config.patch * max(1, side // self.config.patch)}"
            )
        tokens: Tensor = self.embeddings(x)
        outputs: dict[int, LayerOutput] = {}
        for number, block in enumerate(self.encoder["layer"].children(), start=1):
            tokens = block(tokens)
            if number in layers:
                last = number == self.config.depth
                outputs[number] = self._split(self.layernorm(tokens) if last else tokens, side)
            if number == max(layers):
                break
        return [outputs[layer] for layer in layers]

    def _split(self, tokens: Tensor, side: int) -> LayerOutput:
        n = side // self.config.patch
        patches = tokens[:, 1 + self.config.registers :]
        return LayerOutput(patches.transpose(1, 2).reshape(len(patches), -1, n, n), tokens[:, 0])


_TIMM_TOP = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "reg_token": "embeddings.register_tokens",
    "register_tokens": "embeddings.register_tokens",
    "mask_token": "embeddings.mask_token",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_TIMM_BLOCK = {
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
}


def from_timm(state: Mapping[str, Tensor], *, gated: bool = False) -> dict[str, Tensor]:
    """Rename a timm or Meta vision transformer's state dict to Hugging Face's key names.

    Parameters
    ----------
    state
        Keys such as `blocks.0.attn.qkv.weight`; the fused (3 c, c) projection is split.
    gated
        timm calls the two layers of a gated MLP `fc1` and `fc2` as well; Meta does not.

    Examples
    --------
    >>> state = {"cls_token": torch.zeros(1, 1, 2), "blocks.0.attn.qkv.bias": torch.arange(6)}
    >>> for name, value in from_timm(state).items():
    ...     print(name, value.flatten().tolist())
    embeddings.cls_token [0.0, 0.0]
    encoder.layer.0.attention.attention.query.bias [0, 1]
    encoder.layer.0.attention.attention.key.bias [2, 3]
    encoder.layer.0.attention.attention.value.bias [4, 5]
    """
    inner = dict(_TIMM_BLOCK)
    if gated:
        inner |= {"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if not name.startswith("blocks."):
            renamed[_TIMM_TOP.get(name, name)] = value
            continue
        _, number, rest = name.split(".", 2)
        prefix = f"encoder.layer.{number}."
        if rest.startswith("attn.qkv."):
            kind = rest.rsplit(".", 1)[1]
            for part, chunk in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"{prefix}attention.attention.{part}.{kind}"] = chunk
            continue
        old = next((key for key in inner if rest.startswith(key)), None)
        renamed[prefix + (rest.replace(old, inner[old], 1) if old else rest)] = value
    return renamed
