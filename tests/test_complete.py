"""What was measured stays, what is predicted adds up, planes lie between their sections."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from deepspace.core import keys
from deepspace.core.config import CompleteConfig, Config, FailedConfig, QCConfig
from deepspace.core.errors import InputError
from deepspace.core.files import file_name
from deepspace.data.failed import find_failed
from deepspace.data.splits import LEAST_BLANKED
from deepspace.data.targets import ExpressionTarget
from deepspace.data.tissue import tissue_mask
from deepspace.data.transforms import Null
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.models.base import FloatArray, Prediction
from deepspace.models.registry import Workbench
from deepspace.output.volume import open_volume
from deepspace.registration.stack import Stack, identity_stack
from deepspace.simulate import BlockConfig, simulate_block
from deepspace.workflows import cohort, stacking, volume
from deepspace.workflows import complete as complete_module
from deepspace.workflows.beside import beside_measured
from deepspace.workflows.cohort import Prepared, read_cohort
from deepspace.workflows.complete import _score_within, complete
from deepspace.workflows.experiment import Experiment
from deepspace.workflows.train import train
from deepspace.workflows.volume import (
    Layer,
    _layers,
    _write,
    around,
    predict_plane,
    volume_grid,
)

SETTINGS = Config().with_values(qc={"min_counts": 50, "min_genes": 5})


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    config = BlockConfig.preset("tiny", seed=5, unmeasured=("S2",))
    return read_cohort(simulate_block(config).write(tmp_path_factory.mktemp("complete") / "block"))


@pytest.fixture(scope="module")
def layers(sections: list[Section]) -> list[Layer]:
    places = identity_stack(sections).places
    return [Layer(s, p, tissue_mask(s.slide)) for s, p in zip(sections, places, strict=True)]


class DepthOf:
    """Predicts the number of the slide it looks at, and the depth it is asked for."""

    def __init__(self, sections: list[Section]) -> None:
        self.slides = [s.slide.content_hash() for s in sections]
        self.stack: Stack | None = None
        self.target = ExpressionTarget(("slide", "depth"), "log1p_cp10k", Null(np.ones(2), 1.0, 1))

    def predict_at_depth(self, slide: Slide, coords: FloatArray, z_um: float) -> Prediction:
        number = float(self.slides.index(slide.content_hash()))
        mean = np.tile([number, z_um], (len(coords), 1))
        return Prediction(mean, mean * 0, mean * 0 + 0.5)


def test_a_plane_between_two_sections_takes_both(layers: list[Layer]) -> None:
    assert [(x.section.section, w) for x, w in around(layers, 30.0)] == [("S2", 1.0)]
    (low, a), (high, b) = around(layers, 40.0)
    assert (low.section.section, high.section.section) == ("S2", "S3")
    assert (a, b) == pytest.approx((2 / 3, 1 / 3))
    assert [(x.section.section, w) for x, w in around(layers, 99.0)] == [("S3", 1.0)]
    assert [(x.section.section, w) for x, w in around(layers, -9.0)] == [("S1", 1.0)]


def test_planes_mix_images_by_distance_and_add_their_disagreement(
    sections: list[Section], layers: list[Layer]
) -> None:
    points = sections[0].coords * sections[0].slide.require_mpp()
    both = layers[1].inside(points) & layers[2].inside(points)
    one = layers[1].inside(points) ^ layers[2].inside(points)
    inside, mean, sd = predict_plane(DepthOf(sections), layers, points, 40.0)
    assert (inside == both | one).all()
    assert mean[both[inside], 0] == pytest.approx(4 / 3)
    assert mean[:, 1] == pytest.approx(40.0)
    # 0.5 of each, and means 1 and 2 with weights 2/3 and 1/3
    assert sd[both[inside], 0] == pytest.approx(np.sqrt(0.25 + 2 / 9))
    assert sd[one[inside], 0] == pytest.approx(0.5)


def test_glass_is_no_tissue(sections: list[Section], layers: list[Layer]) -> None:
    corner = np.array([[1.0, 1.0]])
    inside, mean, sd = predict_plane(DepthOf(sections), layers, corner, 0.0)
    assert not inside.any()
    assert len(mean) == len(sd) == 0


def test_the_volume_covers_the_tissue_from_the_first_section_to_the_last(
    sections: list[Section], layers: list[Layer]
) -> None:
    grid = volume_grid(layers, sections, CompleteConfig())
    assert grid.z_um.tolist() == [0.0, 15.0, 30.0, 45.0, 60.0]
    points = grid.plane_points()
    for section in sections:
        if section.measured:
            um = section.coords * section.slide.require_mpp()
            near = np.abs(um[:, None] - points[None]).max(axis=2).min(axis=1)
            assert near.max() <= grid.step_um[1]
    coarse = volume_grid(layers, sections, CompleteConfig(volume_um=100.0, volume_z_um=60.0))
    assert coarse.step_um == (60.0, 100.0, 100.0)
    assert coarse.shape[0] == 2


@pytest.mark.parametrize(
    ("depths", "z_um", "planes"),
    [
        ((0.0, 30.0, 100.0), None, [10.0 * k for k in range(11)]),
        ((0.0, 31.7, 100.0), None, np.linspace(0, 100, 8)),
        ((0.0, 30.0, 100.0), 60.0, [0.0, 50.0, 100.0]),
        ((0.0, 1.0, 1000.0), None, np.linspace(0, 1000, 101)),
    ],
)
def test_the_first_and_the_last_section_have_a_plane_whatever_their_depths(
    sections: list[Section],
    layers: list[Layer],
    depths: tuple[float, ...],
    z_um: float | None,
    planes: list[float],
) -> None:
    uneven = [
        replace(x, place=replace(x.place, z_um=z)) for x, z in zip(layers, depths, strict=True)
    ]
    found = volume_grid(uneven, sections, CompleteConfig(volume_z_um=z_um, volume_um=100.0)).z_um
    np.testing.assert_allclose(found, planes, atol=1e-9)


def test_the_volume_is_that_of_measured_sections(sections: list[Section]) -> None:
    bare = [sections[0], *(replace(s, counts=None) for s in sections[1:])]
    places = identity_stack(bare).places
    blocks = [replace(p, block=b) for p, b in zip(places, "ABB", strict=True)]
    found = _layers(bare, Stack(tuple(blocks)))
    assert [x.section.section for x in found] == [sections[0].section]
    assert _layers(bare[1:], Stack(tuple(blocks))) == []


def test_a_plane_is_the_same_in_chunks(
    sections: list[Section], layers: list[Layer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = volume_grid(layers, sections, CompleteConfig(volume_um=60.0))
    planes = []
    for chunk in (7, 100_000):
        monkeypatch.setattr(volume, "CHUNK", chunk)
        path = tmp_path / f"{chunk}.ome.zarr"
        chosen = (["depth"], np.array([1]))
        _write(path, grid, layers, DepthOf(sections), chosen)
        planes.append(open_volume(path).plane(1, "depth"))
    np.testing.assert_array_equal(planes[0], planes[1])
    assert np.isfinite(planes[0][0]).any()


@pytest.mark.parametrize("name", ["Layer 2/3", "T/NK", "..", "a:b", "../up", "Layer_2_3", "HLA-A"])
def test_any_name_makes_a_file_name(name: str, tmp_path: Path) -> None:
    (tmp_path / f"volume-{file_name(name)}.png").write_text("")
    assert len(list(tmp_path.iterdir())) == 1
    assert file_name(name) != file_name("Layer 2_3")


def predicted(section: Section, genes: list[str]) -> AnnData:
    assert section.spots is not None
    names = section.spots.index[section.spots[keys.IN_TISSUE].to_numpy(dtype=bool)]
    return AnnData(
        np.zeros((len(names), len(genes)), np.float32),
        obs=pd.DataFrame(index=names),
        var=pd.DataFrame(index=genes),
    )


def test_measured_values_stand_beside_predictions(sections: list[Section]) -> None:
    section = sections[0]
    counts = section.require_counts()
    bad = counts.obs_names[0]
    table = find_failed(
        section, QCConfig(min_counts=1, min_genes=1), FailedConfig(local=False), {bad}
    )
    genes = [str(counts.var_names[3]), "not measured"]
    found = predicted(section, genes)
    before = found.X.copy()
    beside_measured(found, section, table)
    assert (before == found.X).all()
    assert found.obs["failed"].sum() == 1
    assert found.obs.loc[bad, "reason"] == "given"
    own = np.asarray(counts.X.todense())
    expected = np.log1p(1e4 * own[:, 3] / own.sum(axis=1))
    rows = found.obs_names.get_indexer(counts.obs_names)
    # the failed spot's own measurement is still there to be looked at
    assert found.layers["measured"][rows, 0] == pytest.approx(expected, rel=1e-5)
    assert np.isnan(found.layers["measured"][:, 1]).all()


def test_spots_without_counts_have_no_measurement(sections: list[Section]) -> None:
    section = sections[0]
    some = replace(section, counts=section.require_counts()[5:].copy())
    table = find_failed(some, QCConfig(min_counts=1, min_genes=1), FailedConfig(local=False))
    found = predicted(section, [str(section.require_counts().var_names[0])])
    beside_measured(found, some, table)
    lost = section.require_counts().obs_names[:5]
    assert (found.obs.loc[lost, "reason"] == "no counts").all()
    assert np.isnan(found[lost].layers["measured"]).all()


# ---- what a run starts from


def more_counts(section: Section) -> Section:
    counts = section.require_counts().copy()
    counts.X = counts.X.copy()
    counts.X.data[0] += 1
    return replace(section, counts=counts)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: replace(s, z_um=7.0),
        lambda s: replace(s, patient="someone else"),
        lambda s: replace(s, section="S9"),
        lambda s: replace(s, spot_diameter_um=70.0),
        lambda s: replace(s, slide=s.slide.with_mpp(s.slide.require_mpp() * 1.01, "test")),
        more_counts,
    ],
)
def test_any_change_of_a_section_makes_another_run(sections: list[Section], change: Any) -> None:
    config = SETTINGS
    found = Experiment.read(sections, config, None).fingerprint()
    assert Experiment.read(sections, config, None).fingerprint() == found
    other = Experiment.read([change(sections[0]), *sections[1:]], config, None).fingerprint()
    assert other[0] != found[0]
    assert other[1:] == found[1:]


def test_a_stopped_run_does_not_go_on_with_changed_sections(
    sections: list[Section], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise RuntimeError("stopped")

    monkeypatch.setattr(complete_module, "prepare_cohort", lambda *args: None)
    monkeypatch.setattr(complete_module, "_steps", stop)
    for _ in range(2):  # the same sections go on
        with pytest.raises(RuntimeError, match="stopped"):
            complete(sections, tmp_path / "out", config=SETTINGS)
    for changed in (replace(sections[0], z_um=7.0), more_counts(sections[0])):
        with pytest.raises(InputError, match="unfinished run"):
            complete([changed, *sections[1:]], tmp_path / "out", config=SETTINGS)


def test_a_wrong_encoder_is_told_before_sections_are_registered(
    sections: list[Section], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("registered")

    monkeypatch.setattr(stacking, "register_stack", never)
    monkeypatch.setenv("DEEPSPACE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="no encoder 'nothing'"):
        complete(
            sections, tmp_path / "out", config=SETTINGS.with_values(encoder={"name": "nothing"})
        )


def test_nothing_to_learn_from_is_told_first(sections: list[Section], tmp_path: Path) -> None:
    bare = [replace(s, counts=None, spots=None) for s in sections]
    with pytest.raises(InputError, match="no section of the sheet has counts"):
        complete(bare, tmp_path / "out")


def test_sections_too_small_to_blank_have_no_scores_within(
    sections: list[Section], tmp_path: Path
) -> None:
    small = [s.subset(np.arange(LEAST_BLANKED - 1)) for s in sections if s.measured]
    ready = Prepared(small, [Workbench.of(Config())], [])
    _score_within(ready, tmp_path / "within")
    assert not list(tmp_path.iterdir())


def test_points_that_do_not_exist_are_told_before_anything_is_trained(
    sections: list[Section], tmp_path: Path
) -> None:
    assert sections[0].spots is not None
    two = replace(sections[0], counts=None, spots=sections[0].spots[:2])
    with pytest.raises(InputError) as told:
        complete([two, *sections[1:]], tmp_path / "out", config=SETTINGS)
    assert f"{sections[0].section}, --at between" in str(told.value)
    assert not list(tmp_path.iterdir())


def test_a_measured_section_without_a_table_of_spots_is_predicted_at_what_was_measured(
    sections: list[Section],
) -> None:
    bare = replace(sections[0], spots=None)
    found = Experiment.read([bare, *sections[1:]], SETTINGS, None)
    points = found.points[bare.section, "spots"]
    np.testing.assert_array_equal(points.coords, bare.coords)
    assert points.obs[keys.MEASURED].all()


@pytest.mark.parametrize("part", ["out", ".out-partial"])
def test_inputs_inside_the_output_are_refused(
    sections: list[Section], tmp_path: Path, part: str
) -> None:
    config = BlockConfig.preset("tiny", seed=5, unmeasured=("S2",))
    sheet = simulate_block(config).write(tmp_path / part / "block")
    settings = SETTINGS
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "run.json").write_text("{}")
    with pytest.raises(InputError, match="holds the input"):
        complete(sheet, tmp_path / "out", config=settings, overwrite=True)
    assert sheet.exists()
    failed = tmp_path / part / "failed.csv"
    barcode = sections[0].require_counts().obs_names[0]
    failed.write_text(f"section,barcode\n{sections[0].section},{barcode}\n")
    with pytest.raises(InputError, match=r"failed\.csv"):
        complete(sections, tmp_path / "out", config=settings, failed=failed, overwrite=True)
    assert failed.exists()


def test_serial_sections_are_scored_one_by_one(sections: list[Section]) -> None:
    def split(patients: str, **changes: Any) -> str:
        own = [replace(s, patient=p) for s, p in zip(sections, patients, strict=True)]
        config = SETTINGS.with_values(**changes)
        return Experiment.read(own, config, None).config.split.how

    assert split("PPP") == "section"
    assert split("PPQ") == "auto"  # S2 is not measured: nobody has two
    assert split("PQP") == "section"
    assert split("PQP", split={"how": "patient"}) == "patient"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"section": "A/B"}, "holds no /"),
        ({"section": ".A"}, "start with a dot"),
        ({"section": " "}, "is empty"),
        ({"z_um": float("nan")}, "z_um is nan"),
    ],
)
def test_what_a_sheet_refuses_is_refused_in_memory_too(
    sections: list[Section], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_cohort([replace(sections[0], **changes), *sections[1:]])


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        ("nofile.txt", "no such file"),
        ("IMG001,NOPE", "not in every measured section"),
    ],
)
def test_wrong_genes_are_told_before_sections_are_registered(
    sections: list[Section], monkeypatch: pytest.MonkeyPatch, genes: str, message: str
) -> None:
    monkeypatch.setattr(cohort, "with_stack", lambda *args: pytest.fail("registered"))
    config = Config().with_values(
        qc={"min_counts": 50, "min_genes": 5},
        target={"genes": genes},
        registration={"size_px": 100},
    )
    with pytest.raises(InputError, match=message):
        Experiment.read(sections, config, None)
    with pytest.raises(InputError, match=message):
        train(sections, config=config, model="kriging")


def test_a_section_of_which_all_spots_failed_is_named(
    sections: list[Section], tmp_path: Path
) -> None:
    table = tmp_path / "failed.csv"
    rows = [f"{sections[0].section},{name}" for name in sections[0].require_counts().obs_names]
    table.write_text("section,barcode\n" + "\n".join(rows))
    config = SETTINGS
    with pytest.raises(InputError, match=f"all .* spots of section {sections[0].section}"):
        Experiment.read(sections, config, table)
