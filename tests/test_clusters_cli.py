"""`--target clusters` from the command line on a simulated block."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from calls import call, holds
from deepspace.core.config import load_config
from deepspace.output import plot
from deepspace.output.clusters import PALETTE, cluster_colours
from deepspace.simulate import BlockConfig, simulate_block
from deepspace.workflows.evaluate import evaluate

CLUSTERS = "outs/analysis/clustering/gene_expression_graphclust/clusters.csv"


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny block whose labels, found on all sections together, are in the sheet."""
    config = BlockConfig.preset("tiny", seed=1)
    sheet = simulate_block(config).write(tmp_path_factory.mktemp("block"))
    table = pd.read_csv(sheet, dtype=str)
    assert list(table["clusters"]) == [f"{section}/{CLUSTERS}" for section in table["section"]]
    table.to_csv(sheet.parent / "labelled.csv", index=False)
    table.drop(columns="clusters").to_csv(sheet, index=False)  # labels of each run alone
    return sheet.parent / "labelled.csv"


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text("[qc]\nmin_genes = 20\n[encoder]\nfov_um = [150]\n[target]\nn_clusters = 4\n")
    return ["--target", "clusters", "--config", path, "--quiet"]


@pytest.fixture(scope="module")
def model(sheet: Path, options: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "m"
    assert call("train", sheet, "--out", folder, *options)[0] == 0
    return folder


def test_evaluate(
    sheet: Path, options: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e"
    code, text, _ = call("evaluate", sheet, "--out", out, *options, capsys=capsys)
    assert code == 0
    for part in ("accuracy", "macro F1", "majority class", "nearest colours", "given", "S3"):
        assert part in text
    scores = pd.read_csv(out / "scores.csv").set_index(["model", "section"])
    best, base = (scores.loc[(m, "all sections")] for m in ("probe (stain)", "majority class"))
    assert best["accuracy"] > base["accuracy"] + 0.2
    assert best["macro_f1"] > base["macro_f1"] + 0.3
    assert best["log_loss"] < base["log_loss"]
    by_section = scores.loc["probe (stain)"].drop(index="all sections")
    mean = np.average(by_section["accuracy"], weights=by_section["spots"])
    assert best["accuracy"] == pytest.approx(mean)
    recall = pd.read_csv(out / "recall.csv", dtype={"cluster": str}).set_index("cluster")
    np.testing.assert_allclose(recall.drop(columns="spots").sum(axis=1), 1.0)
    right = sum(recall.loc[c, f"predicted {c}"] * recall.loc[c, "spots"] for c in recall.index)
    assert right / recall["spots"].sum() == pytest.approx(best["accuracy"])
    names = {path.name for path in out.iterdir()}
    assert {"scores.png", "recall.png", "maps-S1.png", "maps-S2.png", "maps-S3.png"} <= names
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["target"], summary["labels"]) == ("clusters", "given")
    holds("evaluate", summary)
    assert any(path.endswith("clusters.csv") for path in summary["provenance"]["inputs"])


def test_predictions_keep_the_contract(model: Path, sheet: Path, tmp_path: Path) -> None:
    card = json.loads((model / "model.json").read_text())
    names = [cluster["name"] for cluster in card["clusters"]]
    assert card["kind"] == "clusters"
    assert names == sorted(names, key=int)
    for at in ("spots", "grid:60"):
        path = tmp_path / f"{at.replace(':', '')}.h5ad"
        args = ["--section", "S2", "--at", at, "--out", path, "--quiet"]
        assert call("predict", model, sheet, *args)[0] == 0
        found = ad.read_h5ad(path)
        assert list(found.var_names) == names
        assert (found.X >= 0).all()
        np.testing.assert_allclose(found.X.sum(axis=1), 1.0, rtol=1e-5)
        assert list(found.obs["cluster"].cat.categories) == names
        called = found.obs["cluster"].cat.codes.to_numpy()
        np.testing.assert_array_equal(called, found.X.argmax(axis=1))
        np.testing.assert_allclose(found.obs["cluster_probability"], found.X.max(axis=1))
        assert (found.layers["sd"] <= 0.5).all()
        assert {"predictable", "score"} <= set(found.var)
        assert path.with_name(f"{path.stem}-maps.png").exists()


def test_same_input_same_bytes(
    sheet: Path, model: Path, options: list[object], tmp_path: Path
) -> None:
    assert call("train", sheet, "--out", tmp_path / "again", *options)[0] == 0
    for name in ("model.json", "weights.safetensors"):
        again, first = (
            hashlib.sha256((f / name).read_bytes()) for f in (tmp_path / "again", model)
        )
        assert again.hexdigest() == first.hexdigest()


def test_computed_clusters_never_see_the_held_out_counts(
    sheet: Path, options: list[object], tmp_path: Path
) -> None:
    """Shuffled counts of S1 change its true clusters, not what was predicted for it."""
    block = tmp_path / "block"
    shutil.copytree(sheet.parent, block)
    found = []
    for _ in range(2):
        config = load_config(str(options[3])).with_values(target={"kind": "clusters"})
        evaluation = evaluate(block / "sheet.csv", config=config)
        assert evaluation.summary["labels"] == "kmeans"  # those of separate runs are not taken
        found.append(evaluation.held_out["S1"])
        with h5py.File(block / "S1/outs/filtered_feature_bc_matrix.h5", "r+") as file:
            data = file["matrix/data"]
            data[:] = np.random.default_rng(0).permutation(data[:])
    before, after = found
    for name, predicted in before.predicted.items():
        np.testing.assert_array_equal(after.predicted[name], predicted)
    assert (before.truth != after.truth).any()
    assert before.truth.all()


def test_given_labels_of_runs_are_refused(
    sheet: Path, options: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "given.toml"
    config.write_text('[qc]\nmin_genes = 20\n[target]\nclusters = "given"\n')
    args = ["--target", "clusters", "--config", config, "--quiet"]
    for command in ("train", "evaluate"):
        code, _, err = call(
            command, sheet.parent / "sheet.csv", "--out", tmp_path / "o", *args, capsys=capsys
        )
        assert code == 2
        assert "separate Space Ranger runs" in err
        assert not (tmp_path / "o").exists()


def test_random_spots_leak_and_bring_the_nearest_spot(
    sheet: Path, options: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--split", "spot", "--folds", "3", *options]
    code, text, _ = call("evaluate", sheet, "--out", tmp_path / "e", *args, capsys=capsys)
    assert code == 0
    assert text.startswith("WARNING")
    scores = pd.read_csv(tmp_path / "e/scores.csv").set_index(["model", "section"])
    assert scores.loc[("nearest spot", "all sections"), "accuracy"] > 0.3


def test_models_from_before_clusters_are_read(sheet: Path, tmp_path: Path) -> None:
    """They name transform, depth and spots one by one, and the fractions without prefix."""
    config = tmp_path / "tiny.toml"
    config.write_text("[qc]\nmin_genes = 20\n[encoder]\nfov_um = [150]\n")
    new, old = tmp_path / "new", tmp_path / "old"
    args = ["--genes", "expressed:5", "--config", config, "--quiet"]
    assert call("train", sheet, "--out", new, *args)[0] == 0
    shutil.copytree(new, old)
    arrays = load_file(old / "weights.safetensors")
    arrays["fractions"] = arrays.pop("target.fractions")
    save_file(arrays, old / "weights.safetensors")
    card = json.loads((old / "model.json").read_text())
    target = card.pop("target")
    target.pop("noise_depth")  # they did not know of it
    card |= target
    for name in ("kind", "clusters"):
        card.pop(name)
    digest = hashlib.sha256((old / "weights.safetensors").read_bytes()).hexdigest()
    (old / "model.json").write_text(json.dumps(card | {"weights_sha256": digest}))
    found = []
    for folder in (new, old):
        out = tmp_path / f"{folder.name}.h5ad"
        assert call("predict", folder, sheet, "--section", "S1", "--out", out, "--quiet")[0] == 0
        found.append(ad.read_h5ad(out).X)
    np.testing.assert_array_equal(*found)


def test_colours_differ_and_stay() -> None:
    for n in (2, len(PALETTE), 30):
        names = [str(i) for i in range(n)]
        colours = cluster_colours(names)
        assert list(colours) == names
        assert len(set(colours.values())) == n


def test_uncertain_points_are_fainter_and_wrong_ones_ringed() -> None:
    backdrop = plot.Backdrop(np.full((40, 40, 3), 200, np.uint8), downsample=1.0, mpp=1.0)
    points = plot.Points(np.array([[10.0, 10], [20, 20], [30, 30]]), size_um=6.0)
    drawn = plot.ClusterMap(
        "predicted",
        points,
        np.array(["a", "b", "b"]),
        certainty=np.array([1.0, 0.5, 0.75]),
        wrong=np.array([False, True, False]),
    )
    figure = plot.cluster_maps(backdrop, [drawn], ["a", "b"])
    spots, _, rings = figure.axes[1].collections
    assert np.argsort(spots.get_facecolor()[:, 3]).tolist() == [1, 2, 0]
    assert rings.get_offsets().tolist() == [[20.0, 20.0]]
