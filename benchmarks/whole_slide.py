"""Time and memory of predicting whole slides, from the file to the written result.

Pyramidal JPEG TIFFs of growing side are simulated by repetition, with tissue on a third of each
(a disc), and predicted on a grid with a model of a simulated block. Each prediction is a process
of its own, with an empty feature cache. The straight line of time against area is fitted through
all sizes, and the time of decoding every tissue tile once stands beside it as the bound that no
way of reading can beat.

    python benchmarks/whole_slide.py [--sides 25000 50000 100000] [--encoder stain]
                                     [--weights DIR] [--stride 112] [--genes 40]
                                     [--sampling dense] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

import deepspace
from read_patches import TILE, tissue_tile

MPP = 0.25
PERIOD = 16  # tiles after which the tissue repeats
TISSUE_SHARE = 1 / 3
LEAST_SIDE = 1000
SETTINGS = """
[qc]
min_genes = 20
[encoder]
fov_um = [150]
sampling = "{sampling}"
[evaluate]
moves = 2
leak_gap = "none"
"""


def encode(tile: NDArray[np.uint8]) -> bytes:
    """Compress a tile as scanners do."""
    return bytes(
        imagecodecs.jpeg8_encode(
            tile, level=85, colorspace="rgb", outcolorspace="ycbcr", subsampling="420"
        )
    )


def tissue_texture() -> NDArray[np.uint8]:
    """A square of PERIOD x PERIOD tiles."""
    rng = np.random.default_rng(0)
    some = [tissue_tile(rng) for _ in range(24)]
    rows = [np.hstack([some[k] for k in rng.integers(0, len(some), PERIOD)]) for _ in range(PERIOD)]
    return np.vstack(rows)


class Disc:
    """Which tiles of the full resolution are tissue."""

    def __init__(self, side: int) -> None:
        self.across = -(-side // TILE)
        centre = (np.arange(self.across) + 0.5) / self.across - 0.5
        radius = np.sqrt(TISSUE_SHARE / np.pi)
        self.inside = np.hypot(centre[:, None], centre[None]) < radius

    def level(self, side: int, texture: NDArray[np.uint8], step: int) -> Iterator[bytes]:
        """Encoded tiles of the level that is `step` times coarser, row by row."""
        across, period = -(-side // TILE), len(texture)
        white = np.full((TILE, TILE, 3), 245, np.uint8)
        known: dict[tuple[int, int], bytes] = {}
        blank = encode(white)
        for row in range(across):
            y = (row * TILE + np.arange(TILE)) % period
            rows = np.minimum((row * TILE + np.arange(TILE)) * step // TILE, self.across - 1)
            for column in range(across):
                x = (column * TILE + np.arange(TILE)) % period
                columns = (column * TILE + np.arange(TILE)) * step // TILE
                corner = self.inside[
                    np.ix_(np.unique(rows), np.unique(np.minimum(columns, self.across - 1)))
                ]
                key = (int(y[0]), int(x[0]))
                if not corner.any():
                    yield blank
                elif corner.all():
                    if key not in known:
                        known[key] = encode(texture[np.ix_(y, x)])
                    yield known[key]
                else:
                    there = self.inside[np.ix_(rows, np.minimum(columns, self.across - 1))]
                    yield encode(np.where(there[..., None], texture[np.ix_(y, x)], white))


def write_slide(path: Path, side: int) -> int:
    """Write the pyramid; return how many tiles of tissue the full resolution has."""
    disc, texture, step = Disc(side), tissue_texture(), 1
    sizes = [side]
    while sizes[-1] // 2 >= LEAST_SIDE:
        sizes.append(sizes[-1] // 2)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, size in enumerate(sizes):
            resolution = 10000 / (MPP * step)
            file.write(
                disc.level(size, texture, step),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                compression="jpeg",
                photometric="ycbcr",
                subsampling=(2, 2),
                resolution=(resolution, resolution),
                resolutionunit="CENTIMETER",
                subfiletype=0 if number == 0 else 1,
            )
            step *= 2
            halves = texture.reshape(len(texture) // 2, 2, -1, 2, 3).mean(axis=(1, 3))
            texture = np.clip(halves + 0.5, 0, 255).astype(np.uint8)
    return int(disc.inside.sum())


def decode_time(tiles: int) -> float:
    """Seconds to decode so many tiles of tissue in one thread."""
    data = encode(tissue_tile(np.random.default_rng(0)))
    start, number = time.perf_counter(), min(tiles, 2000)
    for _ in range(number):
        imagecodecs.jpeg8_decode(data)
    return (time.perf_counter() - start) * tiles / number


def train(folder: Path, options: argparse.Namespace) -> Path:
    """Train a model on a small simulated block."""
    encoder, weights, genes = options.encoder, options.weights, options.genes
    law = deepspace.simulate.Genes(image=genes)
    config = deepspace.simulate.BlockConfig.preset("tiny", seed=1, genes=law)
    block = deepspace.simulate_block(config)
    sheet = block.write(folder / "block")
    (folder / "settings.toml").write_text(SETTINGS.format(sampling=options.sampling))
    command = [sys.executable, "-m", "deepspace", "train", sheet, "--out", folder / "model"]
    command += ["--genes", f"expressed:{genes}", "--config", folder / "settings.toml", "--quiet"]
    command += ["--encoder", encoder, *(["--weights", weights] if weights else [])]
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
    return folder / "model"


def predict(model: Path, slide: Path, stride: float, weights: str | None) -> dict[str, float]:
    """Run the command line in a process of its own."""
    sheet = slide.with_suffix(".csv")
    sheet.write_text(f"section,patient,image\nW,P,{slide.name}\n")
    out = slide.with_suffix(".h5ad")
    command = [sys.executable, "-m", "deepspace", "predict", model, sheet, "--section", "W"]
    command += ["--at", f"grid:{stride:g}", "--out", out, "--all-genes", "--quiet", "--json"]
    command += ["--overwrite", *(["--weights", weights] if weights else [])]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=slide.parent) as cache:
        environment = {**os.environ, "DEEPSPACE_CACHE": cache}
        words = [str(c) for c in command]
        with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as job:
            assert job.stdout is not None
            printed = job.stdout.read()
            # of this process alone: training had more genes in memory at once
            _, status, usage = os.wait4(job.pid, 0)
            job.returncode = os.waitstatus_to_exitcode(status)
    if job.returncode:
        sys.exit(f"deepspace predict ended with {job.returncode}")
    return {
        "points": json.loads(printed)["points"],
        "wall_s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "rss_gib": usage.ru_maxrss / (1 << 20),
    }


def main() -> None:
    """Measure every size and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[25000, 50000, 100000])
    parser.add_argument("--encoder", default="stain")
    parser.add_argument("--weights")
    parser.add_argument("--stride", type=float, default=112.0)
    parser.add_argument("--genes", type=int, default=40)
    parser.add_argument("--sampling", choices=("dense", "crop"), default="dense")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        model = train(folder, options)
        rows = []
        for side in sorted(options.sides):
            slide = folder / f"w{side}.tif"
            bound = decode_time(write_slide(slide, side))
            found = predict(model, slide, options.stride, options.weights)
            rows.append((side**2 / 1e9, found["wall_s"]))
            print(
                f"{side:7d} px: {found['points']:6.0f} points, {found['wall_s']:7.1f} s "
                f"({found['cpu_s']:7.1f} CPU), {found['wall_s'] / bound:5.2f} x decoding its "
                f"tissue once, {found['points'] / found['wall_s']:5.1f} points/s, "
                f"peak {found['rss_gib']:.2f} GiB, file {slide.stat().st_size / 1e9:.2f} GB, "
                f"result {slide.with_suffix('.h5ad').stat().st_size / 1e9:.2f} GB",
                flush=True,
            )
            slide.unlink()
        if len(rows) > 2:
            area, seconds = np.array(rows).T
            slope, start = np.polyfit(area, seconds, 1)
            worst = np.abs(start + slope * area - seconds).max() / seconds.max()
            print(f"time = {start:.0f} s + {slope:.1f} s per 10^9 px; off by {worst:.1%} at most")


if __name__ == "__main__":
    main()
