"""How fast patches are read from a whole slide, beside naive reading.

Writes a tiled JPEG TIFF of 20,000 x 20,000 pixels (256 px tiles) with synthetic tissue, then
reads 5,000 patches of 224 px at random places, each way in a process of its own.

    python benchmarks/read_patches.py [--side 20000] [--patches 5000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import resource
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

from deepspace.data.patches import PatchSpec, read_patches
from deepspace.io.slide import open_slide
from deepspace.io.source import threads

MPP = 0.5
PATCH_PX = 224
TILE = 256
VARIANTS = 24
NAIVE_SHARE = 10
CPU_LIMIT_S = 4.0
RSS_LIMIT_GIB = 1.0


def tissue_tile(rng: np.random.Generator) -> NDArray[np.uint8]:
    """One tile of purple nuclei on pink ground with film grain, about 12 kB as JPEG."""
    rows, columns = np.mgrid[:TILE, :TILE].astype(np.float32)
    density = np.zeros((TILE, TILE), np.float32)
    for x, y, radius in rng.uniform((0, 0, 6), (TILE, TILE, 14), (70, 3)):
        distance = np.hypot(columns - x, rows - y) / radius
        density += np.clip(1.6 - 1.2 * distance, 0, 1)
    ground = 0.35 + 0.1 * np.sin(columns / 9 + rng.uniform(0, 6)) * np.cos(rows / 13)
    haematoxylin, eosin = np.array([0.56, 0.72, 0.41]), np.array([0.22, 0.80, 0.56])
    absorbed = density[..., None] * haematoxylin + ground[..., None] * eosin
    light = 240 * np.exp(-absorbed) + rng.normal(0, 5, (TILE, TILE, 3))
    tile: NDArray[np.uint8] = np.clip(light, 0, 255).astype(np.uint8)
    return tile


def write_slide(path: Path, side: int) -> float:
    """Write the slide from a few encoded tiles, used again and again; return bytes per tile."""
    rng = np.random.default_rng(0)
    tiles = [
        imagecodecs.jpeg8_encode(
            tissue_tile(rng), level=85, colorspace="rgb", outcolorspace="ycbcr", subsampling="420"
        )
        for _ in range(VARIANTS)
    ]
    across = -(-side // TILE)

    def stream() -> Iterator[bytes]:
        for choice in rng.integers(0, VARIANTS, across * across):
            yield tiles[choice]

    tifffile.imwrite(
        path,
        stream(),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(TILE, TILE),
        compression="jpeg",
        photometric="ycbcr",
        subsampling=(2, 2),
        resolution=(10000 / MPP, 10000 / MPP),
        resolutionunit="CENTIMETER",
    )
    return float(np.mean([len(tile) for tile in tiles]))


def read_ordered(path: Path, coords: NDArray[np.float64]) -> int:
    """Read with deepspace; return the number of patches."""
    spec = PatchSpec(fov_um=PATCH_PX * MPP, size_px=PATCH_PX)
    return sum(len(index) for index, _ in read_patches(open_slide(path), coords, spec))


def read_naive(path: Path, coords: NDArray[np.float64]) -> int:
    """Decode the tiles under each patch anew, in the order given, as a plain dataset does."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        across = -(-page.imagewidth // TILE)
        for x, y in (coords - PATCH_PX / 2).astype(int):
            window = np.full((PATCH_PX + 2 * TILE, PATCH_PX + 2 * TILE, 3), 255, np.uint8)
            for row in range(max(y // TILE, 0), (y + PATCH_PX - 1) // TILE + 1):
                for column in range(max(x // TILE, 0), (x + PATCH_PX - 1) // TILE + 1):
                    number = row * across + column
                    file.filehandle.seek(page.dataoffsets[number])
                    data = file.filehandle.read(page.databytecounts[number])
                    decoded = page.decode(data, number, jpegtables=page.jpegtables)[0]
                    tile = np.asarray(decoded)[0]
                    top, left = row * TILE - y + TILE, column * TILE - x + TILE
                    window[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
            window[TILE : TILE + PATCH_PX, TILE : TILE + PATCH_PX].copy()
    return len(coords)


WAYS = {"ordered": read_ordered, "naive": read_naive}


def measure(way: str, path: Path, side: int, patches: int) -> dict[str, float]:
    """Run one way in a process of its own; CPU seconds and memory include its start."""
    command = [sys.executable, __file__, "--way", way, "--slide", str(path)]
    command += ["--side", str(side), "--patches", str(patches)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def work(way: str, path: Path, side: int, patches: int) -> None:
    """Read in this process and print what it cost."""
    margin = PATCH_PX / 2
    coords = np.random.default_rng(1).uniform(margin, side - margin, (patches, 2))
    start = time.perf_counter()
    done = WAYS[way](path, coords)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cost = {
        "patches": done,
        "wall_s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "rss_gib": usage.ru_maxrss / (1 << 20),
    }
    print(json.dumps(cost))


def compare(folder: Path, side: int, patches: int) -> bool:
    """Write the slide, measure both ways, print; return whether the limits hold."""
    path = folder / "slide.tif"
    size = write_slide(path, side)
    cores = threads()
    megabytes = path.stat().st_size / 1e6
    print(f"slide: {side} x {side} px, {megabytes:.0f} MB, {size / 1e3:.1f} kB a tile")
    ordered = measure("ordered", path, side, patches)
    some = max(1, patches // NAIVE_SHARE)
    naive = measure("naive", path, side, some)
    per_core = ordered["cpu_s"] / cores
    naive_cpu = naive["cpu_s"] * patches / some
    print(
        f"read_patches: {patches} patches of {PATCH_PX} px, {ordered['cpu_s']:.2f} CPU s on "
        f"{cores} cores = {per_core:.2f} a core, {ordered['wall_s']:.2f} s wall, "
        f"peak memory {ordered['rss_gib']:.2f} GiB"
    )
    print(
        f"naive, shuffled: {naive['cpu_s']:.2f} CPU s for {some}, so about {naive_cpu:.1f} for "
        f"{patches} (extrapolated): {naive_cpu / ordered['cpu_s']:.1f} times as much"
    )
    held = per_core <= CPU_LIMIT_S and ordered["rss_gib"] < RSS_LIMIT_GIB
    limits = f"{CPU_LIMIT_S:g} CPU s a core, {RSS_LIMIT_GIB:g} GiB"
    print(f"limits ({limits}): {'held' if held else 'MISSED'}")
    return held


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="How fast patches are read from a whole slide.")
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--patches", type=int, default=5_000)
    parser.add_argument("--folder", type=Path, help="where the slide is written for a while")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--slide", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        work(given.way, given.slide, given.side, given.patches)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        held = compare(Path(folder), given.side, given.patches)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
