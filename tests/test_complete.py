"""What was measured stays, what is predicted adds up, planes lie between their sections."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from deepspace.core import keys
from deepspace.core.config import CompleteConfig, FailedConfig, QCConfig
from deepspace.data.failed import find_failed
from deepspace.data.targets import ExpressionTarget
from deepspace.data.tissue import tissue_mask
from deepspace.data.transforms import Null
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.models.base import FloatArray, Prediction
from deepspace.registration.stack import Stack, identity_stack
from deepspace.simulate import BlockConfig, simulate_block
from deepspace.workflows.beside import beside_measured
from deepspace.workflows.cohort import read_cohort
from deepspace.workflows.volume import Layer, around, predict_plane, volume_grid


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
        return Prediction(mean, mean * 0, mean * 0 + 0.5, np.zeros(len(coords), bool))


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
