"""Everything between the nuclei: stroma, cytoplasm, fat and lumen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from deepspace.simulate.canvas import Canvas, enlarge
from deepspace.simulate.fields import Raster
from deepspace.simulate.nuclei import Nuclei
from deepspace.simulate.texture import FatCells, cells, fibres
from deepspace.simulate.tissue import Local

_SOFT_UM = 1.4  # a tissue border is blurred over this length


@dataclass
class Dyes:
    """Concentrations of the two dyes on the working grid, (h, w) each."""

    haematoxylin: Raster
    eosin: Raster

    def cover(self, weight: Raster, haematoxylin: Raster | float, eosin: Raster | float) -> None:
        """Replace what is there by another tissue where `weight` is 1."""
        self.haematoxylin += weight * (haematoxylin - self.haematoxylin)
        self.eosin += weight * (eosin - self.eosin)

    def fade(self, weight: Raster) -> None:
        """Take tissue away where `weight` is 1."""
        self.haematoxylin *= 1.0 - weight
        self.eosin *= 1.0 - weight


def paint_ground(
    canvas: Canvas,
    local: Local,
    angle: Raster,
    nuclei: Nuclei,
    fat: FatCells,
    rng: np.random.Generator,
) -> Dyes:
    """Paint the tissue without its nuclei.

    Parameters
    ----------
    canvas
        Where the section lies.
    local
        The tissue on the coarse grid.
    angle
        Direction of collagen on the coarse grid.
    nuclei
        Nuclei of the section: cytoplasm is theirs.
    fat
        Fat cells of the block.
    rng
        Source of texture.

    Returns
    -------
    Dyes
        On the working grid.
    """
    rough = _noise(canvas, 2.0, rng)
    fine = _noise(canvas, 0.7, rng)
    level = {
        name: canvas.to_work(np.clip(getattr(local, name), -150, 150)) + 0.9 * rough
        for name in ("outline", "nest", "lymph", "fat", "duct", "lumen")
    }
    dyes = _stroma(canvas, local, angle, fine, rng)
    _tumour_and_ducts(dyes, canvas, level, nuclei, fine, rng)
    weight = _inside(level["fat"])
    weight[level["duct"] > -2.0] = 0.0
    _fat(dyes, canvas, weight, fat)
    _lumen(dyes, canvas, level["lumen"], fine, rng)
    thickness = 1.0 + 0.05 * _noise(canvas, 60.0, rng)
    tissue = _inside(level["outline"]) * thickness
    # the cut edge of a section is a little denser
    tissue *= 1.0 + 0.22 * np.exp(-np.square((level["outline"] - 5.0) / 5.0))
    dyes.haematoxylin *= tissue
    dyes.eosin *= tissue
    return dyes


def _inside(level: Raster) -> Raster:
    """1 inside, 0 outside, soft between."""
    weight: Raster = np.clip(level / _SOFT_UM + 0.5, 0.0, 1.0)
    return weight


def _noise(canvas: Canvas, length_um: float, rng: np.random.Generator) -> Raster:
    """Isotropic texture on the working grid, variance 1."""
    # no finer than needed: smoothed noise is made small and enlarged
    shrink = max(1.0, length_um / 2.0 / canvas.work_um)
    small = int(np.ceil(canvas.work_size / shrink)) + 1
    noise = rng.standard_normal((small, small), dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, length_um / canvas.work_um / shrink, truncate=3.0)
    smooth /= smooth.std()
    if shrink == 1.0:
        return np.ascontiguousarray(smooth[: canvas.work_size, : canvas.work_size])
    return enlarge(smooth, canvas.work_size, canvas.work_size / shrink)


def _stroma(
    canvas: Canvas, local: Local, angle: Raster, fine: Raster, rng: np.random.Generator
) -> Dyes:
    """Collagen: fine fibres in wavy bundles, with white clefts where it is loose."""
    side = -(-canvas.work_size // 2)  # fibres are wider than two working pixels
    span = canvas.work_size * canvas.work / canvas.coarse
    # cos and sin, because an angle must not be interpolated over its jump
    cos, sin = (enlarge(f(2 * angle), side, span) for f in (np.cos, np.sin))
    direction = 0.5 * np.arctan2(sin, cos)
    thin = fibres(direction, 0.0, 4, rng)
    # bundles are wider still: half the resolution is enough for them
    small = -(-side // 2)
    turned = 0.5 * np.arctan2(*(enlarge(f, small, float(side)) for f in (sin, cos)))
    wide = enlarge(fibres(turned, 0.85, 4, rng), side, side / 2)
    wide /= wide.std()
    dense = 1.0 / (1.0 + np.exp(-1.6 * enlarge(local.collagen, side, span)))
    eosin = 0.24 + 0.27 * dense + (0.085 * thin + 0.075 * wide) * (1.2 - 0.4 * dense)
    cleft = np.clip((-wide - 0.85 - 1.3 * dense) / 0.55, 0.0, 1.0)
    eosin *= 1.0 - 0.9 * cleft
    haematoxylin = (0.05 + 0.05 * (1.0 - dense) + 0.012 * thin) * (1.0 - 0.8 * cleft)
    grown = [enlarge(part, canvas.work_size, float(side)) for part in (haematoxylin, eosin)]
    dyes = Dyes(grown[0] + 0.012 * fine, np.maximum(grown[1] + 0.035 * fine, 0.0))
    near = _inside(canvas.to_work(np.clip(local.lymph, -150, 150)) - 2.0)
    dyes.cover(near, 0.17 + 0.03 * fine, 0.21 + 0.05 * fine)
    return dyes


def _tumour_and_ducts(
    dyes: Dyes,
    canvas: Canvas,
    level: dict[str, Raster],
    nuclei: Nuclei,
    fine: Raster,
    rng: np.random.Generator,
) -> None:
    """Cytoplasm cell by cell, with retraction clefts around nests."""
    nest, duct, lumen = level["nest"], level["duct"], level["lumen"]
    tumour = np.where(level["lymph"] > 0, 0.0, _inside(nest)).astype(np.float32)
    wall = _inside(duct) * (1.0 - _inside(lumen))
    patchy = np.clip(0.55 + 0.5 * _noise(canvas, 14.0, rng), 0.0, 1.0)
    cleft = patchy * np.exp(-np.square((nest + 3.2) / 1.7))
    cleft[(level["lymph"] > -4) | (level["fat"] > -4)] = 0.0
    dyes.fade(0.8 * cleft)
    rows, cols = np.nonzero((tumour + wall > 0.02) & (level["outline"] > -2))
    points = canvas.centres(rows, cols, canvas.work)
    border, tone = np.full_like(nest, 9.0), np.zeros_like(nest)
    border[rows, cols], tone[rows, cols] = cells(points, nuclei.coords)
    line = np.exp(-np.square(border * np.float32(canvas.transform.mpp / 0.8)))
    dyes.cover(
        tumour,
        0.19 + 0.035 * tone + 0.035 * fine,
        (0.40 + 0.055 * tone + 0.05 * fine) * (1.0 - 0.30 * line),
    )
    # apical cytoplasm is paler and pinker than the base
    apical: Raster = np.exp(-np.square(np.minimum(lumen, 0.0) / 5.0))
    dyes.cover(
        wall,
        0.17 + 0.03 * tone + 0.03 * fine - 0.08 * apical,
        (0.46 + 0.05 * tone + 0.04 * fine) * (1.0 - 0.28 * line) + 0.06 * apical,
    )
    membrane = np.exp(-np.square((duct + 1.4) / 1.1))
    dyes.eosin += 0.26 * membrane


def _fat(dyes: Dyes, canvas: Canvas, weight: Raster, fat: FatCells) -> None:
    """White cells with a thin pink membrane."""
    rows, cols = np.nonzero(weight > 0)
    if not len(rows):
        return
    depth = fat.inside(canvas.lift(canvas.centres(rows, cols, canvas.work)))
    membrane = np.exp(-np.square(depth / 0.95)) + 0.03
    ring = np.zeros_like(weight)
    ring[rows, cols] = membrane
    dyes.cover(weight, 0.10 * ring, 0.62 * ring)


def _lumen(
    dyes: Dyes, canvas: Canvas, lumen: Raster, fine: Raster, rng: np.random.Generator
) -> None:
    """Empty, or here and there with granular pink secretion."""
    clump = _noise(canvas, 22.0, rng) - 0.8 + 0.10 * fine
    secretion = np.clip(clump, 0.0, 0.8) * np.clip((lumen - 5.0) / 6.0, 0.0, 1.0)
    dyes.cover(_inside(lumen), 0.03 * secretion, 0.02 + 0.30 * secretion)
