"""What every backbone offers to an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from deepspace.core.errors import InputError


class LayerOutput(NamedTuple):
    """What one layer says about a batch of patches.

    Attributes
    ----------
    map
        (b, c, h, w) feature map; the patch tokens of a transformer on their grid.
    cls
        (b, c) class token, or None where the architecture has none.
    """

    map: Tensor
    cls: Tensor | None = None


class Backbone(nn.Module):
    """A network whose middle layers can be read.

    Attributes
    ----------
    layers
        The layer numbers that may be asked for, shallow to deep.
    """

    layers: range

    def layer_outputs(self, x: Tensor, layers: Sequence[int]) -> list[LayerOutput]:
        """Read `layers`, in the order asked, for preprocessed patches `x` (b, 3, s, s).

        Nothing deeper than the deepest layer asked for is computed.
        """
        raise NotImplementedError


def check_layers(name: str, valid: range, layers: Sequence[int]) -> tuple[int, ...]:
    """Return `layers` as a tuple.

    Raises
    ------
    InputError
        If `layers` is empty, repeats a layer or holds one that the backbone does not have.
    """
    wrong = [layer for layer in layers if layer not in valid]
    if wrong or not layers or len(set(layers)) != len(layers):
        raise InputError(
            f"encoder {name}: layers {list(layers)} cannot be read; "
            f"give distinct numbers from {valid.start} to {valid.stop - 1}"
        )
    return tuple(layers)
