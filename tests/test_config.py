"""Configurations are strict and say everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepspace.core.config import PRESETS, Config, load_config
from deepspace.core.errors import InputError


def test_defaults_need_no_file() -> None:
    assert load_config(None) == Config()


def test_all_faults_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("seed = -1\n[qc]\nmin_count = 3\n[encoder]\nfov_um = [0]\n[nothing]\n")
    with pytest.raises(InputError) as caught:
        load_config(path)
    text = str(caught.value)
    assert "c.toml: 4 problems" in text
    for part in ("seed = -1", "'qc.min_count'", "encoder.fov_um.0 = 0", "'nothing'"):
        assert part in text


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
