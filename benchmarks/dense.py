"""Dense features beside crops: cost of a point, difference, score of a probe.

Costs are processor time of one run on a slide of artificial tissue, or on C3 of her2st where the
shared data are there: a region without its border, points at strides from 224 to 16 pixels of the
encoder's own resolution. Crops cost the same at every stride. Run it alone, on one thread:

    OMP_NUM_THREADS=1 python benchmarks/dense.py [--encoder NAME]... [--shared DIR] [--probe GENES]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deepspace.core.config import Config
from deepspace.core.metrics import pearson
from deepspace.data.coords import reference_points
from deepspace.data.patches import PatchSpec, read_patches
from deepspace.data.targets import fit_target
from deepspace.data.tissue import tissue_mask
from deepspace.io.slide import Slide, open_slide
from deepspace.models.dense import dense_features
from deepspace.models.encoders import Encoder, load_encoder, needs_weights
from deepspace.models.network import stained_patch
from deepspace.models.network_maps import NetworkMaps
from deepspace.models.registry import MODELS, Workbench
from deepspace.workflows.cohort import default_cache, measured_after_qc, read_cohort

STRIDES = (224, 112, 64, 32, 16)
REGION_PX = 1344
CROPS = 48
FOV_UM = 150.0
TILES = 24
POINTS = 10
PART_PX = 1600
MIDDLE = (4000.0, 4000.0)
HELD_OUT = "C3"

Floats = NDArray[np.float64]


def seconds(work: Callable[[], object]) -> float:
    """Processor time of `work` over all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def cost(slide: Slide, crop: Encoder, dense: Encoder) -> None:
    """Milliseconds a point by crops and by the map."""
    (spec,), maps = dense.specs, dense.maps
    assert maps is not None
    step = spec.um_per_px / slide.require_mpp()
    region = maps.core_px * -(-REGION_PX // maps.core_px)
    # the first window of the region, so that the fields fill whole windows
    corner = np.ceil(np.array(MIDDLE) / step / maps.core_px) * maps.core_px
    corner = np.minimum(corner, (slide.width / step - region) // maps.core_px * maps.core_px)

    def points(stride: int) -> Floats:
        axis = np.arange(spec.size_px / 2, region - spec.size_px / 2 + 0.5, stride)
        return (np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2) + corner) * step

    def crops(at: Floats) -> None:
        for _, patches in read_patches(slide, at, spec):
            crop(patches)

    some = points(32)
    some = some[:: max(1, len(some) // CROPS)][:CROPS]
    crops(some[:16])
    dense_features(slide, some[:1], spec, maps)
    one = seconds(lambda: crops(some)) / len(some)
    print(f"{dense.name} ({dense.precision}): crop {1e3 * one:.1f} ms a point", flush=True)
    for stride in STRIDES:
        at = points(stride)
        spent = seconds(lambda at=at: dense_features(slide, at, spec, maps)) / len(at)
        print(
            f"  stride {stride:3d} px, {len(at):5d} points: dense {1e3 * spent:8.2f} ms a point, "
            f"{one / spent:6.1f} times cheaper",
            flush=True,
        )


def differences(slide: Slide, crop: Encoder, dense: Encoder) -> None:
    """Dense features of a network against crops with its own halo, and against plain crops."""
    (spec,), maps = dense.specs, dense.maps
    if not isinstance(maps, NetworkMaps):
        return
    points = reference_points(slide, tissue_mask(slide), at_most=TILES)
    found = dense_features(slide, points, spec, maps)
    wide = spec.size_px + 2 * maps.halo_px
    seen = PatchSpec(spec.fov_um * wide / spec.size_px, wide)
    with_halo, plain = np.empty_like(found), np.empty_like(found)
    for index, patches in read_patches(slide, points, seen):
        for row, patch in zip(index, patches, strict=True):
            with_halo[row] = pooled(maps, patch)
    for index, patches in read_patches(slide, points, spec):
        plain[index] = crop(patches)
    for name, reference in (("crops with halo", with_halo), ("plain crops", plain)):
        gap = np.linalg.norm(found - reference, axis=1) / np.linalg.norm(reference, axis=1)
        spread = np.sqrt(((found - reference) ** 2).mean() / reference.var(axis=0).mean())
        print(
            f"  against {name}: relative difference {gap.mean():.2%} (largest {gap.max():.2%}), "
            f"{spread:.1%} of the spread between {len(points)} tiles",
            flush=True,
        )


def placement(slide: Slide, dense: Encoder, folder: Path) -> None:
    """How far features depend on where windows begin: the same tissue on a slide cut elsewhere."""
    (spec,), maps = dense.specs, dense.maps
    assert maps is not None
    rng = np.random.default_rng(0)
    found = []
    points = rng.uniform(PART_PX / 4, PART_PX * 3 / 4, (POINTS, 2))
    for number, shift in enumerate((0, 61)):
        corner = [round(value) - shift for value in MIDDLE]
        path = folder / f"part{number}.png"
        Image.fromarray(slide.read(*corner, PART_PX, PART_PX)).save(path, compress_level=1)
        part = open_slide(path).with_mpp(slide.require_mpp(), "part")
        found.append(dense_features(part, points + shift, spec, maps).astype(np.float64))
    gap = (found[0] - found[1]) ** 2
    noise = np.sqrt(gap.mean(axis=0) / np.maximum(found[0].var(axis=0), 1e-12))
    print(
        f"  windows that begin elsewhere: {np.median(noise):.1%} of the spread between {POINTS} "
        "tiles (median of the features)"
    )


def pooled(maps: NetworkMaps, patch: NDArray[np.uint8]) -> Floats:
    """Mean and standard deviation of the inner part of one patch's map."""
    parts = []
    for layer in maps(patch):
        values = layer.maps.double().flatten(1)
        parts += [values.mean(1), values.std(1, correction=0)]
    return torch.cat(parts).numpy()


def probe(sheet: Path, sampling: str, genes: int) -> None:
    """Mean correlation over genes on a held-out section of her2st, encoder `stain`."""
    config = Config().with_values(
        encoder={"name": "stain", "sampling": sampling}, target={"genes": f"variable:{genes}"}
    )
    bench = Workbench.of(config, default_cache()).bridging("section")
    sections, _ = measured_after_qc(read_cohort(sheet), bench)
    train = [section for section in sections if section.section != HELD_OUT]
    (test,) = (section for section in sections if section.section == HELD_OUT)
    target = fit_target(train, config.target)
    model = MODELS["probe"](bench)
    model.fit(train, target)
    shared = [name for name in target.names if name in set(test.counts.var_names)]
    columns = [target.names.index(name) for name in shared]
    predicted = model.predict(test.slide, test.coords).mean[:, columns]
    found = pearson(target.subset(shared).encode(test.counts), predicted)
    print(f"probe on stain, {sampling}: mean r {np.nanmean(found):.4f} over {len(shared)} genes")


def artificial(folder: Path) -> Slide:
    """A slide of 5,376 x 5,376 pixels of one stained tile repeated."""
    path = folder / "tissue.png"
    Image.fromarray(np.tile(stained_patch(896), (6, 6, 1))).save(path, compress_level=1)
    return open_slide(path).with_mpp(0.67, "artificial")


def main() -> None:
    """Print one table an encoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", action="append")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--probe", type=int, metavar="GENES")
    options = parser.parse_args()
    torch.set_num_threads(1)
    real = options.shared / "data" / "her2st" / "images" / f"{HELD_OUT}.jpg"
    weights = options.shared / "weights"
    with tempfile.TemporaryDirectory() as folder:
        if real.exists():
            slide = open_slide(real).with_mpp(0.687, "her2st")
        else:
            slide = artificial(Path(folder))
        for name in options.encoder or ("stain", "vgg16", "dinov2-s"):
            source = None if not needs_weights(name) else weights
            if source is not None and not source.is_dir():
                source = "random:0"
            crop, dense = (
                load_encoder(name, fov_um=(FOV_UM,), weights=source, sampling=sampling)
                for sampling in ("crop", "dense")
            )
            cost(slide, crop, dense)
            differences(slide, crop, dense)
            placement(slide, dense, Path(folder))
    if options.probe:
        for sampling in ("crop", "dense"):
            probe(options.shared / "data" / "her2st.csv", sampling, options.probe)


if __name__ == "__main__":
    main()
