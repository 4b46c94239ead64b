"""Where every section lies in the block that it was cut from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepspace.core.errors import InputError
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.registration.transform import Arrays, FloatArray, Transform


@dataclass(frozen=True)
class Place:
    """One section in its block.

    Attributes
    ----------
    section, patient
        Identifiers.
    slide_sha256
        `Slide.content_hash` of its image: what it is found by.
    mpp
        Micrometres per full-resolution pixel of the image.
    z_um
        Depth, um, or None where not known.
    transform
        From um of the section to um of the block's common frame.
    block
        Name of the block; points of different blocks are infinitely far apart.
    """

    section: str
    patient: str
    slide_sha256: str
    mpp: float
    z_um: float | None
    transform: Transform
    block: str


@dataclass(frozen=True)
class Located:
    """Points in a block.

    Attributes
    ----------
    block
        Name of the block.
    xyz
        x, y in the common frame and depth, um, shape (n, 3).
    """

    block: str
    xyz: FloatArray


@dataclass(frozen=True)
class Stack:
    """Places of all sections of a cohort."""

    places: tuple[Place, ...]

    def place(self, slide: Slide) -> Place | None:
        """Return the place of a slide, found by its content; None where it has none."""
        if not self.places:
            return None
        digest = slide.content_hash()
        return next((place for place in self.places if place.slide_sha256 == digest), None)

    def shared(self, slide: Slide) -> bool:
        """Tell whether several sections lie on this scan."""
        digest = slide.content_hash()
        return sum(place.slide_sha256 == digest for place in self.places) > 1

    def locate(self, slide: Slide, coords: ArrayLike) -> Located | None:
        """Find points of a slide in its block.

        Parameters
        ----------
        slide
            Found by its content, whatever its name.
        coords
            x, y in full-resolution pixels, shape (n, 2).

        Returns
        -------
        Located, or None where the slide is not in the stack. Where the depth is not known, z is
        0: such a section is alone in its block.
        """
        place = self.place(slide)
        if place is None:
            return None
        points = np.asarray(coords, np.float64).reshape(-1, 2) * place.mpp
        xyz = np.empty((len(points), 3))
        xyz[:, :2] = place.transform.forward(points)
        xyz[:, 2] = place.z_um or 0.0
        return Located(place.block, xyz)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Return JSON values and arrays that `restore` takes."""
        places: list[dict[str, Any]] = []
        arrays: Arrays = {}
        for number, place in enumerate(self.places):
            values, own = place.transform.state()
            plain = {key: value for key, value in vars(place).items() if key != "transform"}
            places.append(plain | {"transform": values})
            arrays |= {f"{number}.{name}": array for name, array in own.items()}
        return {"places": places}, arrays

    @classmethod
    def restore(cls, values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Make the stack that `state` described.

        Raises
        ------
        InputError
            If the values are not those of a stack.
        """
        places = []
        try:
            for number, saved in enumerate(values["places"]):
                prefix = f"{number}."
                own = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
                transform = Transform.restore(saved["transform"], own)
                places.append(Place(**{**saved, "transform": transform}))
        except (KeyError, TypeError) as error:
            raise InputError(f"saved stack is damaged ({error}); register again") from error
        return cls(tuple(places))


def block_of_patient(patient: str) -> str:
    """Name of the block that the registered sections of a patient share."""
    return f"patient {patient}"


def block_of_section(section: Section) -> str:
    """Name of the block of a section that is alone."""
    return f"section {section.patient}/{section.section}"


def place_of(section: Section, transform: Transform, block: str) -> Place:
    """Place a section.

    Raises
    ------
    InputError
        If its slide does not know its mpp.
    """
    return Place(
        section=section.section,
        patient=section.patient,
        slide_sha256=section.slide.content_hash(),
        mpp=section.slide.require_mpp(),
        z_um=section.z_um,
        transform=transform,
        block=block,
    )


def identity_stack(sections: Sequence[Section]) -> Stack:
    """Stack of sections that are aligned already: each keeps its own micrometres.

    Sections of one patient share a block; one without a depth is alone.
    """
    places = []
    for section in sections:
        alone = section.z_um is None
        block = block_of_section(section) if alone else block_of_patient(section.patient)
        places.append(place_of(section, Transform.identity(), block))
    return Stack(tuple(places))
