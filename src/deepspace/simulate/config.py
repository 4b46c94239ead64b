"""What a simulated block is made of."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deepspace.core.errors import InputError
from deepspace.core.strict import validated


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Artefacts(_Strict):
    """What went wrong with one section.

    Attributes
    ----------
    tear
        A gap through the tissue: no tissue in the image, no RNA in the spots.
    pen_mark
        A stroke of a felt pen beside and over the tissue; the counts are untouched.
    out_of_focus
        A part of the image is blurred; the counts are untouched.
    failed_area
        A contiguous area whose spots gave few counts; the image is untouched.
    """

    tear: bool = False
    pen_mark: bool = False
    out_of_focus: bool = False
    failed_area: bool = False


class Genes(_Strict):
    """How many genes follow which law (see `deepspace.simulate.counts`)."""

    image: int = Field(default=100, ge=1)
    neighbours: int = Field(default=80, ge=1)
    mixed: int = Field(default=50, ge=1)
    none: int = Field(default=57, ge=1)
    mitochondrial: int = Field(default=13, ge=1)


class BlockConfig(_Strict):
    """A tissue block cut into serial sections; lengths in micrometres.

    Attributes
    ----------
    seed
        Decides everything random: the same seed gives the same bytes on disk.
    side_um, margin_um
        Side of the square capture area, and the glass the image shows around it.
    mpp
        Micrometres per pixel of the full-resolution image.
    n_sections, spacing_um
        Sections are named ``S1 ... Sn`` and lie at z = 0, `spacing_um`, ...
    rotation_deg, shift_um
        Largest rotation and shift of a section against the block, either way.
    depth
        Median counts (UMI) of a spot in tissue.
    unmeasured
        Sections of which only the image and the spot positions are handed out.
    artefacts
        Section name to what went wrong with it.
    positions
        ``"v2"`` writes ``tissue_positions.csv`` with a header, ``"v1"`` the older
        ``tissue_positions_list.csv`` without one.
    """

    seed: int = Field(default=0, ge=0)
    patient: str = "P1"
    side_um: float = Field(default=2000.0, ge=400.0, le=11000.0)
    margin_um: float = Field(default=130.0, ge=30.0)
    mpp: float = Field(default=0.65, ge=0.2, le=2.0)
    n_sections: int = Field(default=5, ge=1, le=100)
    spacing_um: float = Field(default=30.0, gt=0.0)
    rotation_deg: float = Field(default=12.0, ge=0.0, le=180.0)
    shift_um: float = Field(default=60.0, ge=0.0)
    depth: float = Field(default=5000.0, gt=0.0)
    genes: Genes = Genes()
    unmeasured: tuple[str, ...] = ("S3",)
    artefacts: dict[str, Artefacts] = {
        "S2": Artefacts(failed_area=True),
        "S4": Artefacts(tear=True),
        "S5": Artefacts(pen_mark=True),
    }
    positions: Literal["v1", "v2"] = "v2"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sections, in the order of z."""
        return tuple(f"S{i + 1}" for i in range(self.n_sections))

    @model_validator(mode="after")
    def _known_sections(self) -> BlockConfig:
        unknown = sorted({*self.unmeasured, *self.artefacts} - set(self.names))
        if unknown:
            raise ValueError(
                f"unmeasured or artefacts name {unknown}, but the sections are "
                f"{self.names[0]} to {self.names[-1]}"
            )
        if len(set(self.unmeasured)) == self.n_sections:
            raise ValueError("every section is unmeasured; leave at least one measured")
        return self

    @classmethod
    def preset(cls, name: str, **changes: Any) -> BlockConfig:
        """One of the ready-made sizes, with any field changed.

        Parameters
        ----------
        name
            ``"demo"`` (5 sections of 2 mm, about 350 spots each), ``"tiny"`` (3 sections of
            0.9 mm for tests) or ``"visium"`` (4 sections of the real 6.5 mm capture area;
            takes about 5 GB of memory and some minutes).
        **changes
            Fields of `BlockConfig` that differ from the preset.

        Raises
        ------
        InputError
            If there is no such preset or a field is wrong.

        Examples
        --------
        >>> BlockConfig.preset("tiny", seed=3).names
        ('S1', 'S2', 'S3')
        """
        if name not in PRESETS:
            raise InputError(f"preset {name!r} does not exist; choose one of {sorted(PRESETS)}")
        return validated(cls, {**PRESETS[name], **changes}, "simulated block")


PRESETS: dict[str, dict[str, Any]] = {
    "demo": {},
    "tiny": {
        "side_um": 900.0,
        "margin_um": 60.0,
        "mpp": 1.0,
        "n_sections": 3,
        "shift_um": 25.0,
        "genes": Genes(image=24, neighbours=12, mixed=8, none=12, mitochondrial=4),
        "unmeasured": (),
        "artefacts": {},
    },
    "visium": {
        "side_um": 6500.0,
        "margin_um": 300.0,
        "n_sections": 4,
        "artefacts": {"S2": Artefacts(failed_area=True), "S4": Artefacts(tear=True)},
    },
}
