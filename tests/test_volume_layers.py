"""Which sections a predicted volume rests on, and which of its planes show them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deepspace.core.config import CompleteConfig
from deepspace.core.files import file_name
from deepspace.data.targets import ExpressionTarget
from deepspace.data.tissue import tissue_mask
from deepspace.data.transforms import Null
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.models.base import FloatArray, Prediction
from deepspace.output.completion import MEASURED, PlaneMap
from deepspace.output.volume import VolumeGrid
from deepspace.registration.stack import Stack, identity_stack
from deepspace.simulate import BlockConfig, simulate_block
from deepspace.workflows import volume
from deepspace.workflows.cohort import read_cohort
from deepspace.workflows.volume import Layer, _layers, _with_section, _write, at_planes, volume_grid


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    config = BlockConfig.preset("tiny", seed=6, n_sections=4, unmeasured=("S3", "S4"))
    return read_cohort(simulate_block(config).write(tmp_path_factory.mktemp("layers") / "block"))


def at(sections: list[Section], *depths: float) -> list[Layer]:
    places = identity_stack(sections).places
    return [
        Layer(s, replace(p, z_um=z), tissue_mask(s.slide))
        for s, p, z in zip(sections, places, depths, strict=False)
    ]


def shown(sections: list[Section], depths: tuple[float, ...], config: CompleteConfig) -> dict:
    layers = at(sections, *depths)
    grid = volume_grid(layers, sections, config)
    return {float(grid.z_um[n]): x.section.section for n, x in at_planes(grid, layers).items()}


@pytest.mark.parametrize(
    ("depths", "z_um", "planes"),
    [
        ((0.0, 30.0, 100.0), None, {0.0: "S1", 30.0: "S2", 100.0: "S3"}),
        ((0.0, 30.0, 100.0), 60.0, {0.0: "S1", 50.0: "S2", 100.0: "S3"}),
        # S2 would hide S1, and is hidden by it
        ((0.0, 1.0, 1000.0), None, {0.0: "S1", 1000.0: "S3"}),
        ((1.0, 0.0, 1000.0), None, {0.0: "S2", 1000.0: "S3"}),
        # S3 and S4 were not measured
        ((50.0, 0.0, 50.0, 100.0), None, {0.0: "S2", 50.0: "S1", 100.0: "S4"}),
    ],
)
def test_a_plane_shows_the_section_nearest_to_it(
    sections: list[Section], depths: tuple[float, ...], z_um: float | None, planes: dict
) -> None:
    config = CompleteConfig(volume_um=100.0, volume_z_um=z_um)
    assert shown(sections, depths, config) == planes


def test_a_section_beyond_half_a_step_is_at_no_plane(sections: list[Section]) -> None:
    grid = VolumeGrid((4, 2, 2), (30.0, 9.0, 9.0), (0.0, 0.0, 0.0))
    found = at_planes(grid, at(sections, 0.0, 44.0, 106.0))
    assert {n: x.section.section for n, x in found.items()} == {0: "S1", 1: "S2"}


def test_a_label_tells_the_depth_of_a_section_beside_its_plane(sections: list[Section]) -> None:
    grid = VolumeGrid((3, 4, 4), (50.0, 100.0, 100.0), (0.0, 0.0, 0.0))
    own, beside = at(sections, 0.0, 30.0)[:2]
    gene = sections[0].require_counts().var_names[0]
    empty = np.zeros((4, 4))
    planes = [
        _with_section(PlaneMap(z, empty), layer, grid, gene)
        for z, layer in ((0.0, own), (50.0, beside))
    ]
    assert [plane.section for plane in planes] == ["S1", "S2 (30 µm)"]
    assert [plane.kind for plane in planes] == [MEASURED, MEASURED]


def test_measured_sections_count_before_others(sections: list[Section]) -> None:
    one, two, *bare = sections
    alone = [one, replace(two, counts=None), *bare]
    places = identity_stack(sections).places

    def chosen(blocks: str, cohort: list[Section]) -> list[str]:
        stack = Stack(tuple(replace(p, block=b) for p, b in zip(places, blocks, strict=True)))
        return [x.section.section for x in _layers(cohort, stack)]

    assert chosen("ABBB", alone) == ["S1"]
    assert chosen("ABBB", sections) == ["S2", "S3", "S4"]
    assert chosen("BBAA", sections) == ["S1", "S2"]
    assert chosen("ABBB", [replace(s, counts=None) for s in sections]) == []


def test_sections_without_tissue_make_no_volume(
    sections: list[Section], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume, "_outline", lambda _: np.empty((0, 2)))
    assert _layers(sections, identity_stack(sections)) == []


class Sizes:
    """Predicts the place, and remembers how many points it was asked for at once."""

    def __init__(self, genes: int) -> None:
        self.stack: Stack | None = None
        names = tuple(f"G{k}" for k in range(genes))
        self.target = ExpressionTarget(names, "log1p_cp10k", Null(np.ones(genes), 1.0, 1))
        self.asked: list[int] = []

    def predict_at_depth(self, slide: Slide, coords: FloatArray, z_um: float) -> Prediction:
        self.asked.append(len(coords))
        mean = np.repeat(coords[:, :1], len(self.target.names), axis=1)
        return Prediction(mean, mean, mean)


def test_many_genes_are_predicted_at_fewer_points_at_once(
    sections: list[Section], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume, "CHUNK_VALUES", 1000)
    layers = at(sections, 0.0, 30.0)
    grid = volume_grid(layers, sections, CompleteConfig(volume_um=60.0))
    for genes, most in ((10, 100), (100, 10)):
        predictor = Sizes(genes)
        path = tmp_path / f"{genes}.ome.zarr"
        _write(path, grid, layers, predictor, (["G1"], np.array([1])))
        # glass is not predicted
        assert 0.8 * most <= max(predictor.asked) <= most


def test_different_names_are_different_files() -> None:
    names = ["Layer 2/3", "T/NK", "..", ".", "", "a:b", "a_b", "é", "x" * 300, "x" * 301, "HLA-A"]
    names += [file_name(name) for name in names if file_name(name) != name]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names)
    for file in files:
        assert set(file) <= {*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."}
        assert not file.startswith(".")
        assert 0 < len(file) < 120
    assert file_name("HLA-A") == "HLA-A"
