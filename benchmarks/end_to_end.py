"""From a Space Ranger folder to a super-resolved map, beside the naive way with the same network.

One section of 6.5 mm with about 5,000 spots and an image of 20,000 x 20,000 px is simulated.
`deepspace train` learns from it and `deepspace predict --at between` fills the places between its
spots, both from an empty cache. The naive way, as it was done in 2022: every tile is cut out of the
image into a TIFF file of its own, read back, and pushed through the whole network in float32,
32 at a time; its time is measured on some tiles of every step and multiplied, and fitting costs it
nothing. Both read one field of view.

    python benchmarks/end_to_end.py [--weights DIR] [--side-um 6500] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

import deepspace
from deepspace.data.patches import PatchSpec, read_patch
from deepspace.io.section import Section
from deepspace.models.backbones import VGG16

MPP = 0.325
FOV_UM = 150.0
SIDE_PX = 224
SAMPLE = 96
BATCH = 32
# neither asks for scores of held-out data, which the naive way does not give
SETTINGS = f"""
[encoder]
fov_um = [{FOV_UM:g}]
sampling = "dense"
[evaluate]
moves = 0
leak_gap = "none"
"""
# lines of the log that end a part of the work
TRAIN = {
    "reading and features": "fold 1 of",
    "held-out scores": "fitting",
    "fit, odd images, report": "end",
}
PREDICT = {"reading, model, slide verdict": "predicting", "points and writing": "end"}


def simulate(folder: Path, side_um: float) -> Path:
    """Write the section; return its Space Ranger folder."""
    block = deepspace.simulate_block(
        deepspace.simulate.BlockConfig.preset(
            "visium", side_um=side_um, mpp=MPP, n_sections=1, unmeasured=(), artefacts={}
        )
    )
    block.write(folder / "block")
    return folder / "block" / "sheet.csv"


def run(folder: Path, *words: object) -> tuple[str, list[tuple[float, str]]]:
    """Run the command line; what it printed, and what it said on the way with the seconds."""
    environment = {**os.environ, "DEEPSPACE_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    said: list[tuple[float, str]] = []
    with (folder / "stdout").open("w+", encoding="utf-8") as out:
        command = [sys.executable, "-m", "deepspace", *map(str, words)]
        job = subprocess.Popen(
            command, env=environment, stdout=out, stderr=subprocess.PIPE, text=True
        )
        assert job.stderr is not None
        for line in job.stderr:
            said.append((time.perf_counter() - start, line.strip()))
        if job.wait():
            raise SystemExit("\n".join(line for _, line in said))
        said.append((time.perf_counter() - start, "end"))
        out.seek(0)
        return out.read(), said


def phases(said: list[tuple[float, str]], marks: dict[str, str]) -> str:
    """Seconds between the lines that begin with the marks."""
    parts, last = [], 0.0
    for name, mark in marks.items():
        found = next((when for when, line in said if line.startswith(mark)), None)
        if found is not None:
            parts.append(f"{name} {found - last:.0f} s")
            last = found
    return ", ".join(parts)


def timed(work: Callable[[], object]) -> float:
    """Seconds a tile."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) / SAMPLE


def naive(section: Section, coords: NDArray[np.float64], folder: Path) -> dict[str, float]:
    """Seconds a tile of each step."""
    chosen = coords[np.random.default_rng(0).choice(len(coords), SAMPLE, replace=False)]
    spec = PatchSpec(FOV_UM, SIDE_PX)
    names = [folder / f"tile{k}.tif" for k in range(SAMPLE)]
    network = VGG16().eval()
    read: list[NDArray[np.uint8]] = []

    def cut() -> None:
        for name, (x, y) in zip(names, chosen, strict=True):
            tifffile.imwrite(name, read_patch(section.slide, float(x), float(y), spec))

    def read_back() -> None:
        read.extend(np.asarray(tifffile.imread(name)) for name in names)

    def push() -> None:
        with torch.inference_mode():
            for start in range(0, SAMPLE, BATCH):
                part = torch.from_numpy(np.stack(read[start : start + BATCH])).float()
                network.layer_outputs(part.permute(0, 3, 1, 2).contiguous(), [network.layers[-1]])

    return {"cut": timed(cut), "read back": timed(read_back), "network": timed(push)}


def main() -> None:
    """Measure both ways and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--side-um", type=float, default=6500.0)
    parser.add_argument("--genes", default="expressed:300")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        sheet = simulate(folder, given.side_um)
        (folder / "settings.toml").write_text(SETTINGS)
        (section,) = deepspace.read_sheet(sheet)
        slide = section.slide
        print(f"{len(section.coords)} spots, {slide.width} x {slide.height} px", flush=True)
        learn = ["--encoder", "vgg16", "--weights", given.weights, "--genes", given.genes]
        learn += ["--config", folder / "settings.toml", "--out", folder / "model"]
        _, learning = run(folder, "train", sheet, *learn)
        use = ["--at", "between", "--out", folder / "map.h5ad", "--all-genes", "--json"]
        said, predicting = run(folder, "predict", folder / "model", sheet, *use)
        points = json.loads(re.sub(r"^[^{]*", "", said))["points"]
        total = learning[-1][0] + predicting[-1][0]
        print(f"deepspace: train {learning[-1][0]:.0f} s ({phases(learning, TRAIN)}),", flush=True)
        print(f"    predict {predicting[-1][0]:.0f} s ({phases(predicting, PREDICT)})", flush=True)
        steps = naive(section, section.coords, folder)
        tiles = len(section.coords) + points
        parts = ", ".join(f"{step} {tiles * cost:.0f} s" for step, cost in steps.items())
        alone = tiles * sum(steps.values())
        print(f"naive: {parts}, all {alone:.0f} s for {tiles} tiles (from {SAMPLE})")
        print(f"{alone / total:.1f} times as fast (asked 10)")
        scoring = phases(learning, TRAIN).partition("held-out scores ")[2].partition(" s")[0]
        rest = total - float(scoring)
        print(
            f"{alone / rest:.1f} times without the scores on held-out data, which it does not give"
        )


if __name__ == "__main__":
    main()
