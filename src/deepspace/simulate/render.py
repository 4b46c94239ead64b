"""H&E images of sections: concentrations of two dyes, then Beer-Lambert."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepspace.simulate.canvas import Canvas
from deepspace.simulate.fields import Floats, Raster
from deepspace.simulate.ground import paint_ground
from deepspace.simulate.nuclei import Bank, scatter
from deepspace.simulate.texture import FatCells, fibre_direction
from deepspace.simulate.tissue import Tissue

# optical density of the dyes in R, G, B, unit length: between the stain vectors of Ruifrok &
# Johnston (Anal Quant Cytol Histol 23:291, 2001) and of Macenko et al. (ISBI 2009)
HAEMATOXYLIN = np.array([0.630, 0.700, 0.335])
EOSIN = np.array([0.115, 0.880, 0.460])

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Stain:
    """How one section was stained and scanned.

    Attributes
    ----------
    vectors
        (2, 3) optical density of haematoxylin and a second dye, mostly eosin, in R, G, B.
    strength
        (2,) factor on the concentration of each.
    white
        (3,) intensity of empty glass, 0 to 255.
    """

    vectors: Floats
    strength: Floats
    white: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Stain:
        """A stain of its own for one section."""
        vectors = np.stack([HAEMATOXYLIN, EOSIN]) + rng.normal(scale=0.018, size=(2, 3))
        vectors = np.maximum(vectors, 0.02)
        return cls(
            vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
            np.exp(rng.normal(scale=(0.09, 0.12))),
            np.array([245.0, 244.0, 246.0]) + rng.uniform(-3, 3, 3),
        )


class Renderer:
    """Draws sections of one block; what sections share is made once.

    Parameters
    ----------
    tissue
        The block.
    mpp
        Micrometres per pixel.
    seed
        Decides all that the tissue leaves open.
    """

    def __init__(self, tissue: Tissue, mpp: float, seed: int) -> None:
        self._tissue = tissue
        self._bank = Bank(mpp, seed)
        self._fat = FatCells(tissue, seed)

    def draw(self, canvas: Canvas, stain: Stain, gap: Raster, rng: np.random.Generator) -> Pixels:
        """Draw one section.

        Parameters
        ----------
        canvas
            Where the section lies.
        stain
            Its stain.
        gap
            Tears on the coarse grid: signed um, positive where there is no tissue.
        rng
            Source of everything the block does not share: nuclei, texture, noise.

        Returns
        -------
        ndarray
            uint8 (size, size, 3).
        """
        return develop(*self.dyes(canvas, gap, rng), stain, rng)

    def dyes(self, canvas: Canvas, gap: Raster, rng: np.random.Generator) -> tuple[Raster, Raster]:
        """Concentrations of haematoxylin and eosin, (size, size) each; parameters as of `draw`."""
        local = canvas.tissue(self._tissue)
        local = local._replace(outline=np.minimum(local.outline, -gap))
        angle = fibre_direction(local, canvas.transform.rotation_deg)
        nuclei = scatter(canvas, local, angle, self._fat, rng)
        dyes = paint_ground(canvas, local, angle, nuclei, self._fat, rng)
        haematoxylin, eosin = canvas.to_full(dyes.haematoxylin), canvas.to_full(dyes.eosin)
        del dyes
        chromatin, cover = np.zeros_like(haematoxylin), np.zeros_like(eosin)
        self._bank.stamp(chromatin, cover, nuclei, rng)
        eosin = eosin * (1.0 - 0.55 * cover)
        np.maximum(haematoxylin, chromatin, out=haematoxylin)
        return haematoxylin, eosin


def develop(haematoxylin: Raster, second: Raster, stain: Stain, rng: np.random.Generator) -> Pixels:
    """Light through the dyes (Beer-Lambert), with the noise of the camera.

    Parameters
    ----------
    haematoxylin, second
        (h, w) concentrations of the two dyes of `stain`.
    stain
        Dyes, strengths and white of the section.
    rng
        Source of the noise.

    Returns
    -------
    ndarray
        uint8 (h, w, 3).
    """
    image = np.empty((*haematoxylin.shape, 3), dtype=np.uint8)
    grain = rng.standard_normal(haematoxylin.shape, dtype=np.float32)
    grain *= 1.6
    absorb = (stain.vectors * stain.strength[:, None]).astype(np.float32)
    for channel in range(3):
        light = haematoxylin * -absorb[0, channel]
        light -= second * absorb[1, channel]
        np.exp(light, out=light)
        light *= np.float32(stain.white[channel])
        light += grain
        np.clip(light, 0, 255, out=light)
        image[..., channel] = light
        grain = np.roll(grain, 977, axis=channel % 2)
    return image
