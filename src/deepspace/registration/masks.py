"""First guesses: outline and coarse structure under all rotations and mirror images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft

from deepspace.registration.prepare import Floats, Mask, Picture
from deepspace.registration.transform import FloatArray, Transform

_LEAST_OVERLAP = 0.3
_WINDOW_PX = 8.0
_SECTOR_DEG = 30.0


@dataclass(frozen=True)
class Guess:
    """A rigid placement and how well it fits.

    Attributes
    ----------
    transform
        From the moving to the fixed section, um.
    outline
        Dice coefficient of the tissue masks.
    structure
        Correlation of the coarse contrast where both have tissue, times the root of the overlap.
    """

    transform: Transform
    outline: float
    structure: float


def guesses(moving: Picture, fixed: Picture, degrees: float) -> list[Guess]:
    """Best placements in every orientation of a full turn and its mirror image.

    All shifts of one rotation are tried at once by masked normalised correlation (Padfield,
    IEEE Transactions on Image Processing 21:2706, 2012).

    Parameters
    ----------
    moving, fixed
        Coarse pictures of the same pixel size.
    degrees
        Step of the rotation.

    Returns
    -------
    For each sector of 30 degrees, as it lies and mirrored: best outline and best structure.
    """
    reach = int(np.ceil(np.hypot(*moving.mask.shape))) + max(fixed.mask.shape)
    side = int(fft.next_fast_len(reach, real=True))
    spectra = _spectra(fixed.mask, fixed.contrast(1.0, _WINDOW_PX), side)
    best: list[Guess] = []
    for mirror in (1.0, -1.0):
        for sector in np.arange(0.0, 360.0, _SECTOR_DEG):
            found = [
                _best_shifts(moving, fixed, _turn(angle, mirror), spectra, side)
                for angle in np.arange(sector, sector + _SECTOR_DEG, degrees)
            ]
            best.append(max((pair[0] for pair in found), key=lambda guess: guess.outline))
            best.append(max((pair[1] for pair in found), key=lambda guess: guess.structure))
    return best


def _turn(degrees: float, mirror: float) -> FloatArray:
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]]) @ np.diag([mirror, 1.0])


def _spectra(mask: Mask, contrast: Floats, side: int) -> Sequence[FloatArray]:
    inside = mask.astype(np.float32)
    seen = contrast * inside
    return [fft.rfft2(part, (side, side)) for part in (inside, seen, seen**2)]


def _best_shifts(
    moving: Picture, fixed: Picture, turn: FloatArray, spectra: Sequence[FloatArray], side: int
) -> list[Guess]:
    """Best shift by outline and by structure for one rotation."""
    turned, about = _turned(moving, turn)
    own = _spectra(turned.mask, turned.contrast(1.0, _WINDOW_PX), side)
    (f, fc, fcc), (m, mc, mcc) = spectra, [np.conj(part) for part in own]
    overlap, product, fixed_square, moving_square = (
        fft.irfft2(part, (side, side)) for part in (f * m, fc * mc, fcc * m, f * mcc)
    )
    areas = float(fixed.mask.sum()), float(turned.mask.sum())
    least = max(min(areas), 1.0)  # a picture may show no tissue
    dice = 2.0 * overlap / max(sum(areas), 1.0)
    enough = overlap > _LEAST_OVERLAP * least
    size = np.sqrt(np.maximum(fixed_square, 1e-3) * np.maximum(moving_square, 1e-3))
    structure = np.where(enough, product / size, -1.0)
    structure *= np.sqrt(np.clip(overlap / least, 0.0, 1.0))
    out = []
    for score in (dice, structure):
        row, column = np.unravel_index(int(np.argmax(score)), score.shape)
        shift = np.array([column, row], np.float64)
        shift[shift > side / 2] -= side
        corners = np.asarray(fixed.origin_um) - np.asarray(turned.origin_um)
        offset = corners + shift * fixed.um_per_px
        place = about.then(Transform.of(np.eye(2), offset))
        out.append(Guess(place, float(dice[row, column]), float(structure[row, column])))
    return out


def _turned(picture: Picture, turn: FloatArray) -> tuple[Picture, Transform]:
    """Picture turned about its centre, and the map from the slide to where it shows the slide."""
    step = picture.um_per_px
    reach = int(np.ceil(np.hypot(*picture.mask.shape) / 2))
    middle = np.asarray(picture.origin_um) + np.array(picture.mask.shape[::-1]) * step / 2
    about = Transform.of(turn, middle - turn @ middle)
    corner = middle - reach * step
    shape = (2 * reach, 2 * reach)
    blank = Picture(
        np.zeros(shape, np.float32), np.zeros(shape, bool), (corner[0], corner[1]), step
    )
    source = about.backward(blank.points())
    density = picture.look(picture.density, source).reshape(shape)
    mask = picture.look(picture.mask, source).reshape(shape) > 0.5
    return Picture(density, mask, blank.origin_um, step), about
