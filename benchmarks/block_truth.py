"""Against the truth of a simulated block: between spots, between sections, below the spot size.

    python benchmarks/block_truth.py [--preset demo] [--seed 0] [--genes expressed:300]

Prints the mean correlation with the true expression by what a gene follows (the image, only the
neighbours, both, nothing), for kriging, the image alone and kriging without image: on the
unmeasured section at its spots, on it between them, and at a depth between two sections. Then, for
a block "measured" by averaging a true field of 8 um over spots of 55 um, how much of the variation
*inside* 60 of them is found again. (That field is the block's truth on a grid of 8 um; it varies
smoothly below the spot size, since what image genes follow is an average over a small disc.)
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from deepspace.core.config import Config
from deepspace.core.metrics import pearson
from deepspace.core.progress import show
from deepspace.data.aggregation import to_spots
from deepspace.data.coords import between_spots, grid
from deepspace.data.targets import fit_target
from deepspace.data.tissue import tissue_mask
from deepspace.io.section import Section
from deepspace.models.base import SavablePredictor
from deepspace.models.kriging import Kriging
from deepspace.models.registry import MODELS, Workbench, without_image
from deepspace.simulate import Block, BlockConfig, simulate_block
from deepspace.workflows.cohort import default_cache, prepare_cohort, read_cohort

FloatArray = NDArray[np.float64]
FINE_UM, SPOT_UM = 8.0, 55.0
# spots that are looked into
SPOTS = 60


def builders(bench: Workbench) -> dict[str, Callable[[], SavablePredictor]]:
    """Kriging and its parts."""
    return {
        "kriging": lambda: MODELS["kriging"](bench),
        "image alone": lambda: MODELS["probe"](bench),
        "without image": lambda: without_image(bench),  # type: ignore[return-value]
    }


def by_kind(block: Block, genes: list[str], truth: FloatArray, found: FloatArray) -> pd.Series:
    """Median correlation with the truth, by what a gene follows."""
    columns = [block.genes.index(gene) for gene in genes]
    r = pearson(truth[:, columns], found)
    kind = block.law.loc[genes, "kind"].to_numpy()
    return pd.Series(r).groupby(kind).median()


def gained(
    block: Block, genes: list[str], truth: FloatArray, pair: tuple[FloatArray, FloatArray]
) -> dict[str, str]:
    """Mean difference of the correlations of two predictions, +- 95 % over genes, by kind."""
    columns = [block.genes.index(gene) for gene in genes]
    one, other = (pearson(truth[:, columns], found) for found in pair)
    kinds = pd.Series(one - other).groupby(block.law.loc[genes, "kind"].to_numpy())
    return {
        str(kind): f"{r.mean():+.3f} +- {1.96 * r.std() / np.sqrt(len(r)):.3f}" for kind, r in kinds
    }


def holes(
    block: Block, sections: list[Section], models: dict[str, SavablePredictor]
) -> pd.DataFrame:
    """At the spots, between them, and between two sections."""
    rows = []
    known = next(s for s in sections if not s.measured)
    assert known.spots is not None
    spots = known.spots.loc[known.spots["in_tissue"].to_numpy(bool), ["x", "y"]].to_numpy(float)
    for place, coords in (("spots", spots), ("between", between_spots(spots))):
        truth = block.truth(known.section, coords)
        found = {name: model.predict(known.slide, coords).mean for name, model in models.items()}
        genes = list(models["kriging"].target.names)
        for name, mean in found.items():
            rows.append({"place": place, "model": name, **by_kind(block, genes, truth, mean)})
            if name != "kriging":
                gain = gained(block, genes, truth, (found["kriging"], mean))
                rows.append({"place": place, "model": f"  gain over {name}", **gain})
    kriging = models["kriging"]
    assert isinstance(kriging, Kriging)
    own = block.sections[known.section]
    z_um = own.z_um + block.config.spacing_um / 2
    xy = own.transform.to_block(spots)
    truth = block.truth_at(np.column_stack([xy, np.full(len(xy), z_um)]))
    mean = kriging.predict_at_depth(known.slide, spots, z_um).mean
    kinds = by_kind(block, list(kriging.target.names), truth, mean)
    rows.append({"place": f"{z_um:g} um deep", "model": "kriging", **kinds})
    return pd.DataFrame(rows)


def averaged(section: Section, block: Block, seed: int) -> Section:
    """The section as spots that each average the true field of 8 um over their area."""
    counts = section.require_counts().copy()
    points = grid(section.slide, tissue_mask(section.slide), FINE_UM)
    mpp = section.slide.require_mpp()
    share = np.expm1(block.truth(section.section, points)) / 1e4
    mean = to_spots(share, points * mpp, section.coords * mpp, SPOT_UM)
    depth = np.asarray(counts.X.sum(axis=1)).ravel()[:, None]
    rng = np.random.default_rng([seed, len(section.section)])
    drawn = rng.poisson(np.nan_to_num(mean) * depth)
    counts = counts[:, block.genes].copy()
    counts.X = sp.csr_matrix(drawn.astype(np.float32))
    return replace(section, counts=counts)


def below_spots(block: Block, section: Section, model: SavablePredictor) -> pd.Series:
    """Correlation of truth and prediction at 8 um after the mean over 55 um is taken off both."""
    mpp = section.slide.require_mpp()
    points = grid(section.slide, tissue_mask(section.slide), FINE_UM)
    owners = np.random.default_rng(0).permutation(section.coords)[:SPOTS]
    distance, spot = cKDTree(owners).query(points)
    kept = distance * mpp <= SPOT_UM / 2
    points, number = points[kept], np.unique(spot[kept], return_inverse=True)[1]
    genes = list(model.target.names)
    columns = [block.genes.index(gene) for gene in genes]
    truth = block.truth(section.section, points)[:, columns]
    found = model.predict(section.slide, points).mean
    fine = [v - _means(v, number)[number] for v in (truth, found)]
    kind = block.law.loc[genes, "kind"].to_numpy()
    return pd.Series(pearson(*fine)).groupby(kind).median()


def _means(values: FloatArray, label: NDArray[np.int64]) -> FloatArray:
    return pd.DataFrame(values).groupby(label).mean().to_numpy()


def main() -> None:
    """Simulate, fit, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--genes", default="expressed:300")
    args = parser.parse_args()
    block = simulate_block(BlockConfig.preset(args.preset, seed=args.seed))
    with tempfile.TemporaryDirectory() as folder, show():
        sheet = block.write(Path(folder) / "block")
        sections = read_cohort(sheet)
        config = Config(seed=args.seed).with_values(target={"genes": args.genes})
        start = Workbench.of(config, default_cache())
        ready = prepare_cohort(sheet, [start], ["kriging"], None)
        (bench,) = ready.benches
        target = fit_target(ready.sections, config.target)
        models = {k: make().fit(ready.sections, target) for k, make in builders(bench).items()}
        print(holes(block, sections, models).round(3).to_string(index=False))
        coarse = [averaged(s, block, args.seed) for s in ready.sections]
        target = fit_target(coarse, config.target)
        rows = {k: make().fit(coarse, target) for k, make in builders(bench).items()}
        fine = {k: below_spots(block, coarse[0], model) for k, model in rows.items()}
        print("\nvariation inside the spots, 8 um, first measured section")
        print(pd.DataFrame(fine).T.round(2).to_string())


if __name__ == "__main__":
    main()
