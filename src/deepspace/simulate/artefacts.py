"""What goes wrong with sections: tears, felt pens, bad focus, failed areas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from deepspace.simulate.fields import Floats

_PENS = ((0.10, 0.62, 0.38), (0.12, 0.22, 0.72), (0.16, 0.16, 0.18))  # green, blue, black


@dataclass(frozen=True)
class Tear:
    """A gap that runs from the border of the tissue inwards and narrows.

    Attributes
    ----------
    start, end
        x, y in um from the centre of the image.
    width_um
        Width at the start.
    phase
        Decides how it meanders.
    """

    start: tuple[float, float]
    end: tuple[float, float]
    width_um: float
    phase: float

    @classmethod
    def draw(cls, rng: np.random.Generator, side_um: float) -> Tear:
        """A tear of a section whose capture area has sides of `side_um`."""
        turn = rng.uniform(0, 2 * np.pi)
        way = turn + np.pi + rng.uniform(-0.35, 0.35)
        start = 0.56 * side_um * np.array([np.cos(turn), np.sin(turn)])
        end = start + 0.52 * side_um * np.array([np.cos(way), np.sin(way)])
        width = rng.uniform(0.030, 0.045) * side_um
        return cls((start[0], start[1]), (end[0], end[1]), width, rng.uniform(0, 2 * np.pi))

    def depth(self, xy_um: Floats) -> Floats:
        """Distance to its rim in um, positive inside, for points (n, 2) um from the centre."""
        start, end = np.array(self.start), np.array(self.end)
        length = float(np.hypot(*(end - start)))
        along = (end - start) / length
        offset = xy_um - start
        s = offset @ along
        across = offset @ np.array([-along[1], along[0]])
        meander = 14.0 * np.sin(s / 70.0 + self.phase) + 4.0 * np.sin(s / 17.0 + 2 * self.phase)
        half = 0.5 * self.width_um * np.clip(1.0 - s / length, 0.0, 1.4) + 1.5 * np.sin(s / 6.0)
        inside: Floats = np.where(s < length, half - np.abs(across - meander), length - s)
        return inside


@dataclass(frozen=True)
class Patch:
    """A blob of the section: out of focus, or failed.

    Attributes
    ----------
    centre
        x, y in um from the centre of the image.
    radius_um
        Mean radius.
    phase
        Decides its outline.
    """

    centre: tuple[float, float]
    radius_um: float
    phase: float

    @classmethod
    def draw(cls, rng: np.random.Generator, side_um: float) -> Patch:
        """A blob well inside the tissue."""
        x, y = rng.uniform(-0.24, 0.24, 2) * side_um
        radius = rng.uniform(0.12, 0.15) * side_um
        return cls((x, y), radius, rng.uniform(0, 2 * np.pi))

    def depth(self, xy_um: Floats) -> Floats:
        """Distance to its border in um, positive inside, for points (n, 2) um."""
        offset = xy_um - np.array(self.centre)
        theta = np.arctan2(offset[:, 1], offset[:, 0])
        lobes = 0.20 * np.cos(2 * theta + self.phase) + 0.10 * np.cos(3 * theta - self.phase)
        border: Floats = self.radius_um * (1.0 + lobes) - np.hypot(*offset.T)
        return border


def defocus(image: npt.NDArray[np.uint8], patch: Patch, mpp: float) -> None:
    """Blur `image` (h, w, 3) inside `patch`, in place."""
    depth, window = _raster(image, patch, mpp)
    weight = np.clip(depth / 60.0 + 0.5, 0.0, 1.0)[..., None].astype(np.float32)
    sharp = image[window].astype(np.float32)
    sigma = 3.2 / mpp
    blurred = ndimage.gaussian_filter(sharp, (sigma, sigma, 0.0), truncate=2.5)
    image[window] = np.rint(sharp + weight * (blurred - sharp)).astype(np.uint8)


def pen(image: npt.NDArray[np.uint8], rng: np.random.Generator, mpp: float) -> None:
    """Draw a felt-pen stroke near one side of `image` (h, w, 3), in place."""
    size = image.shape[0]
    width = 0.055 * size
    base, swing, phase = 0.10 * size, rng.uniform(0.01, 0.03) * size, rng.uniform(0, 2 * np.pi)
    colour = np.array(_PENS[rng.integers(len(_PENS))], dtype=np.float32)
    along = np.arange(size)
    middle = base + swing * np.sin(along / size * 5.0 + phase)
    across = np.arange(int(base + swing + width) + 1)[:, None]
    rim = (width / 2 - np.abs(across - middle)) * mpp
    ends = np.minimum(along - 0.12 * size, 0.7 * size - along) * mpp
    inside = np.clip(np.minimum(rim, ends) / 8.0 + 0.5, 0.0, 1.0)
    # ink is uneven along the stroke and gathers at its rim
    streak = 1.0 + 0.12 * np.sin(across / 9.0 + phase) + 0.45 * np.exp(-np.maximum(rim, 0) / 14.0)
    ink = (inside * streak).astype(np.float32)[..., None]
    # a view: the stroke runs along any of the four sides
    strip = np.rot90(image, int(rng.integers(4)))[: len(across)]
    strip[:] = (strip * np.exp(ink * np.log(colour) * 0.75)).astype(np.uint8)


def _raster(
    image: npt.NDArray[np.uint8], patch: Patch, mpp: float
) -> tuple[Floats, tuple[slice, slice]]:
    """Depth of a patch over the window of the image that holds it."""
    size = image.shape[0]
    reach = 1.4 * patch.radius_um + 40.0
    low = [int(max(0, (c - reach) / mpp + size / 2)) for c in patch.centre]
    high = [int(min(size, (c + reach) / mpp + size / 2)) for c in patch.centre]
    rows, cols = np.mgrid[low[1] : high[1], low[0] : high[0]]
    points = (np.column_stack([cols.ravel(), rows.ravel()]) - (size - 1) / 2) * mpp
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    return patch.depth(points).reshape(rows.shape), window
