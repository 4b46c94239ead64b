"""Register one section to another from their images alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepspace.core.config import RegistrationConfig
from deepspace.core.errors import InputError
from deepspace.io.slide import Slide
from deepspace.registration.features import from_key_points
from deepspace.registration.masks import guesses
from deepspace.registration.nonrigid import deform
from deepspace.registration.prepare import Picture, find_mask, prepare, tissue_box_um
from deepspace.registration.quality import Quality, Scales, assess
from deepspace.registration.refine import refine
from deepspace.registration.transform import FloatArray, Transform, turned_against

_GUESS_PX = 110
_TOLERANCE_PX = 6.0
_RIVAL_DEG = 20.0


@dataclass(frozen=True)
class Registration:
    """How one section lies on another.

    Attributes
    ----------
    transform
        From um of the moving to um of the fixed section.
    affine
        The same without the smooth deformation.
    quality
        Scores.
    accepted
        Whether the match is better than chance.
    """

    transform: Transform
    affine: Transform
    quality: Quality
    accepted: bool

    def require(self) -> Transform:
        """Return the transform.

        Raises
        ------
        InputError
            If the match is not better than chance.
        """
        if not self.accepted:
            raise InputError(f"not registered: {self.reason()}")
        return self.transform

    def reason(self) -> str:
        """Say in words how the match compares with chance."""
        q = self.quality
        verdict = "better" if self.accepted else "not better"
        return (
            f"the match is {verdict} than chance (agreement {q.agreement:.3f}, "
            f"{q.excess:.1f} standard deviations above other orientations, whose best is "
            f"{q.chance:.3f}; mask overlap {q.overlap:.2f})"
        )


def pictures(slides: Sequence[Slide], config: RegistrationConfig) -> list[Picture]:
    """Tissues of some slides at one working resolution."""
    tissues = [find_mask(slide) for slide in slides]
    boxes = [tissue_box_um(s, t) for s, t in zip(slides, tissues, strict=True)]
    longest = max(max(box[2] - box[0], box[3] - box[1]) for box in boxes)
    um_per_px = max(config.finest_um, longest / config.size_px)
    return [prepare(s, t, um_per_px) for s, t in zip(slides, tissues, strict=True)]


def register(
    moving: Slide, fixed: Slide, config: RegistrationConfig | None = None, *, seed: int = 0
) -> Registration:
    """Find how one section lies on another.

    Outline and coarse structure are compared under all rotations and mirror images, maps from
    key points are added, the best are refined against the fine contrast, and the rest is left
    to a smooth deformation.

    Parameters
    ----------
    moving, fixed
        Slides that know their mpp; the stains may differ.
    config
        Defaults if None.
    seed
        Of the random sampling of key points.

    Returns
    -------
    Registration
        Whether it is `accepted` must be asked.

    Raises
    ------
    InputError
        If an mpp is unknown or an image is damaged.
    """
    config = config or RegistrationConfig()
    first, second = pictures((moving, fixed), config)
    return register_pictures(first, second, config, seed=seed)


def register_pictures(
    moving: Picture, fixed: Picture, config: RegistrationConfig, *, seed: int = 0
) -> Registration:
    """Register two prepared pictures; see `register`."""
    scales = Scales.of(moving, fixed)
    fitted = [_fit(scales, start, config) for start in _starts(moving, fixed, config, seed)]
    ranked = sorted(((scales.agreement(found), found) for found in fitted), key=lambda row: -row[0])
    best = refine(scales.fine, ranked[0][1], config.freedom)
    final = deform(moving, fixed, best, config) if config.nonrigid else best
    if scales.agreement(final) < scales.agreement(best):
        final = best
    rivals = [score for score, found in ranked if turned_against(found, best) > _RIVAL_DEG]
    quality = assess(scales.agreement(best), rivals, (moving, fixed), final)
    return Registration(final, best, quality, quality.better_than_chance(config.least_excess))


def _fit(scales: Scales, start: Transform, config: RegistrationConfig) -> Transform:
    """Refine one first guess from coarse to fine."""
    rough = refine(scales.coarse, start, "rigid", 8)
    rough = refine(scales.coarse, rough, config.freedom, 6)
    return refine(scales.fine, rough, config.freedom, 4)


def _starts(
    moving: Picture, fixed: Picture, config: RegistrationConfig, seed: int
) -> list[Transform]:
    """First guesses: by structure and by outline in every orientation, by key points."""
    longest = max(*moving.mask.shape, *fixed.mask.shape) * moving.um_per_px
    step = longest / _GUESS_PX
    found = guesses(moving.coarser(step), fixed.coarser(step), config.angle_deg)
    starts = [guess.transform for guess in found]
    if config.key_points:
        tolerance = _TOLERANCE_PX * moving.um_per_px
        kinds = dict.fromkeys(("rigid", config.freedom))
        starts += from_key_points(moving, fixed, kinds, tolerance, seed)
    return starts


def landmark_errors(
    transform: Transform, moving_um: FloatArray, fixed_um: FloatArray
) -> FloatArray:
    """Distances, um (n,), of mapped landmarks (n, 2) from where they should lie."""
    errors: FloatArray = ((transform.forward(moving_um) - fixed_um) ** 2).sum(axis=-1) ** 0.5
    return errors
