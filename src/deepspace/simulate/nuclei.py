"""Nuclei: which, where, and a bank of drawn ones to stamp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from deepspace.simulate.canvas import Canvas
from deepspace.simulate.fields import Floats, Raster
from deepspace.simulate.texture import FatCells
from deepspace.simulate.tissue import CELLULARITY, CLASSES, NUCLEI_PER_MM2, Local, classify

_ANGLES = 24
_VARIANTS = 8
_SPARE = 1.35  # candidates per nucleus


@dataclass(frozen=True)
class Kind:
    """How the nuclei of one kind of cell look.

    Attributes
    ----------
    length_um, width_um
        Axes of the nucleus.
    spread
        Coefficient of variation of its size.
    stain
        Concentration of haematoxylin.
    rough
        How irregular the outline is.
    chromatin
        Strength of the chromatin texture.
    rim
        Darker nuclear membrane, as in open (vesicular) nuclei.
    nucleoli
        Mean number of nucleoli.
    taper
        0 for an ellipse, towards 1 for a spindle.
    """

    length_um: float
    width_um: float
    spread: float
    stain: float
    rough: float = 0.05
    chromatin: float = 0.2
    rim: float = 0.0
    nucleoli: float = 0.0
    taper: float = 0.0


KINDS: Final = {
    "tumour_low": Kind(8.8, 7.2, 0.12, 1.05, 0.035, 0.24, 0.28, 0.6),
    "tumour_mid": Kind(10.4, 8.2, 0.16, 1.12, 0.05, 0.28, 0.34, 1.0),
    "tumour_high": Kind(12.6, 9.4, 0.17, 1.24, 0.07, 0.34, 0.38, 1.6),
    "epithelium": Kind(8.8, 5.8, 0.10, 1.20, 0.035, 0.22, 0.18, 0.3),
    "myoepithelium": Kind(9.5, 2.8, 0.15, 1.35, 0.06, 0.15, 0.0, 0.0, 0.5),
    "lymphocyte": Kind(6.4, 6.0, 0.10, 1.65, 0.035, 0.24),
    "fibroblast": Kind(15.0, 3.1, 0.22, 1.25, 0.06, 0.18, 0.0, 0.0, 0.75),
    "stromal": Kind(9.0, 4.8, 0.18, 1.15, 0.08, 0.22, 0.1),
    "adipocyte": Kind(9.0, 2.2, 0.15, 1.35, 0.06, 0.10, 0.0, 0.0, 0.6),
}
_KIND_NAMES: Final = tuple(KINDS)
_LOW, _MID, _HIGH, _EPITHELIUM, _MYO, _LYMPH, _FIBRO, _STROMAL, _FAT = range(len(KINDS))


@dataclass(frozen=True)
class Nuclei:
    """Nuclei of one section, one row each.

    Attributes
    ----------
    coords
        (n, 2) x, y, full-resolution pixels.
    kind
        (n,) index into `KINDS`.
    angle
        (n,) direction of the long axis, radians in the image.
    """

    coords: Floats
    kind: npt.NDArray[np.int64]
    angle: Floats


def scatter(
    canvas: Canvas, local: Local, fibre_angle: Raster, fat: FatCells, rng: np.random.Generator
) -> Nuclei:
    """Draw the positions of all nuclei from the density of each tissue class.

    Candidates lie on a jittered hexagonal lattice per class, so that nuclei keep a distance;
    each is kept with the probability that gives the class its nuclei per mm2.
    """
    parts = []
    for index, density in enumerate(NUCLEI_PER_MM2):
        if CLASSES[index] in ("fat", "lumen", "glass"):
            continue
        coords = _lattice(canvas, density * _SPARE, rng)
        near = Local(*(canvas.sample(part, coords) for part in local))
        expected = density * np.exp(CELLULARITY[index] * near.cellularity)
        keep = (classify(near) == index) & (rng.random(len(coords)) < expected / (density * _SPARE))
        near = Local(*(part[keep] for part in near))
        direction = canvas.sample(fibre_angle, coords[keep])
        parts.append(_dress(index, coords[keep], near, direction, rng))
    parts.append(_basal(canvas, local, rng))
    parts.append(_squeezed(canvas, local, fat, rng))
    return Nuclei(
        np.concatenate([p.coords for p in parts]),
        np.concatenate([p.kind for p in parts]),
        np.concatenate([p.angle for p in parts]),
    )


def _dress(
    index: int, coords: Floats, near: Local, fibre: Raster, rng: np.random.Generator
) -> Nuclei:
    """Give the nuclei of one tissue class their kind and direction."""
    n = len(coords)
    anyway = rng.uniform(0, np.pi, n)
    if index == 0:
        kind = rng.choice([_FIBRO, _STROMAL, _LYMPH], size=n, p=[0.74, 0.2, 0.06])
        return Nuclei(coords, kind, fibre + rng.normal(scale=0.22, size=n))
    if index == 1:
        grade = near.grade + rng.normal(scale=0.55, size=n)
        return Nuclei(coords, np.digitize(grade, [-0.5, 0.7]) + _LOW, anyway)
    if index == 2:
        return Nuclei(coords, np.full(n, _LYMPH), anyway)
    return Nuclei(coords, np.full(n, _EPITHELIUM), fibre + np.pi / 2 + rng.normal(0, 0.3, n))


def _basal(canvas: Canvas, local: Local, rng: np.random.Generator) -> Nuclei:
    """Flat myoepithelial nuclei along the outer wall of the ducts."""
    coords = _lattice(canvas, 30000.0, rng)
    duct = canvas.sample(local.duct, coords)
    inside = canvas.sample(local.outline, coords) > 4
    coords = coords[(np.abs(duct) < 2.2) & inside & (rng.random(len(coords)) < 0.42)]
    level = np.clip(local.duct, -60, 60)
    rows, cols = (canvas.sample(np.gradient(level, axis=axis), coords) for axis in (0, 1))
    # the long axis lies along the wall, so at right angles to the gradient
    tangent = np.arctan2(rows, cols) + np.pi / 2
    return Nuclei(coords, np.full(len(coords), _MYO), tangent.astype(float))


def _squeezed(canvas: Canvas, local: Local, fat: FatCells, rng: np.random.Generator) -> Nuclei:
    """Flat nuclei of fat cells, against the membrane."""
    density = NUCLEI_PER_MM2[CLASSES.index("fat")]
    # about a tenth of the area lies so close to a membrane
    coords = _lattice(canvas, 10.0 * density, rng)
    in_fat = (canvas.sample(local.fat, coords) > 2) & (canvas.sample(local.outline, coords) > 4)
    coords = coords[in_fat & (canvas.sample(local.duct, coords) < -4)]
    coords = coords[fat.inside(canvas.lift(coords)) < 1.5]
    slope = [
        fat.inside(canvas.lift(coords + ahead)) - fat.inside(canvas.lift(coords - ahead))
        for ahead in (np.array([2.0, 0.0]), np.array([0.0, 2.0]))
    ]
    angle = np.arctan2(slope[1], slope[0]) + np.pi / 2
    return Nuclei(coords, np.full(len(coords), _FAT), angle.astype(float))


def _lattice(canvas: Canvas, per_mm2: float, rng: np.random.Generator) -> Floats:
    """Jittered, turned hexagonal lattice over the image, (n, 2) px."""
    spacing = 1000.0 / np.sqrt(per_mm2 * np.sqrt(3) / 2) / canvas.transform.mpp
    reach = int(0.75 * canvas.size / (spacing * np.sqrt(3) / 2)) + 2
    rows, cols = (m.ravel() for m in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    points = np.column_stack([cols + 0.5 * (rows % 2), rows * np.sqrt(3) / 2]) * spacing
    turn = rng.uniform(0, np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = points @ rotation.T + canvas.size / 2
    points = points[((points > 0) & (points < canvas.size - 1)).all(axis=1)]
    jittered: Floats = points + rng.uniform(-0.28, 0.28, points.shape) * spacing
    return jittered


class Bank:
    """Nuclei drawn once for a pixel size: haematoxylin and cover, many angles and shapes.

    Parameters
    ----------
    mpp
        Micrometres per pixel.
    seed
        Decides the shapes.
    """

    def __init__(self, mpp: float, seed: int) -> None:
        rng = np.random.default_rng([seed, 2])
        self._sprites = [
            [
                [_draw(kind, np.pi * a / _ANGLES, mpp, rng) for _ in range(_VARIANTS)]
                for a in range(_ANGLES)
            ]
            for kind in KINDS.values()
        ]

    def stamp(self, stain: Raster, cover: Raster, nuclei: Nuclei, rng: np.random.Generator) -> None:
        """Draw `nuclei` into `stain` (haematoxylin) and `cover` (0 to 1), both (h, w), in place.

        Where two nuclei overlap the darker one wins.
        """
        turn = np.rint(nuclei.angle / np.pi * _ANGLES).astype(int) % _ANGLES
        variant = rng.integers(0, _VARIANTS, len(turn))
        dark = np.exp(rng.normal(scale=0.13, size=len(turn))).astype(np.float32)
        corner = np.rint(nuclei.coords).astype(int)
        size = stain.shape[0]
        for k, a, v, d, (x, y) in zip(nuclei.kind, turn, variant, dark, corner, strict=True):
            sprite, mask = self._sprites[k][a][v]
            half = sprite.shape[0] // 2
            top, left = y - half, x - half
            # nuclei lie in tissue, and tissue keeps clear of the border of the image
            if min(top, left) < 0 or max(top, left) + sprite.shape[0] > size:
                continue
            window = np.s_[top : top + sprite.shape[0], left : left + sprite.shape[0]]
            np.maximum(stain[window], sprite * d, out=stain[window])
            np.maximum(cover[window], mask, out=cover[window])


def _draw(kind: Kind, angle: float, mpp: float, rng: np.random.Generator) -> tuple[Raster, Raster]:
    """One nucleus: haematoxylin and cover, (s, s) with s odd."""
    scale = np.exp(rng.normal(scale=kind.spread))
    long, wide = (
        axis / 2 * scale * np.exp(rng.normal(scale=0.5 * kind.spread))
        for axis in (kind.length_um, kind.width_um)
    )
    half = int(np.ceil((long * 1.3 + 0.8) / mpp))
    y, x = np.mgrid[-half : half + 1, -half : half + 1] * mpp
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    v = v + rng.normal(scale=0.05) * kind.taper * u**2 / wide  # spindles bend
    along = np.minimum(np.abs(u / long), 1.0)
    theta = np.arctan2(v / wide, u / long)
    wave = sum(
        rng.normal(scale=2.2 * kind.rough / k) * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
        for k in (2, 3, 4, 5)
    )
    reach = np.hypot(u / long, v / (wide * (1.0 - kind.taper * along**2))) / (1.0 + wave)
    depth = (1.0 - reach) * min(long, wide)
    cover = np.clip(depth / max(mpp, 0.7) + 0.5, 0.0, 1.0)
    grain = ndimage.gaussian_filter(rng.standard_normal(x.shape), 0.55 / mpp)
    tone = 1.0 + kind.chromatin * grain / grain.std()
    tone += kind.rim * (np.exp(-np.square((depth - 0.4) / 0.6)) - 0.45)
    for _ in range(rng.poisson(kind.nucleoli)):
        at_u, at_v = rng.uniform(-0.45, 0.45, 2) * (long, wide)
        tone += 0.55 * np.exp(-(np.square(u - at_u) + np.square(v - at_v)) / 0.75)
    stain = kind.stain * cover * np.clip(tone, 0.35, 2.2)
    return stain.astype(np.float32), cover.astype(np.float32)
