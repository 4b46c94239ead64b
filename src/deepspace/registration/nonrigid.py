"""The smooth deformation that an affine map leaves."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.registration import optical_flow_tvl1

from deepspace.core.config import RegistrationConfig
from deepspace.registration.prepare import Floats, Mask, Picture
from deepspace.registration.transform import Field, FloatArray, Transform

_BLUR_PX = 1.0
_REACH_PX = 12
_NODE_PX = 4


def deform(
    moving: Picture, fixed: Picture, affine: Transform, config: RegistrationConfig
) -> Transform:
    """Add the displacement that optical flow finds between two aligned pictures.

    TV-L1 (Zach, Pock & Bischof, DAGM 2007) on the contrast of both. Where only one of the
    sections has tissue the pictures say nothing: the displacement is continued smoothly from
    where both have.

    Parameters
    ----------
    moving, fixed
        Pictures of the same pixel size.
    affine
        From the moving to the fixed section, um.
    config
        `attachment`, `tightness`, `contrast_px` and `smooth_px` are used.

    Returns
    -------
    An invertible map.
    """
    shape = moving.mask.shape
    mapped = affine.forward(moving.points())
    seen = moving.contrast(_BLUR_PX, config.contrast_px)
    other = fixed.look(fixed.contrast(_BLUR_PX, config.contrast_px), mapped).reshape(shape)
    both = _near(moving.mask) & _near((fixed.look(fixed.mask, mapped) > 0.5).reshape(shape))
    weight: Floats = ndimage.gaussian_filter(both.astype(np.float32), 2.0)
    row, column = optical_flow_tvl1(  # type: ignore[no-untyped-call]
        (seen * weight).astype(np.float32),
        (other * weight).astype(np.float32),
        attachment=config.attachment,
        tightness=config.tightness,
        num_warp=config.warps,
    )
    # the flow is in pixels of the moving section; the field adds to mapped points
    flow = np.stack([column, row], axis=-1) * moving.um_per_px
    smooth = _smooth(flow, both, config.smooth_px) @ affine.linear.T
    return Transform(affine.matrix, _on_grid(moving, smooth)).checked()


def _near(mask: Mask) -> Mask:
    grown: Mask = ndimage.binary_dilation(mask, iterations=_REACH_PX)
    return grown


def _smooth(flow: FloatArray, known: Mask, sigma_px: float) -> FloatArray:
    """Gaussian mean of the known flow; far from any, the mean of all of it."""
    weight = known.astype(np.float64)
    if not known.any():
        return np.zeros_like(flow)
    overall = flow[known].mean(axis=0)
    total = np.zeros_like(flow)
    mass = np.full(known.shape, 1e-9)
    # a wider mean reaches where a narrow one knows nothing
    for widen, trust in ((1.0, 1.0), (4.0, 1e-3), (16.0, 1e-6)):
        sigma = sigma_px * widen
        mass += trust * ndimage.gaussian_filter(weight, sigma)
        for axis in (0, 1):
            part = ndimage.gaussian_filter((flow[..., axis] - overall[axis]) * weight, sigma)
            total[..., axis] += trust * part
    out: FloatArray = total / mass[..., None] + overall
    return out


def _on_grid(picture: Picture, values: FloatArray) -> Field:
    """Displacement at every few pixels' centre."""
    nodes = np.ascontiguousarray(values[::_NODE_PX, ::_NODE_PX])
    x, y = picture.origin_um
    half = picture.um_per_px / 2
    return Field((x + half, y + half), picture.um_per_px * _NODE_PX, nodes)
