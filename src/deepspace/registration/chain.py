"""A block of serial sections: all pairs of near sections fitted together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepspace.core.config import RegistrationConfig
from deepspace.core.progress import track
from deepspace.io.section import Section
from deepspace.registration.prepare import Picture
from deepspace.registration.register import Registration, pictures, register_pictures
from deepspace.registration.stack import (
    Place,
    Stack,
    block_of_patient,
    block_of_section,
    place_of,
)
from deepspace.registration.transform import Field, FloatArray, Transform

_REACH = 2
_SWEEPS = 50
_SETTLED_UM = 0.5
_NODES = 150


@dataclass(frozen=True)
class Link:
    """One registered pair of a block.

    Attributes
    ----------
    patient, moving, fixed
        Identifiers.
    registration
        From moving to fixed.
    residual_um
        Median distance, over the tissue, between this pair's map and what the whole block agreed
        on; None where the pair was refused.
    """

    patient: str
    moving: str
    fixed: str
    registration: Registration
    residual_um: float | None

    def describe(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "patient": self.patient,
            "moving": self.moving,
            "fixed": self.fixed,
            "accepted": self.registration.accepted,
            "residual_um": self.residual_um,
            **vars(self.registration.quality),
        }


@dataclass(frozen=True)
class _Nodes:
    """Where the map of a section is known: a grid over its tissue."""

    field: Field
    points: FloatArray
    tissue: np.ndarray[Any, np.dtype[np.bool_]]

    @classmethod
    def of(cls, picture: Picture) -> _Nodes:
        height, width = picture.mask.shape
        step = max(height, width) * picture.um_per_px / _NODES
        rows, columns = (int(np.ceil(n * picture.um_per_px / step)) + 1 for n in (height, width))
        field = Field(picture.origin_um, step, np.zeros((rows, columns, 2)))
        points = field.nodes()
        return cls(field, points, picture.look(picture.mask, points) > 0.5)

    def fit(self, values: FloatArray) -> Transform:
        """Return the map that takes the nodes to `values` (n, 2)."""
        inside = self.tissue if self.tissue.sum() >= 3 else np.ones(len(values), bool)
        design = np.column_stack([self.points, np.ones(len(values))])
        found = np.linalg.lstsq(design[inside], values[inside], rcond=None)[0]
        affine = Transform.of(found[:2].T, found[2])
        rest = (values - affine.forward(self.points)).reshape(self.field.values.shape)
        field = Field(self.field.origin_um, self.field.step_um, rest)
        return Transform(affine.matrix, field).checked()


# moving and fixed, as positions in the block, and how one lies on the other
_Pairs = dict[tuple[int, int], Registration]


def register_stack(
    sections: Sequence[Section], config: RegistrationConfig | None = None, *, seed: int = 0
) -> tuple[Stack, list[Link]]:
    """Lay the serial sections of every patient over each other, from their images alone.

    Each section is registered to the next two; a refused pair counts for nothing. The maps to
    the common frame are then fitted to all accepted pairs together: each section goes where its
    neighbours say, averaged by the agreement of the pairs, until nothing moves. The frame is
    that of the middle section.

    Parameters
    ----------
    sections
        Of any number of patients. One without `z_um` is alone.
    config
        Defaults if None.
    seed
        Of the random sampling of key points.

    Returns
    -------
    Stack with a place for every section, and the pairs that were tried. Sections that no
    accepted pair connects are in different blocks.

    Raises
    ------
    InputError
        If a slide does not know its mpp or is damaged.
    """
    config = config or RegistrationConfig()
    links: list[Link] = []
    places: dict[int, Place] = {}
    patients = dict.fromkeys(section.patient for section in sections)
    for patient in patients:
        known = [s for s in sections if s.patient == patient and s.z_um is not None]
        block = sorted(known, key=lambda section: (section.z_um or 0.0, section.section))
        placed, tried = _register_block(block, config, seed)
        places |= {id(section): place for section, place in zip(block, placed, strict=True)}
        links += tried
    for section in sections:
        if id(section) not in places:
            alone = place_of(section, Transform.identity(), block_of_section(section))
            places[id(section)] = alone
    return Stack(tuple(places[id(section)] for section in sections)), links


def _register_block(
    block: list[Section], config: RegistrationConfig, seed: int
) -> tuple[list[Place], list[Link]]:
    """Places and pairs of one patient's sections, in order of depth."""
    if len(block) < 2:
        return [place_of(s, Transform.identity(), block_of_patient(s.patient)) for s in block], []
    tissues = pictures([section.slide for section in block], config)
    count = len(block)
    near = [(j, i) for i in range(count) for j in range(i + 1, min(i + _REACH + 1, count))]
    pairs: _Pairs = {
        (j, i): register_pictures(tissues[j], tissues[i], config, seed=seed)
        for j, i in track(near, total=len(near), text="registering sections")
    }
    accepted = {key: pair for key, pair in pairs.items() if pair.accepted}
    nodes = [_Nodes.of(picture) for picture in tissues]
    transforms: dict[int, Transform] = {}
    names: dict[int, str] = {}
    groups = sorted(_connected(len(block), accepted), key=lambda group: (-len(group), group))
    for number, group in enumerate(groups):
        transforms |= _solve(group, accepted, nodes)
        names |= dict.fromkeys(group, _block_name([block[i] for i in group], number))
    links = [
        Link(
            block[j].patient,
            block[j].section,
            block[i].section,
            pair,
            _residual(pair, transforms[j], transforms[i], nodes[j]) if pair.accepted else None,
        )
        for (j, i), pair in pairs.items()
    ]
    return [place_of(s, transforms[i], names[i]) for i, s in enumerate(block)], links


def _block_name(group: list[Section], number: int) -> str:
    first = group[0]
    if len(group) == 1:
        return block_of_section(first)
    name = block_of_patient(first.patient)
    return name if number == 0 else f"{name} from {first.section}"


def _connected(count: int, pairs: _Pairs) -> list[list[int]]:
    """Groups of sections that accepted pairs connect, each in order of depth."""
    group = list(range(count))
    for j, i in pairs:
        old, new = group[j], group[i]
        group = [new if g == old else g for g in group]
    return [[k for k in range(count) if group[k] == g] for g in sorted(set(group))]


def _solve(group: list[int], pairs: _Pairs, nodes: list[_Nodes]) -> dict[int, Transform]:
    """Maps of a connected group to the frame of its middle section.

    Gauss-Seidel sweeps over the sections, from the middle outwards.
    """
    middle = group[len(group) // 2]
    found = {middle: Transform.identity()}
    order = sorted((k for k in group if k != middle), key=lambda k: (abs(k - middle), k))
    for _ in range(_SWEEPS):
        moved = 0.0
        for k in order:
            values = _wanted(k, found, pairs, nodes[k])
            if values is None:
                moved = np.inf
                continue
            new = nodes[k].fit(values)
            if k in found:
                inside = nodes[k].points[nodes[k].tissue]
                change = np.abs(new.forward(inside) - found[k].forward(inside))
                moved = max(moved, float(change.max(initial=0.0)))
            else:
                moved = np.inf
            found[k] = new
        if moved < _SETTLED_UM:
            break
    return found


def _wanted(k: int, found: dict[int, Transform], pairs: _Pairs, nodes: _Nodes) -> FloatArray | None:
    """Where the placed neighbours of a section want its nodes, (n, 2); None if none is placed."""
    total, mass = np.zeros_like(nodes.points), 0.0
    for (moving, fixed), pair in pairs.items():
        if k == moving and fixed in found:
            there = found[fixed].forward(pair.transform.forward(nodes.points))
        elif k == fixed and moving in found:
            there = found[moving].forward(pair.transform.backward(nodes.points))
        else:
            continue
        weight = pair.quality.agreement**2
        total += weight * there
        mass += weight
    return total / mass if mass > 0 else None


def _residual(pair: Registration, moving: Transform, fixed: Transform, nodes: _Nodes) -> float:
    """Median distance between a pair's map and the block's, um."""
    inside = nodes.points[nodes.tissue]
    if not len(inside):
        return 0.0
    apart = fixed.forward(pair.transform.forward(inside)) - moving.forward(inside)
    return float(np.median(np.hypot(*apart.T)))
