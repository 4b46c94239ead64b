"""A network to be fine-tuned: a backbone, what is read of it, and a new last layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from deepspace.models.backbones import Backbone, LayerOutput, OwnHead
from deepspace.models.encoders import Pretrained
from deepspace.models.network import pool


class OwnLayers(Backbone):
    """A backbone with its architecture's own last layers but the last, read as one layer.

    Parameters
    ----------
    backbone
        The network.
    own
        Its last layers.
    known
        Names of parameters of `own` that have public weights.
    """

    layers = range(1, 2)

    def __init__(self, backbone: Backbone, own: OwnHead, known: Iterable[str] = ()) -> None:
        super().__init__()
        self.width = own.output.in_features
        own.output = nn.Identity()  # type: ignore[assignment]  # the trainable network has it
        self.backbone = backbone
        self.own = own
        # layers that start at random are useless untrained
        names = {name for name, _ in own.named_parameters()}
        self.new = {f"own.{name}" for name in names - set(known)}

    def layer_outputs(self, x: Tensor, layers: Sequence[int]) -> list[LayerOutput]:
        """See `Backbone.layer_outputs`."""
        (last,) = self.backbone.layer_outputs(x, [self.backbone.layers[-1]])
        vectors = self.own.penultimate(last)
        return [LayerOutput(vectors[:, :, None, None]) for _ in layers]


def pooled_layers(pretrained: Pretrained) -> Pretrained:
    """A copy of the network, read as the encoder reads it."""
    return replace(pretrained, backbone=copy.deepcopy(pretrained.backbone))


def own_layers(pretrained: Pretrained) -> Pretrained:
    """A copy of the network up to what its own last layer sees.

    It has one field of view. Dense layers start from the file of weights where it has them.
    """
    backbone = copy.deepcopy(pretrained.backbone)
    own = backbone.own_head(1)
    known = own.start_from(pretrained.weights.state, pretrained.weights.origin)
    layers = OwnLayers(backbone, own, known)
    reading = replace(pretrained.reading, layers=(1,), pooling=("mean",))
    return replace(pretrained, backbone=layers, reading=reading)


# what the last layer sees: keys are those of `CNNConfig.head`
HEADS: dict[str, Callable[[Pretrained], Pretrained]] = {
    "pooled": pooled_layers,
    "own": own_layers,
}


class TrainableNetwork(nn.Module):
    """From patches to outputs: read layers, standardise by section, one linear layer.

    Parameters
    ----------
    pretrained
        The network; its backbone is trained in place.
    sections
        How many slides it is trained on; each has statistics of its own.
    n_outputs
        Targets.
    batch_norm
        Whether batch normalisation takes statistics of the batch when training.

    Attributes
    ----------
    centre, spread : Tensor (sections, features)
        What features are standardised by; 0 and 1 until set.
    """

    centre: Tensor
    spread: Tensor
    input_mean: Tensor
    input_sd: Tensor

    def __init__(
        self, pretrained: Pretrained, sections: int, n_outputs: int, *, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.backbone = pretrained.backbone.requires_grad_(False)
        self.reading = pretrained.reading
        self.batch_norm = batch_norm
        transform = pretrained.reading.transform
        for name, values in (("input_mean", transform.mean), ("input_sd", transform.sd)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.side = pretrained.specs[0].size_px
        self.backbone.eval()
        with torch.no_grad():
            side = self.side
            width = self.features(torch.zeros(1, len(pretrained.specs), 3, side, side)).shape[1]
        self.head = nn.Linear(width, n_outputs)
        self.register_buffer("centre", torch.zeros(sections, width))
        self.register_buffer("spread", torch.ones(sections, width))

    def features(self, x: Tensor) -> Tensor:
        """Pooled layers (b, features) float32 of patches (b, f, 3, s, s) in 0..1."""
        flat = 255 * x.flatten(0, 1)
        flat = flat.flip(1) if self.reading.transform.bgr else flat
        flat = ((flat - self.input_mean) / self.input_sd).contiguous(
            memory_format=torch.channels_last
        )
        outputs = self.backbone.layer_outputs(flat, self.reading.layers)
        pooled = torch.cat([pool(output, self.reading.pooling) for output in outputs], dim=1)
        return pooled.view(len(x), -1)

    def standardised(self, x: Tensor, section: Tensor) -> Tensor:
        """What the last layer sees, (b, features)."""
        return (self.features(x) - self.centre[section]) / self.spread[section]

    def forward(self, x: Tensor, section: Tensor) -> Tensor:
        """Outputs (b, n_outputs) of patches (b, f, 3, s, s) in 0..1 of sections (b,)."""
        seen = self.standardised(x, section)
        # bf16 has too few digits for the last layer
        with torch.autocast(x.device.type, enabled=False):
            outputs: Tensor = self.head(seen.float())
        return outputs

    def train(self, mode: bool = True) -> TrainableNetwork:
        """As `nn.Module.train`; frozen batch normalisation stays as when predicting."""
        super().train(mode)
        if not self.batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def release(self, blocks: int | str) -> None:
        """Make the deepest `blocks` that are read trainable, and the last layer; ``all`` all.

        Layers of the architecture's own head that have no public weights are always trained.

        Which parameters a block has is found by what its output depends on, so that this holds
        for any architecture.
        """
        read = self._parameters_read(self.backbone, self.reading.layers)
        if blocks != "all":
            read -= self._below(int(blocks))
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in read)

    def _below(self, blocks: int) -> set[str]:
        """Names of the parameters of the backbone under its deepest `blocks`."""
        if isinstance(self.backbone, OwnLayers):
            inner, prefix = self.backbone.backbone, "backbone."
            deepest = inner.layers[-1]
        else:
            inner, prefix = self.backbone, ""
            deepest = max(self.reading.layers)
        if blocks == 0:
            new = self.backbone.new if isinstance(self.backbone, OwnLayers) else set()
            return {name for name, _ in self.backbone.named_parameters()} - new
        if deepest - blocks < inner.layers.start:
            return set()
        under = self._parameters_read(inner, (deepest - blocks,))
        return {prefix + name for name in under}

    def _parameters_read(self, backbone: Backbone, layers: Sequence[int]) -> set[str]:
        """Names of the parameters that the outputs of `layers` depend on."""
        was = {name: p.requires_grad for name, p in backbone.named_parameters()}
        parameters = dict(backbone.requires_grad_(True).named_parameters())
        x = torch.zeros(1, 3, self.side, self.side, device=next(iter(parameters.values())).device)
        total = torch.zeros(())
        for output in backbone.eval().layer_outputs(x, layers):
            total = total + output.map.sum().cpu()
            total = total if output.cls is None else total + output.cls.sum().cpu()
        found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(was[name])
        return {n for n, g in zip(parameters, found, strict=True) if g is not None}
