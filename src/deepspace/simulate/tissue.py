"""The tissue of the block, as functions of x, y, z that all sections share."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from deepspace.simulate.fields import Floats, RandomField, Raster

# a class is painted over those before it
CLASSES: Final = ("stroma", "tumour", "lymphocytes", "fat", "epithelium", "lumen", "glass")
# nuclei per mm2 of a 5 um section where cellularity is 0, in the order of CLASSES
NUCLEI_PER_MM2: Final = np.array([1900.0, 6000.0, 17000.0, 350.0, 9500.0, 0.0, 0.0])
# how strongly log density follows cellularity
CELLULARITY: Final = np.array([0.55, 0.22, 0.0, 0.0, 0.0, 0.0, 0.0])
_QUADRATURE = 91
_Z_REACH_UM = 120.0


class Local(NamedTuple):
    """What the tissue is at points, each an array of one shape.

    The first six are about signed distances in um, positive inside; the rest are smooth,
    with mean 0 and variance 1 over the block (`angle` in radians).
    """

    outline: Raster
    nest: Raster
    lymph: Raster
    fat: Raster
    duct: Raster
    lumen: Raster
    cellularity: Raster
    grade: Raster
    collagen: Raster
    angle: Raster


class _Ducts(NamedTuple):
    centre: Floats  # (n, 2) um at z = 0
    slope: Floats  # (n, 2) um per um of z
    radius: Floats  # (n,)
    wall: Floats  # (n,)
    stretch: Floats  # (n,) long over short axis
    angle: Floats  # (n,)


class Tissue:
    """A block of breast-carcinoma-like tissue centred at x = y = 0.

    Parameters
    ----------
    seed
        Decides the tissue; `numpy.random.default_rng` takes it.
    side_um
        Side of the capture area that the tissue about fills.
    z_um
        Lowest and highest section; the tissue goes on 120 um beyond.
    """

    def __init__(self, seed: int, side_um: float, z_um: tuple[float, float]) -> None:
        rng = np.random.default_rng([seed, 1])
        self.side_um = side_um
        half = 0.62 * side_um
        low, high = z_um[0] - _Z_REACH_UM, z_um[1] + _Z_REACH_UM
        self.box = np.array([[-half, -half, low], [half, half, high]])
        # coarse structures shrink with small blocks, so that every class occurs in them
        coarse = min(1.0, side_um / 1600.0)
        lengths = {
            "outline": (0.06 * side_um, 160.0),
            "ragged": (11.0, 30.0),
            "nest": (27.0, 36.0),
            "tumour": (190.0 * coarse, 160.0),
            "wobble": (26.0, 45.0),
            "lobed": (30.0, 45.0),
            "fat": (170.0 * coarse, 160.0),
            "cellularity": (110.0 * coarse, 120.0),
            "grade": (170.0 * coarse, 150.0),
            "collagen": (130.0 * coarse, 120.0),
            "angle": (150.0 * coarse, 150.0),
        }
        self._fields = {
            name: RandomField(rng, self.box, xy, z) for name, (xy, z) in lengths.items()
        }
        self._ducts = _draw_ducts(rng, side_um)
        self._blobs = self._draw_blobs(rng)
        self._fat_side = rng.uniform(0, 2 * np.pi)

    def _draw_blobs(self, rng: np.random.Generator) -> Floats:
        """Lymphocyte aggregates (n, 4): x, y, z, radius; at the border of the tumour."""
        n = max(2, round(11 * (self.side_um / 2000.0) ** 2))
        low, high = 0.8 * self.box
        trial = rng.uniform(low, high, size=(60 * n, 3))
        border = np.abs(self._fields["tumour"].at(trial) - 0.1)
        inside = np.hypot(trial[:, 0], trial[:, 1]) < 0.4 * self.side_um
        chosen = trial[np.argsort(border + 10.0 * ~inside, kind="stable")[:n]]
        reach = min(1.0, self.side_um / 1400.0)
        return np.column_stack([chosen, rng.uniform(55.0, 130.0, n) * reach])

    def local(self, xyz: Floats) -> Local:
        """Evaluate the tissue at points.

        Parameters
        ----------
        xyz
            (n, 3) um in the block.

        Returns
        -------
        Local
            Arrays of shape (n,).
        """
        values = {name: field.at(xyz) for name, field in self._fields.items()}
        outline = self._outline(xyz, values)
        duct, lumen = self._tubes(xyz, values["wobble"])
        toward = xyz[:, :2] @ np.array([np.cos(self._fat_side), np.sin(self._fat_side)])
        fat = 55.0 * (values["fat"] + 3.4 * toward / self.side_um - 1.4)
        # nests keep off the ducts: a cuff of stroma
        crowd = 26.0 * np.exp(-np.square(np.minimum(duct, 0.0) / 22.0))
        nest = 20.0 * (values["nest"] + 0.75 * values["tumour"] - 0.25) - crowd
        parts = (outline, nest, self._lymph(xyz, values["lobed"]), fat, duct, lumen)
        smooth = (values["cellularity"], values["grade"], values["collagen"])
        angle = 1.3 * values["angle"]
        return Local(*(p.astype(np.float32) for p in (*parts, *smooth, angle)))

    def _outline(self, xyz: Floats, values: dict[str, Raster]) -> Floats:
        wide, high = 0.475 * self.side_um, 0.445 * self.side_um
        power = 3.4  # between an ellipse and a rectangle, as a trimmed block
        radius = (np.abs(xyz[:, 0] / wide) ** power + np.abs(xyz[:, 1] / high) ** power) ** (
            1 / power
        )
        bump: Floats = 0.028 * self.side_um * values["outline"] + 3.5 * values["ragged"]
        return (1.0 - radius) * high + bump

    def _tubes(self, xyz: Floats, wobble: Raster) -> tuple[Floats, Floats]:
        duct = np.full(len(xyz), -1e3)
        lumen = np.full(len(xyz), -1e3)
        x, y, z = np.ascontiguousarray(xyz.T)
        for centre, slope, radius, wall, stretch, angle in zip(*self._ducts, strict=True):
            east, north = x - (centre[0] + z * slope[0]), y - (centre[1] + z * slope[1])
            box = radius * stretch + 120.0
            near = np.flatnonzero((np.abs(east) < box) & (np.abs(north) < box))
            east, north = east[near], north[near]
            u = east * np.cos(angle) + north * np.sin(angle)
            v = north * np.cos(angle) - east * np.sin(angle)
            reach = np.hypot(u / np.sqrt(stretch), v * np.sqrt(stretch))
            depth = radius * (1.0 + 0.13 * wobble[near]) - reach
            inner = depth - wall * (1.0 + 0.22 * np.cos(3 * np.arctan2(v, u) + angle))
            better = depth > duct[near]
            duct[near[better]] = depth[better]
            lumen[near[better]] = inner[better]
        return duct, lumen

    def _lymph(self, xyz: Floats, lobed: Raster) -> Floats:
        level = np.full(len(xyz), -1e3)
        for x, y, z, radius in self._blobs:
            near = np.flatnonzero(
                (np.abs(xyz[:, 0] - x) < 2 * radius) & (np.abs(xyz[:, 1] - y) < 2 * radius)
            )
            # flat in z, so that neighbouring sections share it
            offset = (xyz[near] - (x, y, z)) * (1.0, 1.0, 0.6)
            depth = radius * (1.0 + 0.28 * lobed[near]) - np.linalg.norm(offset, axis=1)
            level[near] = np.maximum(level[near], depth)
        return level

    def composition(self, xyz: Floats, radius_um: float) -> tuple[Floats, Floats]:
        """Mean tissue over a disc in the plane of the section.

        Parameters
        ----------
        xyz
            (n, 3) um, centres.
        radius_um
            Radius of the disc.

        Returns
        -------
        fractions : ndarray
            (n, 7) area of each of `CLASSES`; rows sum to 1.
        moments : ndarray
            (n, 3) nuclei per mm2, mean of grade where tumour, mean of collagen where stroma.
        """
        disc = disc_points(radius_um)
        points = np.repeat(xyz, len(disc), axis=0)
        points[:, :2] += np.tile(disc, (len(xyz), 1))
        local = self.local(points)
        kind = classify(local)
        density = NUCLEI_PER_MM2[kind] * np.exp(CELLULARITY[kind] * local.cellularity)
        one_hot = kind[:, None] == np.arange(len(CLASSES))
        moments = np.column_stack(
            [density, local.grade * one_hot[:, 1], local.collagen * one_hot[:, 0]]
        )
        shape = (len(xyz), len(disc), -1)
        return one_hot.reshape(shape).mean(axis=1), moments.reshape(shape).mean(axis=1)


def classify(local: Local) -> npt.NDArray[np.int8]:
    """Index into `CLASSES` at each point, same shape as the arrays of `local`."""
    kind = np.zeros(local.outline.shape, dtype=np.int8)
    layers = (local.nest, local.lymph, local.fat, local.duct, local.lumen, -local.outline)
    for index, level in enumerate(layers, start=1):
        kind[level > 0] = index
    return kind


def disc_points(radius_um: float) -> Floats:
    """Evenly spread points of a disc (Vogel's sunflower), (91, 2) um."""
    k = np.arange(_QUADRATURE) + 0.5
    radius, turn = radius_um * np.sqrt(k / _QUADRATURE), k * np.pi * (3 - np.sqrt(5))
    return np.column_stack([radius * np.cos(turn), radius * np.sin(turn)])


def _draw_ducts(rng: np.random.Generator, side_um: float) -> _Ducts:
    """Large ducts on their own and lobules of small acini."""
    reach, scale = 0.36 * side_um, (side_um / 2000.0) ** 2
    n_large, n_lobules = max(2, round(6 * scale)), max(1, round(4 * scale))
    large = rng.uniform(-reach, reach, size=(n_large, 2))
    lobules = np.repeat(rng.uniform(-reach, reach, size=(n_lobules, 2)), 6, axis=0)
    acini = lobules + rng.normal(scale=62.0, size=lobules.shape)
    centre = np.concatenate([large, acini])
    small = np.arange(len(centre)) >= n_large
    radius = np.where(small, rng.uniform(24, 40, len(centre)), rng.uniform(60, 115, len(centre)))
    wall = np.where(small, rng.uniform(13, 17, len(centre)), rng.uniform(16, 25, len(centre)))
    return _Ducts(
        centre=centre,
        slope=rng.normal(scale=0.35, size=centre.shape),
        radius=radius,
        wall=wall,
        stretch=rng.uniform(1.05, 1.9, len(centre)),
        angle=rng.uniform(0, np.pi, len(centre)),
    )
