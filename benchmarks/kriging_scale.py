"""Time and memory of `kriging` from 1,000 to 25,000 spots and 5,000 genes.

Simulated sections of Visium's pitch, 16 um apart, with synthetic features and values that vary
smoothly over place and depth. Measured is what kriging adds to its image term: components,
covariances, solving, calibration, and a prediction at every spot of one more section. Each size
runs in a process of its own.

    python benchmarks/kriging_scale.py [--spots 1000 ... 25000] [--genes 5000] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray
from PIL import Image

from deepspace.core.config import KrigingConfig
from deepspace.core.progress import log
from deepspace.data.targets import ExpressionTarget
from deepspace.data.transforms import Null, total_counts
from deepspace.io.section import Section
from deepspace.io.slide import Slide, open_slide
from deepspace.models.baselines import GeneMean
from deepspace.models.kriging import ImageTerm, Kriging
from deepspace.registration.stack import identity_stack

SIZES = (1000, 2000, 4000, 8000, 16000, 25000)
SECTIONS, PITCH, DEPTH_UM = 6, 100.0, 16.0
FEATURES, PROGRAMMES = 192, 20
TIME_LIMIT_S, RSS_LIMIT_GIB = 600.0, 12.0


class Waves:
    """Features that vary over the tissue, the same on every section."""

    fov_um = 100.0

    def __call__(self, slide: Slide, coords: NDArray[np.float64]) -> NDArray[np.float64]:
        """Features at `coords` (points, 2)."""
        rng = np.random.default_rng(1)
        directions = rng.normal(0, 1 / 700.0, (2, FEATURES))
        waves: NDArray[np.float64] = np.sin(coords @ directions + rng.uniform(0, 6, FEATURES))
        return waves


def make_section(folder: Path, number: int, spots: int, genes: int) -> Section:
    """One section with counts from smooth programmes, shared with the sections around it."""
    side = int(np.ceil(np.sqrt(spots)))
    axis = PITCH * (1 + np.arange(side))
    coords = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)[:spots]
    rng = np.random.default_rng(2)
    directions = rng.normal(0, 1 / 1500.0, (2, PROGRAMMES))
    phases = rng.uniform(0, 6, PROGRAMMES) + number * DEPTH_UM / 60
    loadings = rng.normal(0, 0.3, (PROGRAMMES, genes))
    own = np.random.default_rng(10 + number)
    counts = np.empty((spots, genes), np.float32)
    for start in range(0, spots, 1000):
        rate = np.exp(np.sin(coords[start : start + 1000] @ directions + phases) @ loadings)
        counts[start : start + 1000] = own.poisson(rate)
    names = [f"S{number}-{k}" for k in range(spots)]
    data = AnnData(
        sp.csr_matrix(counts),
        obs=pd.DataFrame({"in_tissue": True}, index=names),
        var=pd.DataFrame(index=[f"G{k}" for k in range(genes)]),
    )
    data.obsm["spatial"] = coords
    path = folder / f"{number}.png"
    Image.fromarray(own.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    table = pd.DataFrame({"x": coords[:, 0], "y": coords[:, 1], "in_tissue": True}, index=names)
    slide = open_slide(path).with_mpp(1.0, "simulated")
    return Section(str(number), "P", slide, "st", counts=data, spots=table, z_um=number * DEPTH_UM)


def measure(spots: int, genes: int) -> dict[str, float]:
    """Fit on `spots` spots of six sections and predict one more."""
    with tempfile.TemporaryDirectory() as folder:
        own = spots // SECTIONS
        sections = [make_section(Path(folder), k, own, genes) for k in range(SECTIONS + 1)]
        *training, held_out = sections
        stack = identity_stack(sections)
        first = training[0].require_counts()
        null = Null(np.empty(0), float(np.median(total_counts(first))), 1)
        target = ExpressionTarget(tuple(first.var_names), "log1p_cp10k", null)
        image = ImageTerm(GeneMean, Waves())
        started = time.perf_counter()
        model = Kriging(image, stack, KrigingConfig()).fit(training, target)
        fitted = time.perf_counter()
        rows = np.arange(0, len(held_out.coords), 1000)
        squares, total = 0.0, 0.0
        for start in rows:
            coords = held_out.coords[start : start + 1000]
            found = model.predict(held_out.slide, coords).mean
            measured = target.encode(held_out.require_counts()[start : start + 1000])
            squares += float(((found - measured) ** 2).sum())
            total += float(((measured - model.offset) ** 2).sum())
        done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "spots": spots,
        "genes": genes,
        "fit_s": round(fitted - started, 1),
        "predict_s": round(done - fitted, 1),
        "predicted_spots": len(held_out.coords),
        "r2": round(1 - squares / total, 3),
        "peak_gib": round(peak, 2),
    }


def main() -> int:
    """Print a table; exit status 1 if the largest size is over a limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spots", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--genes", type=int, default=5000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        log.setLevel("ERROR")
        print(json.dumps(measure(options.one, options.genes)))
        return 0
    rows = []
    for spots in options.spots:
        own = ["--one", str(spots), "--genes", str(options.genes)]
        command = [sys.executable, __file__, *own]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    last = rows[-1]
    slow = last["fit_s"] + last["predict_s"] > TIME_LIMIT_S or last["peak_gib"] > RSS_LIMIT_GIB
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
