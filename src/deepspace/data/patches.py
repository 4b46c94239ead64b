"""Square patches of tissue around points, of a physical size."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepspace.core.ahead import ahead
from deepspace.core.errors import InputError
from deepspace.data.cache import ArrayCache
from deepspace.data.stain import StainNormaliser
from deepspace.io.slide import Slide
from deepspace.io.source import Image, threads

READING = 1  # raise it when the same request gives other pixels: old cache entries then rest


@dataclass(frozen=True)
class PatchSpec:
    """A square patch around a point.

    Attributes
    ----------
    fov_um
        Side of the field of view in micrometres.
    size_px
        Side of the patch in pixels.

    Examples
    --------
    >>> PatchSpec(fov_um=112, size_px=224).um_per_px
    0.5
    """

    fov_um: float
    size_px: int

    def __post_init__(self) -> None:
        if not (np.isfinite(self.fov_um) and 0 < self.fov_um <= 100_000):
            raise InputError(
                f"fov_um is {self.fov_um}: give a field of view in micrometres, as 112"
            )
        if not (isinstance(self.size_px, int) and 1 <= self.size_px <= 8192):
            raise InputError(f"size_px is {self.size_px}: give whole pixels from 1 to 8192, as 224")

    @property
    def um_per_px(self) -> float:
        """Micrometres per patch pixel."""
        return self.fov_um / self.size_px


def check_coords(coords: ArrayLike) -> NDArray[np.float64]:
    """Return `coords` as float64 of shape (n, 2), x and y in full-resolution pixels.

    Raises
    ------
    InputError
        If the shape is another or a value is not finite.
    """
    points = np.asarray(coords, np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise InputError(f"coords have the shape {points.shape}: give x, y per point, shape (n, 2)")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        raise InputError(f"{bad.size} points have no finite coordinates, first point {bad[0]}")
    return points


def read_patch(slide: Slide, x: float, y: float, spec: PatchSpec) -> Image:
    """Read the patch centred on x, y (full-resolution pixels); see `read_patches`."""
    side = spec.fov_um / slide.require_mpp()
    corner = (x - side / 2, y - side / 2)
    return slide.resample(corner, (side, side), (spec.size_px, spec.size_px))


def read_patches(
    slide: Slide, coords: ArrayLike, spec: PatchSpec, *, batch: int = 64
) -> Iterator[tuple[NDArray[np.int64], Image]]:
    """Read the patches around many points, in the order in which the tiles lie in the file.

    The patch of a point is the same, to the byte, whichever other points are asked for. Parts
    outside the slide are white.

    Parameters
    ----------
    slide
        Where to read; it must know its mpp.
    coords
        Centres x, y in full-resolution pixels, shape (n, 2).
    spec
        Physical and pixel size.
    batch
        Patches at once.

    Yields
    ------
    index
        Rows of `coords`, shape (b,).
    patches
        uint8 of shape (b, size_px, size_px, 3).

    Raises
    ------
    InputError
        If the mpp is unknown, coordinates are wrong, or a tile is damaged.
    """
    points = check_coords(coords)
    order = _tile_order(slide, points, spec)

    def one(row: np.int64) -> Image:
        return read_patch(slide, float(points[row, 0]), float(points[row, 1]), spec)

    # while a batch is used the next one is read
    with (
        ThreadPoolExecutor(threads()) as pool,
        closing(ahead(pool, one, order, depth=batch)) as found,
    ):
        for start in range(0, len(order), batch):
            index = order[start : start + batch]
            yield index, np.stack([patch for _, patch in islice(found, len(index))])


def read_all(
    slide: Slide,
    coords: ArrayLike,
    spec: PatchSpec,
    *,
    normaliser: StainNormaliser | None = None,
    cache: ArrayCache | None = None,
) -> Image:
    """Read all patches at once, in the order of `coords`.

    Parameters
    ----------
    slide, coords, spec
        As for `read_patches`.
    normaliser
        Brings the stains of this section to the reference.
    cache
        Where the patches are kept, under the content of the slide and all that shapes them.

    Returns
    -------
    uint8 of shape (n, size_px, size_px, 3)
    """
    points = check_coords(coords)

    def read() -> Image:
        out = np.empty((len(points), spec.size_px, spec.size_px, 3), np.uint8)
        for index, patches in read_patches(slide, points, spec):
            out[index] = patches if normaliser is None else normaliser.apply(patches)
        return out

    if cache is None:
        return read()
    recipe = {
        "kind": f"patches {READING}",
        "slide": slide.content_hash(),
        "mpp": slide.require_mpp(),
        "spec": asdict(spec),
        "coords": points,
        "stain": None if normaliser is None else asdict(normaliser),
    }
    return cache.get(recipe, read)


def _tile_order(slide: Slide, points: NDArray[np.float64], spec: PatchSpec) -> NDArray[np.int64]:
    """Rows of `points` by tile row of the level that will be read, then by x."""
    side = spec.fov_um / slide.require_mpp()
    level = slide.level_for(side / spec.size_px)
    tile_height = slide.block(level)[1] * slide.levels[level].downsample
    tile_row = np.floor((points[:, 1] - side / 2) / tile_height)
    return np.lexsort((points[:, 1], points[:, 0], tile_row)).astype(np.int64)


def white_threshold(patches: Image, quantile: float = 0.8) -> float:
    """Brightness above which a pixel of this section counts as white.

    It is a quantile of the mean brightness of the section's patches, as in DeepSpaCE (Monjo et
    al., Scientific Reports 12:4133, 2022; 80 % there), so it follows the exposure of the slide.

    Parameters
    ----------
    patches
        All patches of one section, uint8 of shape (n, h, w, 3).
    quantile
        Between 0 and 1.
    """
    means = [patch.mean() for patch in patches]
    return float(np.quantile(means, quantile))


def white_fraction(patches: Image, threshold: float) -> NDArray[np.float64]:
    """Share of white pixels, all three channels above `threshold`, in each patch, shape (n,)."""
    return np.array([(patch > threshold).all(axis=-1).mean() for patch in patches], np.float64)


def white_patches(
    patches: Image, *, quantile: float = 0.8, share: float = 0.5
) -> NDArray[np.bool_]:
    """Tell which patches of a section are mostly empty glass.

    The filter of DeepSpaCE (Monjo et al. 2022): a patch is white when more than half of its
    pixels are brighter, in all three channels, than the 80 % quantile of the patches' mean
    brightness. It looks at all patches of the section, so it serves to choose training patches
    and never to make a prediction.

    Parameters
    ----------
    patches
        All patches of one section, uint8 of shape (n, h, w, 3).
    quantile, share
        The two limits, between 0 and 1.

    Returns
    -------
    bool of shape (n,)

    Examples
    --------
    >>> tissue = np.full((9, 4, 4, 3), 150, np.uint8)
    >>> glass = np.full((1, 4, 4, 3), 240, np.uint8)
    >>> white_patches(np.concatenate([tissue, glass])).nonzero()[0]
    array([9])
    """
    if not len(patches):
        return np.zeros(0, np.bool_)
    return white_fraction(patches, white_threshold(patches, quantile)) > share
