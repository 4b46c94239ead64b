"""Pixels of any colour model as RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepspace.core.errors import InputError
from deepspace.io.source import Image


def grey_to_rgb(grey: NDArray[np.uint8]) -> Image:
    """Repeat grey values, shape (h, w), in three channels."""
    return np.repeat(grey[..., None], 3, axis=2)


def over_white(rgb: Image, alpha: NDArray[np.uint8], *, premultiplied: bool = False) -> Image:
    """Lay a picture with transparency over white.

    Parameters
    ----------
    rgb
        Colours, shape (h, w, 3).
    alpha
        Opacity, shape (h, w); 0 is transparent.
    premultiplied
        Whether the colours are already multiplied by the opacity.
    """
    if alpha.min() == 255:
        return np.ascontiguousarray(rgb)
    a = alpha[..., None].astype(np.uint16)
    front = rgb.astype(np.uint16) * (255 if premultiplied else a)
    # never above 255, even where a premultiplied colour exceeds its opacity
    mixed: Image = np.minimum((front + 255 * (255 - a) + 127) // 255, 255).astype(np.uint8)
    return mixed


def refuse(path: Path, what: str) -> InputError:
    """Make the error for a picture that is not 8-bit RGB, with the cure."""
    return InputError(
        f"{path}: {what}; deepspace reads 8-bit RGB, RGBA, palette or grey H&E images. "
        f"Convert it, for instance: vips colourspace '{path.name}' rgb.v srgb && "
        f"vips tiffsave rgb.v '{path.stem}_rgb.tif' --tile --pyramid --bigtiff "
        "--compression jpeg --Q 90"
    )
