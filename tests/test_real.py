"""The main job on real sections, from the command line. Slow; needs ../shared."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from calls import call
from deepspace.core.metrics import pearson
from deepspace.data.transforms import log1p_cp10k
from deepspace.io.sheet import read_sheet

pytestmark = pytest.mark.slow


def evaluated(sheet: Path, out: Path, *options: object) -> dict[str, dict[str, float]]:
    config = out.with_suffix(".toml")
    # what surrounds the scores is tested on the simulated block
    config.write_text('[evaluate]\nmoves = 0\nleak_gap = "none"\n')
    fixed = ["--out", out, "--genes", "expressed:1000", "--config", config]
    code, _, _ = call("evaluate", sheet, *fixed, *options)
    assert code == 0
    models: dict[str, dict[str, float]] = json.loads((out / "summary.json").read_text())["models"]
    return models


@pytest.mark.parametrize(
    ("encoder", "mean", "best"), [("stain", 0.222, 0.50), ("dinov2-s", 0.235, 0.53)]
)
def test_leave_one_section_out(
    shared: Path, tmp_path: Path, encoder: str, mean: float, best: float
) -> None:
    options = [] if encoder == "stain" else ["--weights", shared / "weights"]
    sheet = shared / "data" / "her2st.csv"
    models = evaluated(sheet, tmp_path / "e", "--encoder", encoder, *options)
    found = models[f"probe ({encoder})"]
    assert found["mean_pearson"] >= mean
    assert found["best50_pearson"] >= best
    assert found["mean_pearson"] > models["colour ridge"]["mean_pearson"] + 0.05
    assert abs(models["shuffled labels"]["mean_pearson"]) < 0.05


def test_olfactory_bulb_both_ways(shared: Path, tmp_path: Path) -> None:
    models = evaluated(shared / "data" / "mob.csv", tmp_path / "e")
    found = models["probe (stain)"]
    assert found["mean_pearson"] > models["colour ridge"]["mean_pearson"]
    assert min(found["sections"].values()) > 0.2  # type: ignore[attr-defined]


def test_low_resolution_sections_run(shared: Path, tmp_path: Path) -> None:
    models = evaluated(shared / "data" / "her2st_lowres.csv", tmp_path / "e")
    assert models["probe (stain)"]["mean_pearson"] > 0.0


def test_an_unmeasured_section(shared: Path, tmp_path: Path) -> None:
    """C5's counts are kept from the program; its prediction is then compared with them."""
    data = shared / "data"
    table = pd.read_csv(data / "her2st.csv", dtype=str)
    for column in ("image", "counts", "spots"):
        table[column] = [str(data / path) for path in table[column]]
    table.loc[table["section"] == "C5", "counts"] = None
    sheet = tmp_path / "sheet.csv"
    table.to_csv(sheet, index=False)
    model, out = tmp_path / "m", tmp_path / "C5.h5ad"
    assert call("train", sheet, "--out", model, "--genes", "expressed:200")[0] == 0
    assert call("predict", model, sheet, "--section", "C5", "--out", out)[0] == 0
    found = ad.read_h5ad(out)
    (section,) = read_sheet(data / "her2st.csv", only=["C5"])
    counts = section.require_counts()
    depth = np.asarray(counts.X.sum(axis=1)).ravel()
    spots = counts.obs_names[depth >= 500]
    true = log1p_cp10k(counts[spots, found.var_names].X.toarray(), depth[depth >= 500])
    assert np.nanmean(pearson(true, found[spots].X)) > 0.25
    for at in ("between", "grid:100"):
        path = tmp_path / f"{at[:4]}.h5ad"
        args = ["--section", "C5", "--at", at, "--out", path]
        assert call("predict", model, sheet, *args)[0] == 0
        assert ad.read_h5ad(path).n_obs > found.n_obs
