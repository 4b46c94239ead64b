"""Immunohistochemistry of one gene on a further section of a simulated block."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepspace.core.errors import InputError
from deepspace.simulate.block import Block
from deepspace.simulate.canvas import Canvas, enlarge
from deepspace.simulate.fields import Raster
from deepspace.simulate.geometry import Transform
from deepspace.simulate.render import HAEMATOXYLIN, Pixels, Renderer, Stain, develop
from deepspace.simulate.write import write_pyramid

# optical density of DAB in R, G, B (Ruifrok & Johnston 2001), unit length
DAB = np.array([0.268, 0.570, 0.776])

_GRID_UM = 25.0
_COUNTERSTAIN = 0.55  # haematoxylin of IHC against that of H&E
_DARKEST = 2.2  # concentration of DAB where the gene is highest
_UNSPECIFIC = 0.06


@dataclass(frozen=True)
class IHCSection:
    """A section stained for the protein of one gene.

    Attributes
    ----------
    gene, z_um
        What is stained, and the depth in the block.
    image
        uint8 (size, size, 3).
    transform
        The true map from its pixels to the block.
    """

    gene: str
    z_um: float
    image: Pixels
    transform: Transform

    def write(self, path: Path | str) -> Path:
        """Write it as a pyramid (``.ome.tif``) that knows its mpp."""
        write_pyramid(Path(path), self.image, self.transform.mpp)
        return Path(path)


def draw_ihc(block: Block, gene: str, *, z_um: float, seed: int = 0) -> IHCSection:
    """Cut one more section of a block and stain it for a gene with DAB and haematoxylin.

    DAB follows the expected expression of the gene (its share of the RNA) and lies where cells
    and fibres are, so that gaps and fat stay white. The section has a rotation, a shift, nuclei
    and dyes of its own, as every section of the block.

    Parameters
    ----------
    block
        From `simulate_block`.
    gene
        One of `block.genes`; protein is taken to follow RNA.
    z_um
        Depth in the block, for instance 5 um below one of its sections.
    seed
        Of all that is its own.

    Raises
    ------
    InputError
        If there is no such gene.

    Examples
    --------
    >>> from deepspace.simulate import BlockConfig, simulate_block
    >>> block = simulate_block(BlockConfig.preset("tiny"))
    >>> draw_ihc(block, "IMG001", z_um=5.0).image.shape
    (1020, 1020, 3)
    """
    if gene not in block.genes:
        raise InputError(
            f"gene {gene!r} is not in the block; choose one of its {block.genes[0]} ..."
        )
    config = block.config
    rng = np.random.default_rng([config.seed, 8, seed])
    turn, *shift = rng.uniform(-1, 1, 3)
    size = next(iter(block.sections.values())).transform.size_px
    transform = Transform(
        config.mpp,
        float(turn * config.rotation_deg),
        (float(shift[0] * config.shift_um), float(shift[1] * config.shift_um)),
        size,
    )
    canvas = Canvas(transform, z_um)
    gap = np.full((canvas.coarse_size,) * 2, -1e3, dtype=np.float32)
    renderer = Renderer(block.tissue, config.mpp, config.seed)
    haematoxylin, eosin = renderer.dyes(canvas, gap, rng)
    # what eosin colours is where protein can be
    matter = np.clip(eosin / 0.4, 0.0, 1.5)
    dab = matter * (_UNSPECIFIC + _DARKEST * _expression(block, gene, canvas))
    stain = Stain.draw(rng)
    brown = DAB + rng.normal(scale=0.015, size=3)
    dyes = np.stack([HAEMATOXYLIN, brown / np.linalg.norm(brown)])
    stain = Stain(dyes, stain.strength, stain.white)
    image = develop(_COUNTERSTAIN * haematoxylin, dab.astype(np.float32), stain, rng)
    return IHCSection(gene, z_um, image, transform)


def _expression(block: Block, gene: str, canvas: Canvas) -> Raster:
    """Expected expression of a gene over the image, 0 to about 1, (size, size)."""
    step = max(1, round(_GRID_UM / canvas.transform.mpp))
    logged = block.truth_at(canvas.lift(canvas.pixels(step)))[:, block.genes.index(gene)]
    share = np.expm1(logged)
    side = -(-canvas.size // step)
    grid = (
        (share / max(float(np.percentile(share, 99)), 1e-9)).reshape(side, side).astype(np.float32)
    )
    return np.clip(enlarge(grid, canvas.size, canvas.size / step), 0.0, 1.2)
