"""How fast the viewer answers: first tiles, tiles, and values of another gene.

A pyramidal JPEG TIFF of 20,000 x 20,000 px is simulated by repetition, and a prediction of 50,000
points and 18,000 genes is laid out as `predict` writes it (only the genes that are asked for hold
values). A server is started as `deepspace view` does, and asked over HTTP, one request at a time.
Beside the tiles stands the time to decode and encode one JPEG tile, beside the genes the time to
read the same number of bytes raw.

    python benchmarks/viewer.py [--side 20000] [--points 50000] [--genes 18000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import anndata
import h5py
import httpx
import imagecodecs
import numpy as np
import pandas as pd
import uvicorn
from anndata import AnnData

from deepspace.output.write import BAND, CHUNK_VALUES, LEAST_GENES
from deepspace.viewer.app import make_app
from deepspace.viewer.project import open_project
from deepspace.viewer.serve import HOST, _listen
from read_patches import TILE, tissue_tile
from whole_slide import MPP, write_slide

ASKED = 40
TOKEN = "benchmark"


def write_prediction(path: Path, side: int, points: int, genes: int) -> list[str]:
    """A prediction on disk; returns the genes that have values."""
    rng = np.random.default_rng(0)
    names = [f"G{k:05d}" for k in range(genes)]
    chosen = sorted(rng.choice(genes, ASKED, replace=False).tolist())
    obs = pd.DataFrame(index=[f"p{k}" for k in range(points)])
    obs = obs.assign(measured=False, in_tissue=True, ood=False, ood_distance=0.5)
    var = pd.DataFrame({"predictable": True, "score": 0.5, "verdict": "predictable"}, names)
    picture = np.full((200, 200, 3), 230, np.uint8)
    library = {
        "images": {"hires": picture, "lowres": picture},
        "scalefactors": {"tissue_hires_scalef": 200 / side, "spot_diameter_fullres": 110.0},
        "metadata": {"mpp": MPP},
    }
    record = json.dumps({"at": "grid", "target": "expression"})
    bare = AnnData(
        obs=obs,
        var=var,
        obsm={"spatial": rng.uniform(0, side, (points, 2))},
        uns={"deepspace": {"provenance": record}, "spatial": {"W": library}},
    )
    bare.write_h5ad(path)
    wide = max(LEAST_GENES, CHUNK_VALUES // BAND)
    with h5py.File(path, "a") as file:
        file.pop("X", None)
        for name in ("X", "layers/sd", "layers/sd_latent"):
            made = file.create_dataset(
                name, (points, genes), "f4", chunks=(BAND, wide), compression="gzip"
            )
            made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            for first in {gene // wide * wide for gene in chosen}:
                shape = (points, min(wide, genes - first))
                made[:, first : first + wide] = rng.gamma(2.0, 1.0, shape).astype(np.float32)
    assert anndata.read_h5ad(path, backed="r").shape == (points, genes)
    return [names[gene] for gene in chosen]


def timed(client: httpx.Client, path: str, **query: str) -> float:
    """Milliseconds of one request."""
    start = time.perf_counter()
    client.get(path, params=query).raise_for_status()
    return 1000 * (time.perf_counter() - start)


def jpeg() -> float:
    """Milliseconds to decode and encode a tile."""
    tile = tissue_tile(np.random.default_rng(0))
    data = imagecodecs.jpeg8_encode(tile, level=85)
    start = time.perf_counter()
    for _ in range(200):
        imagecodecs.jpeg8_encode(imagecodecs.jpeg8_decode(data), level=85)
    return 1000 * (time.perf_counter() - start) / 200 * (256 / TILE) ** 2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--genes", type=int, default=18_000)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        write_slide(folder / "w.tif", given.side)
        genes = write_prediction(folder / "W.h5ad", given.side, given.points, given.genes)
        (folder / "sheet.csv").write_text("section,patient,image\nW,P,w.tif\n")
        start = time.perf_counter()
        project = open_project(folder / "W.h5ad", sheet=folder / "sheet.csv")
        opened = time.perf_counter() - start
        listener = _listen(0)
        host = f"{HOST}:{listener.getsockname()[1]}"
        server = uvicorn.Server(
            uvicorn.Config(make_app(project, TOKEN, {host}), log_level="warning")
        )
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        headers = {"X-Deepspace-Token": TOKEN}
        with httpx.Client(base_url=f"http://{host}", headers=headers, timeout=60) as client:
            measure(client, genes, opened)
        server.should_exit = True
        thread.join()


def measure(client: httpx.Client, genes: list[str], opened: float) -> None:
    """Ask and print."""
    section = client.get("/api/project").json()["sections"][0]
    image, points = section["image"], section["sets"][0]["id"]
    about = client.get(f"/api/images/{image}").json()
    top = about["max_level"]
    start = time.perf_counter()
    for level in range(8, 12):
        timed(client, f"/api/images/{image}/{level}/0_0.jpg")
    first = time.perf_counter() - start
    rng = np.random.default_rng(1)
    tiles = []
    for _ in range(300):
        level = int(rng.integers(9, top + 1))
        most = max(1, about["width"] // (256 * 2 ** (top - level)))
        column, row = rng.integers(0, most, 2)
        tiles.append(timed(client, f"/api/images/{image}/{level}/{column}_{row}.jpg"))
    switches = [
        timed(client, f"/api/sets/{points}/values", layer="predicted", gene=gene) for gene in genes
    ]
    print(f"project opened in {opened:.1f} s; first four tiles {first:.2f} s (asked 1)")
    usual = statistics.median(tiles)
    print(f"tile: median {usual:.1f} ms (asked 30), {usual / jpeg():.1f} x one JPEG round trip")
    print(
        f"another gene: median {statistics.median(switches):.0f} ms, most {max(switches):.0f} ms "
        "(asked 300)"
    )


if __name__ == "__main__":
    main()
