"""Images of one section as they lie on another."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from deepspace.io.slide import Slide
from deepspace.io.source import Image
from deepspace.registration.transform import Transform

Box = tuple[float, float, float, float]


def warp_image(
    image: Image, image_um_per_px: float, transform: Transform, box_um: Box, um_per_px: float
) -> Image:
    """Show an image of the moving section in the frame of the fixed one.

    Parameters
    ----------
    image
        Of the whole moving slide, uint8 of shape (h, w, 3).
    image_um_per_px
        Size of its pixels.
    transform
        From the moving to the fixed section, um.
    box_um
        Left, top, right, bottom of the window on the fixed section, um.
    um_per_px
        Size of the pixels of the result.

    Returns
    -------
    uint8 of shape (rows, columns, 3); white where the moving slide ends.
    """
    left, top, right, bottom = box_um
    columns, rows = (max(1, round(v / um_per_px)) for v in (right - left, bottom - top))
    y, x = np.indices((rows, columns)) + 0.5
    points = np.stack([left + x * um_per_px, top + y * um_per_px], axis=-1).reshape(-1, 2)
    place = (transform.backward(points) / image_um_per_px - 0.5).T[::-1]
    channels = [
        ndimage.map_coordinates(image[..., c].astype(np.float32), place, order=1, cval=255.0)
        for c in range(3)
    ]
    values = np.clip(np.rint(np.stack(channels, axis=-1)), 0, 255)
    out: Image = values.reshape(rows, columns, 3).astype(np.uint8)
    return out


def warp(slide: Slide, transform: Transform, box_um: Box, um_per_px: float) -> Image:
    """Read a slide as it lies on another section; see `warp_image`.

    Parameters
    ----------
    slide
        The moving section; it must know its mpp.
    transform
        From `slide` to the other section, um.
    box_um
        Left, top, right, bottom on the other section, um.
    um_per_px
        Size of the pixels of the result.

    Raises
    ------
    InputError
        If the mpp is unknown or a tile is damaged.
    """
    mpp = slide.require_mpp()
    downsample = max(1.0, um_per_px / mpp)
    return warp_image(slide.overview(downsample), downsample * mpp, transform, box_um, um_per_px)
