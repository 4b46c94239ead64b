"""Configurations are strict and say everything that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from deepspace.cli.options import make_config
from deepspace.core.config import PRESETS, Config, GeneRule, load_config
from deepspace.core.errors import InputError
from deepspace.data.targets import GENE_RULES
from deepspace.simulate import BlockConfig


def test_defaults_need_no_file() -> None:
    assert load_config(None) == Config()


def test_all_faults_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("seed = -1\n[qc]\nmin_count = 3\n[encoder]\nfov_um = [0]\n[nothing]\n")
    with pytest.raises(InputError) as caught:
        load_config(path)
    text = str(caught.value)
    assert "c.toml: 4 problems" in text
    for part in (
        "seed = -1: must be greater",
        "unknown key qc.min_count: did you mean min_counts?",
        "encoder.fov_um.0 = 0",
        "unknown key nothing: known are seed, model",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[encoder]\nfov_um = 150.0", "encoder.fov_um = 150.0: give a list"),
        ("[cnn]\ntrainable = 'some'", "trainable = 'some': give a whole number or choose 'all'"),
        ("[cnn]\nrefit = 'perhaps'", "give true or false"),
        ("[probe]\npenalties = []", "give at least 1"),
        ("qc = 3", "give a table"),
        ("genes = 'variable:5'", "it belongs into the table [target]"),
        ("precision = 'bf16'", "it belongs into the table [encoder] or [cnn]"),
        ("folder = 3", "unknown key folder: known are seed, model"),
        ("[target]\ngenes = 'expressed:abc'", "give a whole number above 0 after expressed:"),
        ("[encoder]\nfov_um = [3.0]\nfov_spots = [1.0]", "c.toml: encoder: give fov_um or"),
    ],
)
def test_faults_are_told_in_words_of_toml(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert told in str(caught.value)
    assert "problems" not in str(caught.value)


def test_few_values_are_not_told_where_they_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[probe]\npenalties = ['x', -1]")
    with pytest.raises(InputError, match="2 problems") as caught:
        load_config(path)
    assert "probe.penalties.0 = 'x': give a number" in str(caught.value)
    assert "probe.penalties.1 = -1: must be greater than 0" in str(caught.value)


def test_keys_of_tables_in_a_table_are_told() -> None:
    with pytest.raises(InputError, match=r"unknown key artefacts\.S2\.tea: did you mean tear\?"):
        BlockConfig.preset("tiny", artefacts={"S2": {"tea": True}})
    with pytest.raises(InputError, match="2 problems") as caught:
        BlockConfig.preset("tiny", artefacts={"S2": {"tear": 1}, "S3": {"pen_mark": 1}})
    assert "artefacts.S2.tear = 1: give true or false" in str(caught.value)
    assert "artefacts.S3.pen_mark = 1: give true or false" in str(caught.value)


def test_every_gene_rule_is_checked() -> None:
    assert set(get_args(GeneRule)) == set(GENE_RULES)


def test_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("seed = 7", encoding="utf-8-sig")
    assert load_config(path).seed == 7


def test_faults_of_options_name_the_options() -> None:
    with pytest.raises(InputError, match=r"^--split 'patients': choose 'auto'"):
        make_config(None, split="patients")
    with pytest.raises(InputError) as caught:
        make_config(None, split="patients", seed=-1, complete={"volume_um": -1.0})
    text = str(caught.value)
    assert text.startswith("options: 3 problems")
    assert "\n  - --seed -1: must" in text
    with pytest.raises(InputError, match="--genes 'expressed:: seed = 3'"):
        make_config(None, genes="expressed:: seed = 3")
    assert "\n  - complete.volume_um = -1.0: must" in text


def test_broken_toml_and_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("seed = = 1")
    with pytest.raises(InputError, match="not a readable TOML"):
        load_config(path)
    with pytest.raises(InputError, match="deepspace-2022"):
        load_config("no-such-preset")


def test_bad_pattern_is_found_before_training() -> None:
    with pytest.raises(InputError, match="not a regular expression"):
        Config().with_values(target={"exclude": ("^MT-(",)})


def test_unset_options_change_nothing() -> None:
    config = load_config("deepspace-2022")
    assert config.with_values(seed=None, encoder={"name": None}) == config
    assert config.with_values(encoder={"name": "vgg16"}).encoder.name == "vgg16"
    assert config.qc.min_counts == 1000


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.toml")), ids=lambda p: p.stem)
def test_every_preset_loads(path: Path) -> None:
    assert isinstance(load_config(path.stem), Config)
