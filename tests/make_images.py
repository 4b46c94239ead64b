"""Small images for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

H, W = 150, 170


def picture(height: int = H, width: int = W, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 200, y % 200, (x + y) % 200], -1).astype(np.uint8)


def tiff(path: Path, image: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, image, photometric=options.pop("photometric", "rgb"), **options)
    return path


def halves(image: np.ndarray, levels: int) -> list[np.ndarray]:
    out = [image]
    for _ in range(levels):
        last = out[-1]
        h, w = last.shape[0] // 2 * 2, last.shape[1] // 2 * 2
        mean = last[:h, :w].reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3))
        out.append(mean.astype(np.uint8))
    return out


def pyramid(path: Path, *, sub: bool, extra: np.ndarray | None = None, reduced: int = 1) -> Path:
    full, *rest = halves(smooth(501, 403), 2)
    with tifffile.TiffWriter(path, ome=path.name.endswith("ome.tif")) as writer:
        options = {"tile": (64, 64), "photometric": "rgb"}
        meta = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        writer.write(full, subifds=2 if sub else 0, metadata=meta, **options)
        for level in rest:
            writer.write(level, subfiletype=reduced, metadata=None, **options)
        if extra is not None:  # a label: striped
            writer.write(extra, photometric="rgb", metadata=None)
    return path


def noise(n: int, side: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
