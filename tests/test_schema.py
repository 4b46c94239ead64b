"""The published schemas hold for what the commands really print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from calls import TINY_SETTINGS, call, holds
from deepspace.core.errors import InputError
from deepspace.simulate import BlockConfig, simulate_block
from deepspace.workflows.schema import SCHEMAS, schema

OPTIONS = ["--quiet", "--json"]


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = BlockConfig.preset("tiny", seed=2, unmeasured=("S2",))
    return simulate_block(config).write(tmp_path_factory.mktemp("block"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    config = tmp_path_factory.mktemp("config") / "tiny.toml"
    config.write_text(TINY_SETTINGS)
    return ["--genes", "expressed:30", "--config", config, *OPTIONS]


@pytest.fixture(scope="module")
def trained(sheet: Path, settings: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "m"
    assert call("train", sheet, "--out", folder, *settings)[0] == 0
    return folder


def printed(capsys: pytest.CaptureFixture[str], *args: object) -> Any:
    capsys.readouterr()
    code, out, err = call(*args, capsys=capsys)
    assert code == 0, err
    return json.loads(out)


def test_every_schema_is_one() -> None:
    for name in SCHEMAS:
        Draft202012Validator.check_schema(schema(name))


def test_inspect(sheet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "inspect", sheet, "--out", tmp_path / "check", *OPTIONS)
    holds("inspect", found)
    del found["sections"][0]["mpp"]
    with pytest.raises(ValidationError, match="mpp"):
        Draft202012Validator(schema("inspect")).validate(found)


@pytest.mark.slow
def test_train_and_evaluate(
    trained: Path, sheet: Path, settings: list[object], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    holds("evaluate", printed(capsys, "evaluate", sheet, "--out", tmp_path / "s", *settings))
    holds("train", json.loads((trained / "model.json").read_text())["scores"])


@pytest.mark.slow
def test_predict_one_and_several(
    trained: Path, sheet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ["--section", "S2", "--out", tmp_path / "S2.h5ad", "--all-genes"]
    found = printed(capsys, "predict", trained, sheet, *one, *OPTIONS)
    holds("predict", found)
    assert found["section"] == "S2"
    several = printed(
        capsys, "predict", trained, sheet, "--out", tmp_path / "all", "--all-genes", *OPTIONS
    )
    holds("predict", several)
    assert several["succeeded"] == 3


@pytest.mark.slow
def test_explain(
    trained: Path, sheet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gene = json.loads((trained / "model.json").read_text())["genes"][0]["name"]
    options = ["--section", "S2", "--genes", gene, "--points", 1, "--method", "contributions"]
    holds(
        "explain",
        printed(capsys, "explain", trained, sheet, *options, "--out", tmp_path / "e", *OPTIONS),
    )


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "schema", "predict") == schema("predict")
    assert set(printed(capsys, "schema")) == set(SCHEMAS)


def test_a_command_without_json_is_refused() -> None:
    with pytest.raises(InputError, match=r"demo.*inspect"):
        schema("demo")
