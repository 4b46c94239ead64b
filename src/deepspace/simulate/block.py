"""A simulated block: sections, counts, images and the truth behind them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.simulate.artefacts import Patch, Tear, defocus, pen
from deepspace.simulate.canvas import Canvas
from deepspace.simulate.config import Artefacts, BlockConfig
from deepspace.simulate.counts import PROGRAMMES, Law, draw_counts
from deepspace.simulate.fields import Floats, Raster
from deepspace.simulate.geometry import SPOT_UM, Transform, barcodes, spot_lattice
from deepspace.simulate.render import Pixels, Renderer, Stain
from deepspace.simulate.tissue import CLASSES, Tissue, classify, disc_points

_FAILED = 0.03  # of the usual counts
_SPOT_NOISE = 0.22  # sd of log depth between spots, on top of the tissue
_SECTION_NOISE = 0.20  # sd of log depth between sections


@dataclass(frozen=True)
class SimulatedSection:
    """One section of a `Block`.

    Attributes
    ----------
    section, z_um
        Name and depth in the block.
    transform
        The true map from its pixels to the block.
    stain
        Its dyes.
    artefacts
        What went wrong with it, and where: `tear`, `blur` and `failed` are none where it did not.
    spots
        Every spot of the capture area: index barcode; x, y (px), in_tissue, array_row,
        array_col, failed.
    counts
        Raw counts of all `spots`, (n_spots, genes); nothing where not in tissue.
    """

    section: str
    z_um: float
    transform: Transform
    stain: Stain
    artefacts: Artefacts
    tear: Tear | None
    blur: Patch | None
    failed: Patch | None
    spots: pd.DataFrame
    counts: sparse.csr_matrix

    def centred(self, coords: Floats) -> Floats:
        """Pixels ``(n, 2)`` as um from the centre of the image."""
        centre = (self.transform.size_px - 1) / 2
        return (np.asarray(coords, dtype=float) - centre) * self.transform.mpp


class Block:
    """A tissue block of which everything is known; make it with `simulate_block`.

    Attributes
    ----------
    config : BlockConfig
    tissue : Tissue
        The tissue as a function of x, y, z.
    sections : dict of str to SimulatedSection
        In the order of z.
    """

    def __init__(self, config: BlockConfig) -> None:
        self.config = config
        span = (0.0, (config.n_sections - 1) * config.spacing_um)
        self.tissue = Tissue(config.seed, config.side_um, span)
        self._law = Law(self.tissue, config.genes, config.seed, span)
        names = barcodes(len(self._lattice()), np.random.default_rng([config.seed, 5]))
        self.sections = {name: self._section(i, name, names) for i, name in enumerate(config.names)}
        self._renderer: Renderer | None = None

    @property
    def law(self) -> pd.DataFrame:
        """One row per gene: what its expression follows; see `deepspace.simulate.counts.Law`."""
        return self._law.table.copy()

    @property
    def genes(self) -> list[str]:
        """Gene names, the order of the columns everywhere."""
        return [str(name) for name in self._law.table.index]

    def _lattice(self) -> pd.DataFrame:
        config = self.config
        return spot_lattice(config.side_um, config.margin_um, config.mpp)

    def _section(self, index: int, name: str, names: list[str]) -> SimulatedSection:
        config = self.config
        rng = np.random.default_rng([config.seed, 6, index])
        # the first section lies straight, so that the block has a natural frame
        turn, *shift = rng.uniform(-1, 1, 3) * (index > 0)
        size = round((config.side_um + 2 * config.margin_um) / config.mpp)
        transform = Transform(
            config.mpp,
            float(turn * config.rotation_deg),
            (float(shift[0] * config.shift_um), float(shift[1] * config.shift_um)),
            size,
        )
        chosen = config.artefacts.get(name, Artefacts())
        # drawn in any case, so that an artefact changes nothing else of the section
        tear, blur, failed = (
            Tear.draw(rng, config.side_um),
            Patch.draw(rng, config.side_um),
            Patch.draw(rng, config.side_um),
        )
        bare = SimulatedSection(
            section=name,
            z_um=index * config.spacing_um,
            transform=transform,
            stain=Stain.draw(rng),
            artefacts=chosen,
            tear=tear if chosen.tear else None,
            blur=blur if chosen.out_of_focus else None,
            failed=failed if chosen.failed_area else None,
            spots=self._lattice().set_index(pd.Index(names, name="barcode")),
            counts=sparse.csr_matrix((0, 0)),
        )
        return self._measure(bare, rng)

    def _measure(self, bare: SimulatedSection, rng: np.random.Generator) -> SimulatedSection:
        """Find the spots in tissue and draw their counts."""
        spots = bare.spots.copy()
        coords = spots[["x", "y"]].to_numpy(float)
        xyz = self._lift(bare, coords)
        covered = self._covered(bare, coords)
        centred = bare.centred(coords)
        spots["in_tissue"] = covered >= 0.5
        spots["failed"] = bare.failed.depth(centred) > 0 if bare.failed else False
        shares, rna = self._law.shares(xyz)
        noise = rng.normal(scale=_SPOT_NOISE, size=len(spots)) + rng.normal(scale=_SECTION_NOISE)
        depth = self.config.depth * np.exp(noise)
        # floor: some RNA diffuses even into a lumen
        depth *= np.maximum(rna, 0.12) * covered
        depth *= np.where(spots["failed"].to_numpy(), _FAILED, 1.0) * spots["in_tissue"].to_numpy()
        mean = depth[:, None] * shares
        counts = draw_counts(mean, self._law.table["dispersion"].to_numpy(), rng)
        return SimulatedSection(**{**vars(bare), "spots": spots, "counts": counts})

    def _covered(self, section: SimulatedSection, coords: Floats) -> Floats:
        """Part of the spot at each point that tissue covers, (n,)."""
        disc = disc_points(SPOT_UM / 2)
        points = np.repeat(coords, len(disc), axis=0)
        points += np.tile(disc / section.transform.mpp, (len(coords), 1))
        local = self.tissue.local(self._lift(section, points))
        present = local.outline > 0
        if section.tear is not None:
            present &= section.tear.depth(section.centred(points)) < 0
        covered: Floats = present.reshape(len(coords), -1).mean(axis=1)
        return covered

    def _lift(self, section: SimulatedSection, coords: Floats) -> Floats:
        xy = section.transform.to_block(coords)
        return np.column_stack([xy, np.full(len(xy), section.z_um)])

    def _get(self, section: str) -> SimulatedSection:
        if section not in self.sections:
            raise InputError(
                f"section {section!r} does not exist; choose one of {sorted(self.sections)}"
            )
        return self.sections[section]

    def counts(self, section: str) -> AnnData:
        """Raw counts of the spots in tissue, as an AnnData with ``obsm['spatial']`` in pixels.

        `obs` has in_tissue, array_row, array_col and failed; `var` is the law.

        Raises
        ------
        InputError
            If there is no such section.
        """
        found = self._get(section)
        inside = found.spots["in_tissue"].to_numpy()
        spots = found.spots[inside]
        return AnnData(
            found.counts[inside].astype(np.float32),
            obs=spots[[keys.IN_TISSUE, keys.ARRAY_ROW, keys.ARRAY_COL, "failed"]],
            var=self.law,
            obsm={keys.SPATIAL: spots[["x", "y"]].to_numpy(float)},
        )

    def truth(self, section: str, coords: Floats) -> Raster:
        """Expected expression at any points of a section.

        Parameters
        ----------
        section
            Name.
        coords
            (n, 2) x, y, full-resolution pixels; any points, in tissue or not.

        Returns
        -------
        ndarray
            (n, genes) ``log1p(10_000 * mu / mu.sum())`` with ``mu`` the expected counts of a
            55 um spot there; depth, noise and artefacts do not enter.

        Raises
        ------
        InputError
            If there is no such section.
        """
        return self.truth_at(self._lift(self._get(section), np.asarray(coords, dtype=float)))

    def truth_at(self, xyz_um: Floats) -> Raster:
        """The same as `truth`, at points ``(n, 3)`` um of the block, at any depth."""
        shares, _ = self._law.shares(np.asarray(xyz_um, dtype=float))
        return np.log1p(1e4 * shares).astype(np.float32)

    def morphology(self, section: str, coords: Floats) -> pd.DataFrame:
        """The standardised tissue properties around points that image genes follow, (n, 8)."""
        xyz = self._lift(self._get(section), np.asarray(coords, dtype=float))
        return pd.DataFrame(self._law.programmes(xyz), columns=list(PROGRAMMES))

    def tissue_class(self, section: str, coords: Floats) -> list[str]:
        """Name of the tissue class (one of `CLASSES`) at points ``(n, 2)`` px."""
        xyz = self._lift(self._get(section), np.asarray(coords, dtype=float))
        return [CLASSES[i] for i in classify(self.tissue.local(xyz))]

    def image(self, section: str) -> Pixels:
        """Draw the H&E image of a section, uint8 (size, size, 3); about 4 s for 15 Mpx.

        Raises
        ------
        InputError
            If there is no such section.
        """
        found, config = self._get(section), self.config
        if self._renderer is None:
            self._renderer = Renderer(self.tissue, config.mpp, config.seed)
        rng = np.random.default_rng([config.seed, 7, list(self.sections).index(section)])
        canvas = Canvas(found.transform, found.z_um)
        gap = np.full((canvas.coarse_size,) * 2, -1e3, dtype=np.float32)
        if found.tear is not None:
            depth = found.tear.depth(found.centred(canvas.pixels(canvas.coarse)))
            gap = depth.astype(np.float32).reshape(gap.shape)
        image = self._renderer.draw(canvas, found.stain, gap, rng)
        if found.blur is not None:
            defocus(image, found.blur, config.mpp)
        if found.artefacts.pen_mark:
            pen(image, rng, config.mpp)
        return image

    def write(self, folder: Path | str, *, overwrite: bool = False) -> Path:
        """Write the block as Space Ranger folders with images, a cohort sheet and the truth.

        Parameters
        ----------
        folder
            Where to; see `deepspace.simulate.write.write_block` for what is in it.
        overwrite
            Replace a block that is there.

        Returns
        -------
        Path
            The cohort sheet.

        Raises
        ------
        InputError
            If `folder` holds a block and `overwrite` is false, or anything else.
        """
        # here, because writing needs the class that this module defines
        from deepspace.simulate.write import write_block  # noqa: PLC0415

        return write_block(self, Path(folder), overwrite=overwrite)


def simulate_block(config: BlockConfig | None = None) -> Block:
    """Simulate a block of serial sections with known expression.

    Parameters
    ----------
    config
        What to make; the demo block if not given.

    Returns
    -------
    Block
        Counts are drawn; images are drawn when asked for.

    Examples
    --------
    >>> from deepspace.simulate import BlockConfig, simulate_block
    >>> block = simulate_block(BlockConfig.preset("tiny"))
    >>> spots = block.sections["S1"].spots
    >>> block.truth("S1", spots[["x", "y"]].to_numpy()).shape == (len(spots), len(block.genes))
    True
    """
    return Block(config or BlockConfig())
