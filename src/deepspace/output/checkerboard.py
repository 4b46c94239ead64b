"""A registered pair in alternating squares: edges that run on were laid over each other well."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from deepspace.io.slide import Slide
from deepspace.io.source import Image
from deepspace.output.canvas import add_scale_bar, new_figure
from deepspace.registration.register import Registration
from deepspace.registration.transform import Transform
from deepspace.registration.warp import warp

_PANEL_IN = 4.0
_GAP_IN = 0.15
_HEAD_IN = 0.55
_PIXELS = 1000


def checkerboard(first: Image, second: Image, squares: int = 10) -> Image:
    """Mix two images of one size, (h, w, 3), in `squares` squares along the longer side.

    Examples
    --------
    >>> black, white = np.zeros((2, 4, 3), np.uint8), np.full((2, 4, 3), 255, np.uint8)
    >>> checkerboard(black, white, squares=4)[..., 0]
    array([[  0, 255,   0, 255],
           [255,   0, 255,   0]], dtype=uint8)
    """
    side = max(1, round(max(first.shape[:2]) / squares))
    rows, columns = np.indices(first.shape[:2]) // side
    return np.where(((rows + columns) % 2 == 0)[..., None], first, second)


def registered_pair(
    moving: Slide, fixed: Slide, registration: Registration, *, title: str = ""
) -> Figure:
    """Draw a pair before registration, with the affine map and with the deformation.

    Parameters
    ----------
    moving, fixed
        The slides.
    registration
        From `deepspace.registration.register.register`.
    title
        What the pair is called; the names of the files if empty.

    Returns
    -------
    Figure
        Three checkerboards on the fixed slide, and what the scores say.
    """
    mpp = fixed.require_mpp()
    box = (0.0, 0.0, fixed.width * mpp, fixed.height * mpp)
    um_per_px = max(mpp, max(box[2:]) / _PIXELS)
    below = warp(fixed, Transform.identity(), box, um_per_px)
    steps = {
        "as scanned": Transform.identity(),
        "affine": registration.affine,
        "with deformation": registration.transform,
    }
    aspect = box[3] / box[2]
    width = len(steps) * (_PANEL_IN + _GAP_IN) + _GAP_IN
    height = _PANEL_IN * aspect + _HEAD_IN + _GAP_IN
    figure = new_figure(width, height)
    for number, (label, transform) in enumerate(steps.items()):
        left = _GAP_IN + number * (_PANEL_IN + _GAP_IN)
        axes = figure.add_axes(
            (left / width, _GAP_IN / height, _PANEL_IN / width, _PANEL_IN * aspect / height)
        )
        mixed = checkerboard(below, warp(moving, transform, box, um_per_px))
        axes.imshow(mixed, extent=(0.0, box[2], box[3], 0.0), interpolation="antialiased")
        axes.set(xticks=[], yticks=[])
        axes.set_title(label, fontsize=8)
        axes.spines[:].set(linewidth=0.5, color="0.6")
        add_scale_bar(axes, box, 1.0)
    pair = title or f"{moving.path.stem} on {fixed.path.stem}"
    heading = f"{pair}: {registration.reason()}"
    figure.text(_GAP_IN / width, 1 - 0.08 / height, heading, fontsize=8, va="top")
    return figure
