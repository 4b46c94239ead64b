"""The Python API says the same as the command line, on sections in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import deepspace
from deepspace.simulate import BlockConfig, simulate_block


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = BlockConfig.preset("tiny", seed=4, unmeasured=("S2",))
    return simulate_block(config).write(tmp_path_factory.mktemp("block"))


@pytest.fixture(scope="module")
def config() -> deepspace.Config:
    return deepspace.Config().with_values(
        qc={"min_genes": 20}, target={"genes": "expressed:30"}, encoder={"fov_um": (150.0,)}
    )


@pytest.mark.slow
def test_memory_and_disk_give_the_same(
    sheet: Path, config: deepspace.Config, tmp_path: Path
) -> None:
    sections = deepspace.read_sheet(sheet)
    in_memory = deepspace.train(sections, config=config)
    deepspace.train(sheet, tmp_path / "m", config=config)
    (unmeasured,) = (s for s in sections if not s.measured)
    first = deepspace.predict(in_memory, unmeasured)
    second = deepspace.predict(tmp_path / "m", sheet, section=unmeasured.section)
    np.testing.assert_array_equal(first.X, second.X)
    np.testing.assert_array_equal(first.layers["sd"], second.layers["sd"])
    assert list(first.obs_names) == list(second.obs_names)
    record = deepspace.read_provenance(second)
    assert record["section"] == unmeasured.section
    assert len(record["model_sha256"]) == 64
    assert not record["in_training"]


def test_a_section_it_was_trained_on_is_marked(sheet: Path, config: deepspace.Config) -> None:
    sections = deepspace.read_sheet(sheet)
    trained = deepspace.train(sections, config=config)
    found = deepspace.predict(trained, sections[0])
    assert deepspace.read_provenance(found)["in_training"]
    assert found.obs["measured"].all()


def test_evaluate_without_writing(sheet: Path, config: deepspace.Config) -> None:
    found = deepspace.evaluate(deepspace.read_sheet(sheet), config=config)
    assert set(found.scores["section"]) == {"S1", "S3"}
    assert (found.scores["split"] == "section").all()
    assert found.summary["quality_control"]


def test_which_section_must_be_said(sheet: Path, config: deepspace.Config) -> None:
    trained = deepspace.train(sheet, config=config)
    with pytest.raises(deepspace.InputError, match="S1, S2, S3"):
        deepspace.predict(trained, sheet)


def test_public_names_exist() -> None:
    for name in deepspace.__all__:
        assert getattr(deepspace, name) is not None
