"""The command line as a user meets it: results, and what happens to bad input."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from calls import call
from deepspace.simulate import BlockConfig, simulate_block


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny simulated block: two measured sections around one that is not."""
    config = BlockConfig.preset("tiny", seed=1, unmeasured=("S2",))
    return simulate_block(config).write(tmp_path_factory.mktemp("block"))


@pytest.fixture(scope="module")
def train_options(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Options that suit a block with few genes."""
    config = tmp_path_factory.mktemp("config") / "tiny.toml"
    config.write_text("[qc]\nmin_genes = 20\n[encoder]\nfov_um = [150]\n")
    return ["--genes", "expressed:40", "--config", config, "--quiet"]


@pytest.fixture(scope="module")
def model(
    sheet: Path, train_options: list[object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("models") / "m"
    assert call("train", sheet, "--out", folder, *train_options)[0] == 0
    return folder


def unmeasured(sheet: Path) -> str:
    table = pd.read_csv(sheet, dtype=str)
    return str(table.loc[table["spaceranger"].isna(), "section"].iloc[0])


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("--help", capsys=capsys)
    assert code == 0
    for command in ("demo", "inspect", "train", "evaluate", "predict", "complete"):
        assert command in out


def test_help_imports_neither_torch_nor_anndata() -> None:
    script = (
        "import sys; sys.argv = ['deepspace', '--help']\n"
        "from deepspace.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'anndata', 'pandas', 'matplotlib', 'skimage'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_inspect_describes_and_draws(
    sheet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call("inspect", sheet, "--out", tmp_path / "i", "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0
    assert found["problems"] == []
    for facts in found["sections"]:
        assert facts["mpp"] == pytest.approx(1.0, rel=0.01)
        assert Path(facts["overview"]).exists()
    _, text, _ = call(
        "inspect", sheet, "--out", tmp_path / "i", "--overwrite", "--quiet", capsys=capsys
    )
    for part in ("platform", "in tissue of", "median", "mpp", "No problems"):
        assert part in text


def test_predictions_keep_the_contract(model: Path, sheet: Path, tmp_path: Path) -> None:
    section = unmeasured(sheet)
    for at in ("spots", "between", "grid:60"):
        path = tmp_path / f"{at.replace(':', '')}.h5ad"
        code, _, _ = call(
            "predict",
            model,
            sheet,
            "--section",
            section,
            "--at",
            at,
            "--out",
            path,
            "--quiet",
            "--all-genes",
        )
        assert code == 0
        found = ad.read_h5ad(path)
        assert found.shape == (found.n_obs, 40)
        assert {"sd", "sd_latent"} <= set(found.layers)
        assert {"measured", "in_tissue", "ood", "section"} <= set(found.obs)
        assert (found.obs["ood"] == (found.obs["ood_distance"] > 1)).all()
        assert (found.obs["ood"] == (found.obs["ood_reason"].astype(str) != "")).all()
        assert {"predictable", "score", "ceiling"} <= set(found.var)
        assert found.obsm["spatial"].shape == (found.n_obs, 2)
        assert np.isfinite(found.X).all()
        assert (found.layers["sd"] >= found.layers["sd_latent"]).all()
        assert not found.obs["measured"].any()
        record = json.loads(found.uns["deepspace"]["provenance"])
        assert record["at"] == at
        assert record["images"]["sentence"]
        assert record["inputs"]
        assert record["seed"] == 0
        assert path.with_name(f"{path.stem}-maps.png").exists()


def test_a_model_comes_with_its_cards_and_its_report(model: Path) -> None:
    names = {path.name for path in model.iterdir()}
    assert {"MODEL_CARD.md", "model_card.json", "report.html", "config.toml"} <= names
    assert {"scores.csv", "genes.csv", "leak_gap.csv", "metrics.csv", "section_metrics.csv"} <= {
        path.name for path in (model / "evaluation").iterdir()
    }
    card = json.loads((model / "model_card.json").read_text())
    saved = json.loads((model / "model.json").read_text())
    assert card["weights_sha256"] == saved["weights_sha256"]
    assert [c["name"] for c in card["columns"]] == [g["name"] for g in saved["genes"]]


def test_genes_not_told_from_chance_are_left_out(model: Path, sheet: Path, tmp_path: Path) -> None:
    section, path = unmeasured(sheet), tmp_path / "p.h5ad"
    call("predict", model, sheet, "--section", section, "--out", path, "--quiet")
    genes = json.loads((model / "model.json").read_text())["genes"]
    verdicts = {gene["name"]: gene["verdict"] for gene in genes}
    found = ad.read_h5ad(path)
    assert list(found.var_names) == [g for g, verdict in verdicts.items() if verdict != "no"]
    assert 0 < found.n_vars < len(verdicts)
    assert found.var["verdict"].astype(str).to_dict().items() <= verdicts.items()
    assert (found.var["q_value"] <= 0.05).all()


def test_spots_keep_their_barcodes(model: Path, sheet: Path, tmp_path: Path) -> None:
    section = unmeasured(sheet)
    path = tmp_path / "p.h5ad"
    call("predict", model, sheet, "--section", section, "--out", path, "--quiet")
    table = pd.read_csv(sheet, dtype=str).set_index("section")
    spots = pd.read_csv(sheet.parent / table.loc[section, "spots"], index_col=0)
    assert list(ad.read_h5ad(path).obs_names) == list(spots.index[spots["in_tissue"] == 1])


@pytest.mark.slow
def test_same_input_same_bytes(
    sheet: Path, model: Path, train_options: list[object], tmp_path: Path
) -> None:
    again = tmp_path / "again"
    assert call("train", sheet, "--out", again, *train_options)[0] == 0
    for name in ("model.json", "weights.safetensors"):
        assert digest(again / name) == digest(model / name)
    section = unmeasured(sheet)
    for name in ("a.h5ad", "b.h5ad"):
        call("predict", model, sheet, "--section", section, "--out", tmp_path / name, "--quiet")
    assert digest(tmp_path / "a.h5ad") == digest(tmp_path / "b.h5ad")


def test_own_counts_are_never_looked_at(model: Path, sheet: Path, tmp_path: Path) -> None:
    """The prediction of a measured section stays the same when its counts are shuffled."""
    block = tmp_path / "block"
    shutil.copytree(sheet.parent, block)
    table = pd.read_csv(sheet, dtype=str)
    section = str(table.loc[table["spaceranger"].notna(), "section"].iloc[0])
    before, after = tmp_path / "before.h5ad", tmp_path / "after.h5ad"
    call("predict", model, block / sheet.name, "--section", section, "--out", before, "--quiet")
    (matrix,) = (block / section).rglob("filtered_feature_bc_matrix.h5")
    import h5py  # noqa: PLC0415

    with h5py.File(matrix, "r+") as file:
        data = file["matrix/data"][:]
        file["matrix/data"][:] = np.random.default_rng(0).permutation(data)
    call("predict", model, block / sheet.name, "--section", section, "--out", after, "--quiet")
    assert digest(before) == digest(after)


def test_evaluate_writes_tables_and_pictures(
    sheet: Path,
    train_options: list[object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "e"
    code, text, _ = call("evaluate", sheet, "--out", out, *train_options, capsys=capsys)
    assert code == 0
    for part in ("probe (stain)", "gene mean", "colour ridge", "shuffled labels", "noise ceiling"):
        assert part in text
    scores = pd.read_parquet(out / "scores.parquet")
    pd.testing.assert_frame_equal(scores, pd.read_csv(out / "scores.csv"), check_dtype=False)
    assert {"pearson", "spearman", "rmse", "r2", "ceiling"} <= set(scores)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["models"]["gene mean"]["mean_pearson"] == 0
    names = {path.name for path in out.iterdir()}
    assert {"scores.png", "genes.png"} <= names
    assert sum(name.startswith("maps-") for name in names) == scores["section"].nunique()


@pytest.mark.slow
def test_random_spots_are_called_leaky(
    sheet: Path,
    train_options: list[object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = ["--split", "spot", "--folds", "3", *train_options]
    code, text, _ = call("evaluate", sheet, "--out", tmp_path / "e", *args, capsys=capsys)
    assert code == 0
    assert text.startswith("WARNING")
    assert "leak" in text
    assert "nearest spot" in text


def test_existing_output_is_never_overwritten(
    sheet: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(model / "model.json")
    for args in (
        ["train", sheet, "--out", model],
        ["evaluate", sheet, "--out", model],
        ["demo", "--out", model],
    ):
        code, _, err = call(*args, "--quiet", capsys=capsys)
        assert code == 2
        assert "--overwrite" in err
    path = tmp_path / "p.h5ad"
    path.write_text("mine")
    code, _, err = call(
        "predict", model, sheet, "--section", unmeasured(sheet), "--out", path, capsys=capsys
    )
    assert code == 2
    assert "--overwrite" in err
    assert path.read_text() == "mine"
    assert digest(model / "model.json") == before


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Standard error of a run that must end with exit code 2 and no traceback."""
    code, _, err = call(*args, "--quiet", capsys=capsys)
    assert code == 2
    assert "Traceback" not in err
    return err


def copied(sheet: Path, tmp_path: Path) -> tuple[Path, str]:
    """A copy of the block to spoil, and the id of its first measured section."""
    block = tmp_path / "block"
    shutil.copytree(sheet.parent, block)
    table = pd.read_csv(sheet, dtype=str)
    return block / sheet.name, str(table.loc[table["spaceranger"].notna(), "section"].iloc[0])


def with_lowres_image(sheet: Path, tmp_path: Path) -> tuple[Path, str]:
    """A copy of the block whose first measured section names a small copy of its image."""
    spoilt, section = copied(sheet, tmp_path)
    (low,) = (spoilt.parent / section).rglob("tissue_lowres_image.png")
    table = pd.read_csv(spoilt, dtype=str).set_index("section")
    table.loc[section, "image"] = str(low)
    table.to_csv(spoilt)
    return spoilt, section


def image_of(sheet: Path, section: str) -> Path:
    table = pd.read_csv(sheet, dtype=str).set_index("section")
    return sheet.parent / str(table.loc[section, "image"])


def test_hires_instead_of_full_resolution(
    sheet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt, _ = with_lowres_image(sheet, tmp_path)
    err = refused(capsys, "train", spoilt, "--out", tmp_path / "m")
    assert "tissue_lowres_image.png" in err
    assert "full-resolution" in err


def test_truncated_tiff(sheet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoilt, section = copied(sheet, tmp_path)
    image = image_of(spoilt, section)
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    assert image.name in refused(capsys, "train", spoilt, "--out", tmp_path / "m")


def test_text_file_named_h5(
    sheet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt, section = copied(sheet, tmp_path)
    (matrix,) = (spoilt.parent / section).rglob("filtered_feature_bc_matrix.h5")
    matrix.write_text("not a matrix")
    assert str(matrix) in refused(capsys, "train", spoilt, "--out", tmp_path / "m")


def test_missing_column_and_file(
    sheet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt, _ = copied(sheet, tmp_path)
    pd.read_csv(spoilt, dtype=str).drop(columns="patient").to_csv(spoilt, index=False)
    err = refused(capsys, "train", spoilt, "--out", tmp_path / "m")
    assert "patient" in err
    assert spoilt.name in err
    assert "no-such.csv" in refused(capsys, "train", "no-such.csv", "--out", tmp_path / "m")


def test_blank_slide_has_no_tissue(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (600, 600), "white").save(tmp_path / "blank.png")
    path = tmp_path / "s.csv"
    path.write_text("section,patient,mpp,image\nX,P,1.0,blank.png\n")
    out = tmp_path / "p.h5ad"
    err = refused(capsys, "predict", model, path, "--section", "X", "--at", "grid:50", "--out", out)
    assert "tissue" in err


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["train", "SHEET", "--out", "OUT", "--model", "magic"], "probe"),
        (["train", "SHEET", "--out", "OUT", "--encoder", "magic"], "vgg16"),
        (["train", "SHEET", "--out", "OUT", "--encoder", "vgg16"], "--weights"),
        (
            ["train", "SHEET", "--out", "OUT", "--genes", "NOSUCHGENE", "--config", "CONFIG"],
            "NOSUCH",
        ),
        (["train", "SHEET", "--out", "OUT", "--target", "magic"], "--target 'magic': choose"),
        (["train", "SHEET", "--out", "OUT", "--config", "magic"], "presets"),
        (["train", "SHEET"], "--out"),
        (["evaluate", "SHEET", "--out", "OUT", "--split", "magic"], "--split 'magic': choose"),
        (
            ["evaluate", "SHEET", "--out", "OUT", "--split", "patient", "--config", "CONFIG"],
            "two patients",
        ),
        (["evaluate", "SHEET", "--out", "OUT", "--folds", "1"], "--folds 1: must be"),
        (["predict", "MODEL", "SHEET", "--section", "Z", "--out", "OUT.h5ad"], "Z"),
        (["predict", "MODEL", "SHEET", "--section", "S", "--out", "OUT.xlsx"], ".h5ad"),
        (["predict", "SHEET", "SHEET", "--section", "S", "--out", "OUT.h5ad"], "model"),
        (
            ["predict", "MODEL", "SHEET", "--section", "S", "--out", "OUT.h5ad", "--device", "x"],
            "device",
        ),
        (
            ["predict", "MODEL", "SHEET", "--section", "S", "--out", "OUT.h5ad", "--at", "x"],
            "grid",
        ),
        (
            ["predict", "MODEL", "SHEET", "--section", "S", "--out", "OUT.h5ad", "--at", "grid:0"],
            "above 0",
        ),
    ],
)
def test_wrong_usage(
    sheet: Path,
    model: Path,
    train_options: list[object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    part: str,
) -> None:
    names = {
        "SHEET": str(sheet),
        "MODEL": str(model),
        "S": unmeasured(sheet),
        "CONFIG": str(train_options[3]),
    }
    filled = [names.get(arg, arg.replace("OUT", str(tmp_path / "out"))) for arg in args]
    assert part in refused(capsys, *filled)
    assert not list(tmp_path.iterdir())


def test_damaged_models_are_refused(
    sheet: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--section", unmeasured(sheet), "--out", tmp_path / "p.h5ad"]
    for spoil in ("model.json", "weights.safetensors"):
        copy = tmp_path / spoil.split(".")[0]
        shutil.copytree(model, copy)
        text = (copy / spoil).read_bytes()
        (copy / spoil).write_bytes(text[: len(text) // 2])
        assert "damaged" in refused(capsys, "predict", copy, sheet, *args)
    copy = tmp_path / "future"
    shutil.copytree(model, copy)
    card = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(card | {"schema_version": 99}))
    assert "schema version 99" in refused(capsys, "predict", copy, sheet, *args)
    for number, change in enumerate(({"state": {}}, {"genes": card["genes"][1:]})):
        copy = tmp_path / f"changed{number}"
        shutil.copytree(model, copy)
        (copy / "model.json").write_text(json.dumps(card | change))
        assert "train the model again" in refused(capsys, "predict", copy, sheet, *args)


def test_models_of_other_versions_are_read(
    sheet: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that was added or dropped since is no damage."""
    copy = tmp_path / "older"
    shutil.copytree(model, copy)
    card = json.loads((copy / "model.json").read_text())
    config = card["provenance"]["config"]
    config["dropped"] = {"since": 1}
    config["probe"]["dropped"] = True
    del config["registration"]
    (copy / "model.json").write_text(json.dumps(card))
    args = ["--section", unmeasured(sheet), "--out", tmp_path / "p.h5ad"]
    code, _, _ = call("predict", copy, sheet, *args, "--quiet", capsys=capsys)
    assert code == 0
    config["qc"]["min_counts"] = -1
    (copy / "model.json").write_text(json.dumps(card))
    text = refused(capsys, "predict", copy, sheet, *args, "--overwrite")
    assert "min_counts" in text
    assert "http" not in text


def test_overwrite_replaces_only_what_deepspace_wrote(
    sheet: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.zarr"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    for command in ("train", "evaluate"):
        assert "holds no" in refused(capsys, command, sheet, "--out", mine, "--overwrite")
    args = ["--section", unmeasured(sheet), "--overwrite", "--out"]
    assert "holds no" in refused(capsys, "predict", model, sheet, *args, mine)
    assert (mine / "thesis.txt").read_text() == "mine"


def test_pictures_are_not_overwritten_either(
    sheet: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p-maps.png").write_text("mine")
    args = ["--section", unmeasured(sheet), "--out", tmp_path / "p.h5ad"]
    assert "p-maps.png" in refused(capsys, "predict", model, sheet, *args)
    assert [path.name for path in tmp_path.iterdir()] == ["p-maps.png"]


def test_one_section_under_two_ids(
    sheet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt, section = copied(sheet, tmp_path)
    table = pd.read_csv(spoilt, dtype=str)
    again = table[table["section"] == section].assign(section="TWICE")
    pd.concat([table, again]).to_csv(spoilt, index=False)
    err = refused(capsys, "train", spoilt, "--out", tmp_path / "m")
    assert "TWICE" in err
    assert "same image" in err
    code, out, _ = call("inspect", spoilt, "--out", tmp_path / "i", "--quiet", capsys=capsys)
    assert code == 2
    assert "same image" in out


def test_mixed_up_model_files(
    sheet: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "m"
    shutil.copytree(model, copy)
    weights = bytearray((copy / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "weights.safetensors").write_bytes(weights)
    args = ["--section", unmeasured(sheet), "--out", tmp_path / "p.h5ad"]
    assert "not of this model.json" in refused(capsys, "predict", copy, sheet, *args)


def test_predict_checks_its_section(
    model: Path, sheet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small copy of the image instead of the full resolution gives no predictions."""
    spoilt, section = with_lowres_image(sheet, tmp_path)
    args = ["--section", section, "--out", tmp_path / "p.h5ad"]
    assert "full-resolution" in refused(capsys, "predict", model, spoilt, *args)


def test_inputs_are_never_replaced(
    sheet: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt, _ = copied(sheet, tmp_path)
    (spoilt.parent / "model.json").write_text("{}")
    (spoilt.parent / "summary.json").write_text("{}")
    for command in ("train", "evaluate"):
        err = refused(capsys, command, spoilt, "--out", spoilt.parent, "--overwrite")
        assert "holds the input" in err
    assert spoilt.exists()


def test_a_foreign_zarr_store_is_not_replaced(
    sheet: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "mine.zarr"
    store.mkdir()
    (store / "zarr.json").write_text("{}")
    args = ["--section", unmeasured(sheet), "--out", store, "--overwrite"]
    assert "holds no" in refused(capsys, "predict", model, sheet, *args)
