"""What drives a prediction: against known laws, by hand, and from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from calls import call
from deepspace.core.config import Config, KrigingConfig, ProbeConfig, TargetConfig, load_config
from deepspace.core.errors import InputError
from deepspace.core.provenance import provenance
from deepspace.data.coords import reference_points
from deepspace.data.patches import PatchSpec, read_patch
from deepspace.data.targets import fit_target
from deepspace.data.tissue import tissue_mask
from deepspace.io.section import Section
from deepspace.io.sheet import read_sheet
from deepspace.models import attribution
from deepspace.models.attribution import (
    CELLS,
    METHODS,
    Attribution,
    Settings,
    choose_methods,
    in_cells,
)
from deepspace.models.backbones import Backbone, LayerOutput
from deepspace.models.base import Predictor
from deepspace.models.baselines import GeneMean
from deepspace.models.cnn import CNN, Tools
from deepspace.models.encoders import Encoder, Pretrained
from deepspace.models.features import FeatureExtractor
from deepspace.models.image_term import open_model
from deepspace.models.kriging import ImageTerm, Kriging
from deepspace.models.network import IMAGENET, Reading
from deepspace.models.probe import Probe
from deepspace.models.registry import MODELS, Workbench
from deepspace.models.stain_features import FEATURE_NAMES, mean_colour
from deepspace.models.store import EncoderCard, GeneCard, ModelCard, write_model
from deepspace.models.weights import Weights
from deepspace.simulate import BlockConfig, simulate_block
from deepspace.workflows.cohort import read_cohort
from deepspace.workflows.explain import ExplainOptions, explain
from deepspace.workflows.novelty import fit_novelty

FOV, SIDE = 64.0, 16
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    block = simulate_block(BlockConfig.preset("tiny", seed=3))
    return read_cohort(block.write(tmp_path_factory.mktemp("explain") / "block"))


def point_of(section: Section, spot: int = 20) -> np.ndarray:
    return section.coords[spot]


def statistics(specs: tuple[PatchSpec, ...], *, left: bool = False) -> FeatureExtractor:
    """Mean colour, of the left half of a patch alone if asked for."""

    def embed(patches: np.ndarray) -> np.ndarray:
        return mean_colour(np.ascontiguousarray(patches[:, :, : SIDE // 2 if left else SIDE]))

    return FeatureExtractor(Encoder("mean", specs, embed, COLOURS, {"precision": "exact"}))


ONE = (PatchSpec(FOV, SIDE),)
TWO = (PatchSpec(FOV / 2, SIDE), PatchSpec(FOV, SIDE))
GENES = TargetConfig(genes="expressed:2", context=0)


def probe(sections: list[Section], specs: tuple[PatchSpec, ...] = ONE, **how: bool) -> Probe:
    extractor = statistics(specs, **how)
    return Probe(extractor, ProbeConfig()).fit(sections, fit_target(sections, GENES))


class LeftHalf(Backbone):
    """Two convolutions over the left half of a patch."""

    layers = range(1, 2)
    width = 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Tanh())

    def layer_outputs(self, x: Tensor, layers: object) -> list[LayerOutput]:
        return [LayerOutput(self.body(x[..., : SIDE // 2])) for _ in layers]


@pytest.fixture(scope="module")
def cnn(sections: list[Section]) -> CNN:
    reading = Reading((1,), ("mean", "sd"), IMAGENET)
    pretrained = Pretrained("left", LeftHalf(), reading, ONE, Weights({}, "none", "none"))
    config = Config().with_values(
        cnn={"epochs": 2, "precision": "fp32", "trainable": "all"},
        encoder={"name": "vgg16", "precision": "fp32"},
        device="cpu",
    )
    start = FeatureExtractor(pretrained.encoder("fp32"))
    return CNN(Tools(pretrained, start, config, None)).fit(sections, fit_target(sections, GENES))


def run(model: Predictor, method: str, section: Section, **settings: object) -> Attribution:
    how = Settings(**settings)
    return METHODS[method].explain(open_model(model), section.slide, point_of(section), [0, 1], how)


def test_occlusion_of_mean_colour_is_what_it_is_by_hand(sections: list[Section]) -> None:
    model, slide = probe(sections, TWO), sections[0].slide
    found = run(model, "occlusion", sections[0], window_um=16.0)
    assert found.values.shape == (2, 8, 8)
    tile = [read_patch(slide, *point_of(sections[0]), spec).astype(float) for spec in TWO]
    fill = tile[1].mean((0, 1)).round()
    spread = model.extractor.raw(slide, reference_points(slide, tissue_mask(slide))).std(0)
    for i, j in [(0, 0), (3, 4), (7, 2)]:
        lost = []
        for patch, spec in zip(tile, TWO, strict=True):
            pixel = np.arange(SIDE) * spec.um_per_px + spec.um_per_px / 2 - spec.fov_um / 2
            middle_y, middle_x = ((k + 0.5) * 8 - 32 for k in (i, j))
            rows = (pixel >= middle_y - 8) & (pixel < middle_y + 8)
            cols = (pixel >= middle_x - 8) & (pixel < middle_x + 8)
            part = (patch - fill)[np.ix_(rows, cols)]
            lost.append(part.reshape(-1, 3).sum(0) / SIDE**2)
        expected = (np.concatenate(lost) / spread) @ model.coefficients
        np.testing.assert_allclose(found.values[:, i, j], expected, atol=1e-6)
    assert np.abs(found.values).max() > 1e-3


@pytest.mark.parametrize("fill", ["mean", "blur"])
def test_occlusion_sees_that_a_model_looks_at_the_left_half_alone(
    sections: list[Section], fill: str
) -> None:
    found = run(probe(sections, left=True), "occlusion", sections[0], window_um=16.0, fill=fill)
    # windows at column 4 begin 4 um left of the middle
    assert np.array_equal(found.values[:, :, 5:], np.zeros((2, 8, 3)))
    assert (np.abs(found.values[:, :, 1:4]).max(axis=(1, 2)) > 1e-4).all()


def test_gradients_see_that_a_network_looks_at_the_left_half_alone(
    cnn: CNN, sections: list[Section]
) -> None:
    found = run(cnn, "gradients", sections[0])
    assert np.array_equal(found.values[:, :, CELLS // 2 :], np.zeros((2, CELLS, CELLS // 2)))
    assert (np.abs(found.values).max(axis=(1, 2)) > 1e-6).all()
    dark = run(cnn, "occlusion", sections[0], window_um=16.0)
    assert np.array_equal(dark.values[:, :, 5:], np.zeros((2, 8, 3)))


@pytest.mark.parametrize("fill", ["mean", "blur"])
@pytest.mark.parametrize("spot", [0, 15, 30])
def test_gradients_add_up_to_the_difference(
    cnn: CNN, sections: list[Section], fill: str, spot: int
) -> None:
    opened, slide = open_model(cnn), sections[1].slide
    found = METHODS["gradients"].explain(
        opened, slide, point_of(sections[1], spot), [1, 0], Settings(fill=fill)
    )
    difference = found.predicted - found.reference
    assert (np.abs(found.gap) <= np.maximum(0.02 * np.abs(difference), 0.002)).all()
    assert np.abs(difference).max() > 0.01
    assert found.values.sum(axis=(1, 2)) == pytest.approx(difference, rel=0.02, abs=0.002)


@pytest.mark.parametrize("method", ["occlusion", "gradients"])
def test_what_is_explained_is_what_the_network_predicts(
    cnn: CNN, sections: list[Section], method: str
) -> None:
    found = run(cnn, method, sections[0])
    told = cnn.target.decode(cnn.predict(sections[0].slide, point_of(sections[0])[None]).mean)[0]
    np.testing.assert_allclose(found.predicted, told, atol=1e-5)


def test_contributions_add_up_to_the_prediction(sections: list[Section]) -> None:
    model = probe(sections, TWO)
    found = run(model, "contributions", sections[0])
    told = model.predict(sections[0].slide, point_of(sections[0])[None]).mean[0]
    np.testing.assert_allclose(found.reference + found.values.sum(axis=1), told, rtol=1e-12)
    np.testing.assert_array_equal(found.reference, model.y_mean)
    assert np.abs(found.gap).max() < 1e-12


def test_a_map_does_not_depend_on_the_batch(
    sections: list[Section], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = probe(sections, TWO)
    whole = run(model, "occlusion", sections[0])
    monkeypatch.setattr(attribution, "BATCH", 7)
    parts = run(model, "occlusion", sections[0])
    assert whole.values.tobytes() == parts.values.tobytes()


def test_gradients_of_a_gene_do_not_depend_on_the_others(cnn: CNN, sections: list[Section]) -> None:
    opened, slide = open_model(cnn), sections[0].slide
    one, two = (
        METHODS["gradients"].explain(opened, slide, point_of(sections[0]), columns, Settings())
        for columns in ([1], [1, 1])
    )
    np.testing.assert_allclose(two.values[0], one.values[0], atol=1e-7)
    again = METHODS["gradients"].explain(opened, slide, point_of(sections[0]), [1], Settings())
    assert again.values.tobytes() == one.values.tobytes()


@given(st.integers(0, SIDE - 1), st.integers(0, SIDE - 1), st.integers(0, 1))
def test_pixels_go_where_they_lie_and_none_is_lost(row: int, col: int, field: int) -> None:
    sight = open_sight()
    pixels = np.zeros((1, 2, SIDE, SIDE))
    pixels[0, field, row, col] = 3.0
    cells = in_cells(pixels, sight)
    assert cells.sum() == 3.0
    place = np.argwhere(cells[0])[0] + 0.5
    spec = TWO[field]
    um = (np.array([row, col]) + 0.5) * spec.um_per_px - spec.fov_um / 2
    assert np.abs(place * FOV / CELLS - FOV / 2 - um).max() <= FOV / CELLS / 2 + 1e-9


def open_sight() -> object:
    class Seen:
        specs, fov_um = TWO, FOV

    return Seen()


def test_kriging_is_explained_by_its_image_term(sections: list[Section]) -> None:
    inner = probe(sections)
    kriging = Kriging(ImageTerm(lambda: inner, inner.extractor), None, KrigingConfig())
    kriging.image = inner
    whole, alone = (run(m, "occlusion", sections[0]) for m in (kriging, inner))
    np.testing.assert_array_equal(whole.values, alone.values)


def test_a_model_is_asked_for_what_it_has(cnn: CNN, sections: list[Section]) -> None:
    linear = open_model(probe(sections))
    assert choose_methods(linear, ()) == ["occlusion", "contributions"]
    assert choose_methods(open_model(cnn), ()) == ["gradients"]
    with pytest.raises(InputError, match="gradients: this model has occlusion, contributions"):
        choose_methods(linear, ["gradients"])
    with pytest.raises(InputError, match="contributions: this model has occlusion, gradients"):
        choose_methods(open_model(cnn), ["contributions"])
    blind = GeneMean().fit(sections, fit_target(sections, GENES))
    with pytest.raises(InputError, match="does not look at the image"):
        open_model(blind)


def test_every_statistic_of_stain_has_a_readable_group() -> None:
    groups = {attribution.feature_group(f"150um_{name}") for name in FEATURE_NAMES}
    assert {group for _, group in groups} == {
        "colour", "haematoxylin", "eosin", "texture", "nuclei",
    }  # fmt: skip
    assert {field for field, _ in groups} == {"150 um"}


PROBE = """
[target]
context = 0
[encoder]
name = "stain"
size_px = 64
fov_um = [60.0, 120.0]
"""

NETWORK = """
[target]
context = 0
[encoder]
name = "vgg16"
weights = "random:0"
size_px = 16
fov_um = [60.0, 120.0]
layers = [2]
[cnn]
epochs = 1
precision = "fp32"
"""


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = BlockConfig.preset("tiny", seed=2, unmeasured=("S2",))
    return simulate_block(config).write(tmp_path_factory.mktemp("explained") / "block")


def save_fitted(folder: Path, model: str, config: Config, sections: list[Section]) -> Path:
    """What `train` saves, without the evaluation that takes it most of its time."""
    bench = Workbench.of(config)
    goal = fit_target(sections, config.target)
    predictor = MODELS[model](bench).fit(sections, goal)
    encoder = bench.extractor(config.encoder).encoder
    state, _ = predictor.state()
    target, _ = predictor.target.state()
    names = predictor.target.names
    card = ModelCard(
        model=model,
        target=target,
        genes=tuple(GeneCard(name=n, score=None, ceiling=None, verdict="weak") for n in names),
        encoder=EncoderCard(
            **bench.describe_encoder(),
            fov_um=tuple(s.fov_um for s in encoder.specs),
            patch_px=tuple(s.size_px for s in encoder.specs),
        ),
        training=(),
        scores={"split": "section"},
        provenance=provenance("train", config.model_dump(mode="json"), {}, config.seed),
        state=state,
    )
    folder.mkdir()
    write_model(folder, predictor, card, fit_novelty(sections, bench))
    return folder


@pytest.fixture(scope="module")
def models(sheet: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, made = tmp_path_factory.mktemp("models"), {}
    sections = [s for s in read_cohort(sheet) if s.counts is not None]
    for name, text in (("probe", PROBE), ("cnn", NETWORK)):
        settings = folder / f"{name}.toml"
        settings.write_text(text)
        config = load_config(str(settings)).with_values(target={"genes": "expressed:3"})
        made[name] = save_fitted(folder / name, name, config, sections)
    return made


def genes_of(model: Path) -> list[str]:
    return [gene["name"] for gene in json.loads((model / "model.json").read_text())["genes"]]


@pytest.mark.slow
def test_probe_from_the_command_line(
    models: dict[str, Path], sheet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, genes = tmp_path / "why", genes_of(models["probe"])[:2]
    arguments = [models["probe"], sheet, "--section", "S1", "--genes", ",".join(genes)]
    options = ["--out", out, "--overlay", "--window", "40", "--json", "--quiet"]
    code, told, _ = call("explain", *arguments, *options, capsys=capsys)
    assert code == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "attribution.json", "cases.csv", "contribution_groups.csv", "contributions.csv",
        "contributions.png", "occlusion.npy", "occlusion.png", "overlay.csv", "overlay.png",
    ]  # fmt: skip
    cases = pd.read_csv(out / "cases.csv")
    assert cases["gene"].tolist() == [genes[0]] * 3 + [genes[1]] * 3
    assert cases["tile"].tolist() == ["highest", "middle", "lowest"] * 2
    assert (np.diff(cases["predicted"].to_numpy().reshape(2, 3), axis=1) < 0).all()
    parts = pd.read_csv(out / "contributions.csv")
    sums = parts.groupby("case")["contribution"].sum()
    np.testing.assert_allclose(cases["contributions_reference"] + sums, cases["predicted"])
    groups = pd.read_csv(out / "contribution_groups.csv")
    np.testing.assert_allclose(groups.groupby("case")["contribution"].sum(), sums, rtol=1e-9)
    # what the overlay says of the spot of a case are the same numbers
    overlay = pd.read_csv(out / "overlay.csv")
    for case in cases.itertuples():
        own = overlay[(overlay["point"] == case.point) & (overlay["gene"] == case.gene)]
        assert own["contribution"].sum() == pytest.approx(sums[case.case])
    maps = np.load(out / "occlusion.npy", allow_pickle=False)
    assert maps.shape == (6, 6, 6)
    assert (np.abs(maps).max(axis=(1, 2)) > 0).all()
    record = json.loads((out / "attribution.json").read_text())
    assert record["command"] == "explain"
    assert record["fields_um"] == [60.0, 120.0]
    assert record["settings"]["window_um"] == 40.0
    assert len(record["model_sha256"]) == 64
    assert any(name.startswith("S1/") for name in record["inputs"])
    facts = json.loads(told)
    assert [row["gene"] for row in facts["tiles"]] == cases["gene"].tolist()
    assert set(facts["tiles"][0]["contributions"]) >= {"colour", "nuclei"}


@pytest.mark.slow
def test_network_from_the_command_line(
    models: dict[str, Path], sheet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, gene = tmp_path / "why", genes_of(models["cnn"])[0]
    arguments = [models["cnn"], sheet, "--section", "S2", "--genes", gene, "--out", out]
    places = ["--at", "300,280", "--at", "200,260"]
    methods = ["--method", "gradients", "--method", "occlusion"]
    code, told, _ = call("explain", *arguments, *places, *methods, "--quiet", capsys=capsys)
    assert code == 0
    assert gene in told
    cases = pd.read_csv(out / "cases.csv")
    assert cases[["x", "y"]].to_numpy().tolist() == [[300.0, 280.0], [200.0, 260.0]]
    difference = cases["predicted"] - cases["gradients_reference"]
    maps = np.load(out / "gradients.npy", allow_pickle=False)
    assert maps.shape == (2, CELLS, CELLS)
    allowed = np.maximum(0.02 * difference.abs(), 0.002) + 1e-4
    assert (np.abs(maps.sum(axis=(1, 2)) - difference) <= allowed).all()
    with Image.open(out / "gradients.png") as picture:
        assert picture.width > 1000
    assert (out / "occlusion.png").exists()


@pytest.mark.slow
def test_the_same_request_gives_the_same_result(models: dict[str, Path], sheet: Path) -> None:
    genes = genes_of(models["probe"])
    options = ExplainOptions(points=2, settings=Settings(window_um=60.0))
    both = explain(models["probe"], sheet, section="S1", genes=genes[:2], options=options)
    alone = explain(models["probe"], sheet, section="S1", genes=genes[1:2], options=options)
    np.testing.assert_array_equal(both.maps["occlusion"][2:], alone.maps["occlusion"])
    assert both.cases["predicted"].tolist()[2:] == alone.cases["predicted"].tolist()
    assert both.cases["tile"].tolist() == ["highest", "lowest"] * 2
    for one in (both, alone):
        assert list(one.record["methods"]) == ["occlusion", "contributions"]


@pytest.mark.slow
def test_a_section_without_spots_is_explained_on_a_lattice(
    models: dict[str, Path], sheet: Path
) -> None:
    (section,) = read_sheet(sheet, only=["S2"])
    bare = replace(section, spots=None, counts=None)
    genes = genes_of(models["probe"])[:1]
    options = ExplainOptions(points=2, methods=("contributions",))
    found = explain(models["probe"], bare, section="S2", genes=genes, options=options)
    assert found.cases["point"].str.startswith("S2_grid_").all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--genes", "NOBODY"], "does not predict NOBODY"),
        (["--genes", ","], "0 genes; name 1 to"),
        (["--method", "gradients"], "this model has occlusion, contributions"),
        (["--method", "shap"], "give occlusion, gradients, contributions"),
        (["--section", "S9"], "S9"),
        (["--points", "0"], "--points 0"),
        (["--at", "12"], "--at 12: give x,y"),
        (["--at", "1e7,5"], "outside"),
        (["--at", "nan,5"], "outside"),
        (["--window", "500"], "--window 500"),
        (["--window", "nan"], "--window nan"),
        (["--fill", "red"], "--fill red: give mean or blur"),
    ],
)
def test_a_fault_is_told_in_one_message(
    models: dict[str, Path],
    sheet: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wrong: list[str],
    message: str,
) -> None:
    given = {"--section": ["S1"], "--genes": [genes_of(models["probe"])[0]]}
    given |= {wrong[0]: wrong[1:]}
    options = [text for name, values in given.items() for text in (name, *values)]
    out = tmp_path / "why"
    code, _, told = call(
        "explain", models["probe"], sheet, "--out", out, "--quiet", *options, capsys=capsys
    )
    assert code == 2
    assert message in told
    assert not out.exists()


@pytest.mark.slow
def test_nothing_is_replaced_unasked(
    models: dict[str, Path], sheet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "why"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    arguments = [models["cnn"], sheet, "--section", "S1", "--genes", "x", "--out", out]
    code, _, told = call("explain", *arguments, "--overwrite", capsys=capsys)
    assert code == 2
    assert "attribution.json" in told
    code, _, told = call("explain", *arguments[:-1], tmp_path / "new", "--overlay", capsys=capsys)
    assert code == 2
    assert "does not predict x" in told
