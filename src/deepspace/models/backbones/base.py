"""What every backbone offers to an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from deepspace.core.errors import InputError
from deepspace.models.weights import load_into


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


class OwnHead(nn.Module):
    """Last layers of a fine-tuned network: what its architecture has there, with new outputs.

    Here the class token, or the mean over the map where there is none, dropout and one dense
    layer.

    Parameters
    ----------
    width
        Values an example that the last layer sees.
    n_outputs
        Outputs of the last layer.
    dropout
        Before the last layer.

    Attributes
    ----------
    output
        The last layer, whose weights no file has.
    """

    def __init__(self, width: int, n_outputs: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, n_outputs)

    def pooled(self, last: LayerOutput) -> Tensor:
        """One vector (b, width) an example from the backbone's deepest layer."""
        return last.map.mean(dim=(2, 3)) if last.cls is None else last.cls

    def penultimate(self, last: LayerOutput) -> Tensor:
        """What the last layer sees (b, width), after dropout when training."""
        seen: Tensor = self.dropout(self.pooled(last))
        return seen

    def forward(self, last: LayerOutput) -> Tensor:
        """Outputs (b, n_outputs) from the backbone's deepest layer."""
        outputs: Tensor = self.output(self.penultimate(last))
        return outputs

    def start_from(self, state: Mapping[str, Tensor], origin: str) -> tuple[str, ...]:
        """Copy the public weights of these layers, all but the last one's, where `state` has them.

        Parameters
        ----------
        state
            Of the whole network, as the public file names it.
        origin
            What error messages call it.

        Returns
        -------
        tuple of str
            Names of what was copied; none if `state` has none of it.

        Raises
        ------
        InputError
            If `state` has only some of it, or in other shapes.
        """
        own = self.state_dict()
        last = {name: value for name, value in own.items() if name.startswith("output.")}
        found = {name: state[name].clone() for name in own if name in state and name not in last}
        if found:
            load_into(self, found | last, origin)
        return tuple(found)


class Backbone(nn.Module):
    """A network whose middle layers can be read.

    Attributes
    ----------
    layers
        The layer numbers that may be asked for, shallow to deep.
    width
        Channels of the deepest one.
    """

    layers: range
    width: int

    def own_head(self, n_outputs: int) -> OwnHead:
        """Make new last layers as this architecture has them, for the deepest layer's output."""
        return OwnHead(self.width, n_outputs)

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
