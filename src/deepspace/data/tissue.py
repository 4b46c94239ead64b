"""Where the tissue is on a slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage import filters, morphology

from deepspace.io.slide import Slide
from deepspace.io.source import Image

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

_PADDING = 16  # darker than any tissue: what was cut out of a masked image
_SMOOTH_UM = 12.0
_TEXTURE_UM = 24.0
_CLOSE_UM = 28.0
_OPEN_UM = 12.0
_HALO_UM = 36.0
_SPECK_MM2 = 0.05
_THIN_UM = 90.0
_DOT_MM2 = 0.06
_HOLE_MM2 = 0.05
_STROKE_UM = 24.0
_INK_RIM_UM = 30.0


@dataclass(frozen=True)
class TissueMask:
    """Tissue of one slide.

    Attributes
    ----------
    mask
        True where tissue is, shape (h, w).
    downsample
        Full-resolution pixels per pixel of the mask.
    """

    mask: Mask
    downsample: float

    def contains(self, coords: ArrayLike) -> Mask:
        """Tell which points lie on tissue.

        Parameters
        ----------
        coords
            x, y in full-resolution pixels, shape (n, 2). Points outside the slide are not on
            tissue.

        Returns
        -------
        bool of shape (n,)

        Examples
        --------
        >>> tissue = TissueMask(np.array([[False, True]]), downsample=10.0)
        >>> tissue.contains([[5, 5], [15, 5], [25, 5]])
        array([False,  True, False])
        """
        points = np.asarray(coords, np.float64).reshape(-1, 2)
        column, row = np.floor(points / self.downsample).astype(np.int64).T
        height, width = self.mask.shape
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        out = np.zeros(len(points), np.bool_)
        out[inside] = self.mask[row[inside], column[inside]]
        return out

    def fraction(self) -> float:
        """Share of the slide that is tissue."""
        return float(self.mask.mean())


def tissue_mask(slide: Slide, *, um_per_px: float = 8.0) -> TissueMask:
    """Find the tissue of an H&E slide.

    Parameters
    ----------
    slide
        It must know its mpp.
    um_per_px
        Resolution of the mask; a coarser slide keeps its own.

    Returns
    -------
    TissueMask

    Raises
    ------
    InputError
        If the mpp is unknown or a tile is damaged.
    """
    mpp = slide.require_mpp()
    downsample = max(1.0, um_per_px / mpp)
    return TissueMask(find_tissue(slide.overview(downsample), mpp * downsample), downsample)


def find_tissue(image: Image, um_per_px: float) -> Mask:
    """Find the tissue in a picture of a whole slide.

    Tissue absorbs red light, because nuclei hold haematoxylin, or has texture. Spilt eosin
    absorbs green only and is smooth; printed dots and fiducials are small; ink and the rims of
    air bubbles have colours that H&E cannot make. Light is measured against the glass of the
    same slide.

    Parameters
    ----------
    image
        uint8 of shape (h, w, 3).
    um_per_px
        Size of its pixels.

    Returns
    -------
    bool of shape (h, w)
    """
    px = 1.0 / um_per_px
    cut_out = _padding(image)
    density = _density_over_glass(image, cut_out)
    foreign = cut_out | ink_mask(density, px)
    density[foreign] = 0.0
    density[_printed_dots(density, px)] = 0.0

    evidence = ndimage.gaussian_filter(density[..., 0], _SMOOTH_UM * px)
    evidence += _texture(density[..., 1], foreign, _TEXTURE_UM * px)
    strong = _threshold(evidence[~foreign])
    weak = 0.6 * strong
    found = filters.apply_hysteresis_threshold(evidence, weak, strong)  # type: ignore[no-untyped-call]
    found &= ~foreign

    found = ndimage.binary_opening(found, _disk(_OPEN_UM * px))
    closed = morphology.closing(np.pad(found, 8), _disk(_CLOSE_UM * px))[8:-8, 8:-8]
    closed = morphology.remove_small_holes(closed, max_size=_area(_HOLE_MM2, px))
    # blurred evidence reaches beyond the edge of the tissue
    closed = ndimage.binary_erosion(closed, _disk(_HALO_UM * px), border_value=1)
    found = _pieces(closed & ~foreign, px)
    filled: Mask = morphology.remove_small_holes(found, max_size=_area(_HOLE_MM2, px))
    return filled & ~foreign


def _padding(image: Image) -> Mask:
    """Black or pure white areas that were cut out of the picture, with their blurred rim."""
    black = image.max(axis=2) < _PADDING
    black = ndimage.binary_opening(black, np.ones((5, 5), bool))
    rim: Mask = ndimage.binary_dilation(black, np.ones((5, 5), bool))
    return rim


def _density_over_glass(image: Image, cut_out: Mask) -> Floats:
    """Optical density against the brightest common colour, shape (h, w, 3), never negative."""
    empty = cut_out | (image.min(axis=2) == 255)
    seen = image[~empty] if not empty.all() else image.reshape(-1, 3)
    # a picture of tissue alone has no glass: what is bright there is not as bright as glass
    glass = np.maximum(np.percentile(seen, 95, axis=0), 190.0)
    table = np.log(glass + 1.0)[None] - np.log(np.arange(256) + 1.0)[:, None]
    table = np.maximum(table, 0.0).astype(np.float32)
    return np.stack([table[image[..., c], c] for c in range(3)], axis=-1)


def ink_mask(density: Floats, px: float) -> Mask:
    """Pen marks, thick dust and the rims of bubbles: colours outside the H&E gamut.

    Haematoxylin and eosin both absorb most in green and haematoxylin least in blue. Blue and
    green inks absorb most in red, blue ones hardly in blue; black ink, dust and shadows absorb
    all alike.
    """
    soft = ndimage.uniform_filter(density, (3, 3, 1))
    red, green, blue = np.moveaxis(soft, -1, 0)
    coloured = (red > 1.4 * green) | ((red > green) & (blue < 0.35 * red))
    coloured &= red > 0.35
    least, most = soft.min(axis=-1), soft.max(axis=-1)
    # the darker, the surer: tissue under black ink still lends it some colour
    grey = ((least > 0.9 * most) & (green > 0.25)) | ((least > 0.75 * most) & (green > 1.2))
    # single pixels of that colour occur in tissue; a stroke is wider
    size = max(2, round(_STROKE_UM * px))
    core = ndimage.binary_opening(coloured | grey, np.ones((size, size), bool))
    grown = ndimage.binary_dilation(core, _disk(_INK_RIM_UM * px))
    pale = (most > 0.05) & ((red > 1.25 * green) | (blue > 0.8 * red))
    ink: Mask = core | (grown & pale)
    return ink


def _printed_dots(density: Floats, px: float) -> Mask:
    """Small separate spots that are brown or grey, as the fiducials of arrays are."""
    labels, count = ndimage.label(ndimage.uniform_filter(density[..., 0], 2) > 0.12)
    if count == 0:
        return np.zeros(labels.shape, np.bool_)
    numbers = np.arange(count + 1)
    green, blue = (ndimage.sum_labels(density[..., c], labels, numbers) for c in (1, 2))
    area = np.bincount(labels.ravel(), minlength=count + 1)
    dot = (area < _area(_DOT_MM2, px)) & (blue > 0.85 * green)
    dot[0] = False
    # with the pale rim that the scanner's optics give a dot
    rim: Mask = ndimage.binary_dilation(dot[labels], iterations=2)
    return rim


def _pieces(found: Mask, px: float) -> Mask:
    """Keep the pieces that are large and somewhere wide; hairs and folds of film are neither."""
    labels, count = ndimage.label(found)
    width = ndimage.distance_transform_edt(np.pad(found, 1, mode="edge"))[1:-1, 1:-1]
    widest = np.atleast_1d(ndimage.maximum(width, labels, np.arange(count + 1)))
    area = np.bincount(labels.ravel(), minlength=count + 1)
    keep = (widest >= _THIN_UM * px) & (area >= _area(_SPECK_MM2, px))
    keep[0] = False
    kept: Mask = keep[labels]
    return kept


def _area(mm2: float, px: float) -> int:
    return round(mm2 * (1000.0 * px) ** 2)


def _texture(density: Floats, foreign: Mask, sigma: float) -> Floats:
    """Local standard deviation, from the pixels that are not foreign."""
    known = (~foreign).astype(np.float32)
    weight = np.maximum(ndimage.gaussian_filter(known, sigma), 1e-3)
    mean = ndimage.gaussian_filter(density * known, sigma) / weight
    square = ndimage.gaussian_filter(density**2 * known, sigma) / weight
    spread: Floats = np.sqrt(np.maximum(square - mean**2, 0.0))
    return spread


def _threshold(evidence: Floats) -> float:
    """Otsu's limit, kept where glass or tissue alone cannot pull it."""
    if not evidence.size:
        return 0.2
    otsu = filters.threshold_otsu(evidence)  # type: ignore[no-untyped-call]
    return float(np.clip(otsu * 0.6, 0.10, 0.20))


def _disk(radius: float) -> Mask:
    reach = max(1, round(radius))
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    footprint: Mask = x**2 + y**2 <= reach**2
    return footprint
