"""Registration: maps and their inverses, stacks, and sections laid over each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from deepspace.core.config import RegistrationConfig
from deepspace.core.errors import InputError
from deepspace.io.section import Section
from deepspace.io.slide import Slide, open_slide
from deepspace.output.checkerboard import registered_pair
from deepspace.registration import features
from deepspace.registration import register as registering
from deepspace.registration.chain import register_stack
from deepspace.registration.masks import guesses
from deepspace.registration.prepare import Picture
from deepspace.registration.quality import mask_overlap, mutual_information
from deepspace.registration.refine import FREEDOM, Pair, refine
from deepspace.registration.register import landmark_errors, register
from deepspace.registration.stack import Stack, identity_stack
from deepspace.registration.transform import Field, Transform, turned_against
from deepspace.registration.warp import warp_image
from deepspace.simulate import BlockConfig, simulate_block

SIDE = 1000.0
POINTS = np.stack(np.meshgrid(*2 * [np.linspace(50, 950, 9)]), axis=-1).reshape(-1, 2)


def turn(degrees: float, mirror: bool = False, scale: float = 1.0) -> np.ndarray:
    """Linear part of a rotation, mirrored first if asked."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return scale * np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if mirror else 1.0, 1.0])


def wavy(seed: int, size_um: float, step: float = 50.0) -> Field:
    """Smooth random displacement of about `size_um` over a square of `SIDE`."""
    count = int(SIDE / step) + 1
    noise = np.random.default_rng(seed).normal(size=(count, count, 2))
    smooth = ndimage.gaussian_filter(noise, (4.0, 4.0, 0.0))
    return Field((0.0, 0.0), step, size_um * smooth / np.abs(smooth).max())


@st.composite
def transforms(draw: Callable) -> Transform:
    """Rotations, mirror images and scales with a smooth deformation."""
    linear = turn(draw(st.floats(0, 360)), draw(st.booleans()), draw(st.floats(0.5, 2.0)))
    shift = draw(st.tuples(*2 * [st.floats(-1e4, 1e4)]))
    field = wavy(draw(st.integers(0, 99)), draw(st.floats(0.0, 40.0)))
    return Transform(Transform.of(linear, shift).matrix, field).checked()


@given(transforms())
def test_a_transform_and_its_inverse_cancel(transform: Transform) -> None:
    there = transform.forward(POINTS)
    assert np.abs(transform.backward(there) - POINTS).max() < 0.01
    assert np.abs(transform.forward(transform.backward(there)) - there).max() < 0.01


@given(transforms())
def test_a_saved_transform_is_the_same(transform: Transform) -> None:
    values, arrays = transform.state()
    again = Transform.restore(json.loads(json.dumps(values)), arrays)
    assert np.array_equal(again.forward(POINTS), transform.forward(POINTS))


@given(transforms(), transforms())
def test_composition_applies_one_after_the_other(one: Transform, other: Transform) -> None:
    # the first has a grid: exact at its nodes, interpolated between them
    nodes = one.field.nodes()
    both = one.then(other)
    assert np.abs(both.forward(nodes) - other.forward(one.forward(nodes))).max() < 1e-6
    apart = both.forward(POINTS) - other.forward(one.forward(POINTS))
    assert np.abs(apart).max() < 10.0


def test_an_affine_map_takes_over_the_grid_of_the_deformation_after_it() -> None:
    linear = turn(70, mirror=True, scale=0.6)
    affine = Transform.of(linear, np.full(2, 500.0) - linear @ np.full(2, 500.0))
    deformed = Transform(np.eye(3), wavy(3, 30.0))
    apart = affine.then(deformed).forward(POINTS) - deformed.forward(affine.forward(POINTS))
    assert np.abs(apart).max() < 3.0


def test_a_folding_deformation_is_smoothed_until_it_can_be_inverted() -> None:
    rough = Transform(np.eye(3), Field((0.0, 0.0), 50.0, wavy(1, 400.0).values))
    assert rough.steepness() > 1
    smooth = rough.checked()
    assert smooth.steepness() < 1
    assert np.abs(smooth.backward(smooth.forward(POINTS)) - POINTS).max() < 1.0


def test_orientation_between_maps() -> None:
    upright, quarter = Transform.identity(), Transform.of(turn(90), (5.0, 5.0))
    assert turned_against(quarter, upright) == pytest.approx(90)
    assert turned_against(Transform.of(turn(10, mirror=True), (0, 0)), upright) == 180.0


@pytest.mark.parametrize("damage", [{"matrix": [[1.0]]}, {}, {"matrix": "x", "step_um": 1}])
def test_a_damaged_transform_is_refused(damage: dict) -> None:
    with pytest.raises(InputError, match="register again"):
        Transform.restore(damage, {})


def write_slide(path: Path, pixels: np.ndarray, mpp: float = 4.0) -> Slide:
    Image.fromarray(pixels).save(path)
    return open_slide(path).with_mpp(mpp, "test")


def bare(name: str, slide: Slide, z_um: float | None, patient: str = "P") -> Section:
    return Section(name, patient, slide, "image", z_um=z_um)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (50, 60, 3), dtype=np.uint8)


def test_identity_stack_finds_slides_by_content(tmp_path: Path) -> None:
    slides = [write_slide(tmp_path / f"{k}.png", noise(k), mpp=2.0) for k in range(4)]
    depths = (0.0, 30.0, None, 10.0)
    sections = [
        bare(f"S{k}", s, z, "Q" if k == 3 else "P")
        for k, (s, z) in enumerate(zip(slides, depths, strict=True))
    ]
    stack = identity_stack(sections[:4])
    copy = write_slide(tmp_path / "copy.png", noise(1), mpp=2.0)
    found = stack.locate(copy, [[10.0, 20.0]])
    assert found.xyz.tolist() == [[20.0, 40.0, 30.0]]
    blocks = [stack.locate(slide, [[0, 0]]).block for slide in slides]
    assert blocks[0] == blocks[1]
    assert len(set(blocks)) == 3, "no depth, and another patient: blocks of their own"
    assert stack.locate(write_slide(tmp_path / "new.png", noise(9)), [[0, 0]]) is None
    assert Stack(()).locate(copy, [[0, 0]]) is None


def test_a_saved_stack_is_the_same(tmp_path: Path) -> None:
    stack = identity_stack([bare("S", write_slide(tmp_path / "s.png", noise(0)), 5.0)])
    bent = Transform(Transform.of(turn(20), (3.0, 4.0)).matrix, wavy(2, 20.0))
    place = stack.places[0]
    stack = Stack((type(place)(**{**vars(place), "transform": bent}), place))
    values, arrays = stack.state()
    again = Stack.restore(json.loads(json.dumps(values)), arrays)
    for one, other in zip(stack.places, again.places, strict=True):
        assert np.array_equal(one.transform.forward(POINTS), other.transform.forward(POINTS))
        assert {**vars(one), "transform": 0} == {**vars(other), "transform": 0}
    with pytest.raises(InputError, match="register again"):
        Stack.restore({"places": [{"section": "S"}]}, {})


def picture(shape: tuple[int, int] = (120, 140), seed: int = 0) -> Picture:
    """Random structure on an oval of tissue."""
    rng = np.random.default_rng(seed)
    density = ndimage.gaussian_filter(rng.random(shape), 2.0)
    density = (density - density.min()) / np.ptp(density)
    rows, columns = np.indices(shape)
    mask = ((rows / shape[0] - 0.5) / 0.45) ** 2 + ((columns / shape[1] - 0.5) / 0.4) ** 2 < 1
    return Picture((density * mask).astype(np.float32), mask, (100.0, 50.0), 5.0)


def moved(source: Picture, transform: Transform) -> Picture:
    """The fixed picture that `transform` takes `source` to."""
    blank = Picture(source.density, source.mask, source.origin_um, source.um_per_px)
    points = transform.backward(blank.points())
    shape = source.mask.shape
    density = source.look(source.density, points).reshape(shape)
    return Picture(
        density, source.look(source.mask, points).reshape(shape) > 0.5, source.origin_um, 5.0
    )


@pytest.mark.parametrize("freedom", FREEDOM)
def test_refinement_finds_a_small_movement(freedom: str) -> None:
    source = picture()
    centre = source.centre_um()
    change = {"rigid": turn(3), "similarity": turn(3, scale=1.03)}.get(
        freedom, turn(3) @ np.array([[1.03, 0.02], [0.0, 0.98]])
    )
    truth = Transform.of(change, centre - change @ centre + (6.0, -9.0))
    pair = Pair.at(source, moved(source, truth), 5.0, 1.5)
    found = refine(pair, Transform.identity(), freedom, 25)
    inside = source.points()[source.mask.ravel()]
    before = landmark_errors(Transform.identity(), inside, truth.forward(inside))
    after = landmark_errors(found, inside, truth.forward(inside))
    assert np.median(before) > 9.0
    assert np.median(after) < 1.0


def test_scores_fall_when_the_match_is_spoilt() -> None:
    source = picture()
    right, wrong = Transform.identity(), Transform.of(np.eye(2), (60.0, 0.0))
    assert mask_overlap(source, source, right) == pytest.approx(1.0)
    assert mask_overlap(source, source, wrong) < 0.95
    assert mutual_information(source, source, right) > 1.0
    assert mutual_information(source, source, wrong) < 0.3


@pytest.mark.parametrize(
    ("freedom", "linear"),
    [
        ("rigid", turn(37)),
        ("similarity", turn(37, scale=1.3)),
        ("affine", np.array([[1.2, 0.1], [-0.3, 0.9]])),
    ],
)
def test_key_points_give_maps_of_every_kind(freedom: str, linear: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    right, wrong = rng.uniform(0, SIDE, (60, 2)), rng.uniform(0, SIDE, (20, 2))
    truth = Transform.of(linear, (50.0, 20.0))
    matched = np.vstack([right, wrong]), np.vstack([truth.forward(right), wrong[::-1] + 300])
    kinds = list(features.MODELS)
    for kind in kinds:
        found = features._fit(matched, kind, 2.0, 0)
        follows = kinds.index(kind) >= kinds.index(freedom)
        assert follows == (found is not None and np.allclose(found.matrix, truth.matrix, atol=1e-6))


@pytest.mark.parametrize(
    ("freedom", "kinds"), [("rigid", ["rigid"]), ("affine", ["rigid", "affine"])]
)
def test_key_points_start_from_rigid_maps_and_from_what_the_settings_allow(
    monkeypatch: pytest.MonkeyPatch, freedom: str, kinds: list[str]
) -> None:
    asked: list[str] = []

    def found(*given: Any) -> list[Transform]:
        asked.extend(given[2])
        return [Transform.identity()]

    monkeypatch.setattr(registering, "from_key_points", found)
    config = RegistrationConfig(freedom=freedom, angle_deg=15)
    starts = registering._starts(picture(), picture(), config, 0)
    assert np.array_equal(starts[-1].matrix, np.eye(3))
    assert asked == kinds


@pytest.mark.parametrize(("shift_um", "kept"), [(40.0, False), (0.0, True)])
def test_a_deformation_that_spoils_the_match_is_dropped(
    monkeypatch: pytest.MonkeyPatch, shift_um: float, kept: bool
) -> None:
    step = Transform.of(np.eye(2), (shift_um, 0.0))
    monkeypatch.setattr(registering, "deform", lambda *given: given[2].then(step))
    config = RegistrationConfig(key_points=False, angle_deg=15)
    found = registering.register_pictures(picture(), picture(), config)
    assert (found.transform is not found.affine) == kept
    assert landmark_errors(found.transform, POINTS, POINTS).max() < 10.0


def test_an_image_is_warped_where_the_coordinates_go() -> None:
    image = np.full((50, 60, 3), 255, np.uint8)
    image[20:24, 30:34] = 0
    transform = Transform.of(turn(90), (200.0, 10.0))
    centre = transform.forward([[32 * 2.0, 22 * 2.0]])[0]
    out = warp_image(image, 2.0, transform, (0.0, 0.0, 300.0, 300.0), 2.0)
    dark = np.argwhere(out[..., 0] < 128)[:, ::-1].mean(axis=0) * 2.0 + 1.0
    assert np.abs(dark - centre).max() < 1.0


# the simulated block, its first section turned, mirrored or cut in half


class Pairs:
    """Two simulated sections; the first can be laid on the glass in any way."""

    def __init__(self, folder: Path) -> None:
        block = simulate_block(BlockConfig.preset("tiny", n_sections=3))
        self.folder, self.block, self.mpp = folder, block, 1.0
        self.image = cache(block.image)
        self.fixed = write_slide(folder / "S2.png", self.image("S2"), self.mpp)

    def laid(self, degrees: float, mirror: bool, half: bool) -> tuple[Slide, Callable]:
        image = self.image("S1").copy()
        height, size = image.shape[0], int(image.shape[0] * 1.45)
        if half:
            image[:, : height // 2] = 245
        linear, old, new = turn(degrees, mirror), height / 2, size / 2
        rows, columns = np.indices((size, size)) + 0.5
        source = np.stack([columns, rows], axis=-1).reshape(-1, 2) - new
        source = source @ np.linalg.inv(linear).T + old - 0.5
        out = [
            ndimage.map_coordinates(image[..., c].astype(float), source.T[::-1], order=1, cval=245)
            for c in range(3)
        ]
        pixels = np.stack(out, axis=-1).reshape(size, size, 3).astype(np.uint8)
        path = self.folder / f"{degrees:g}-{mirror}-{half}.png"
        return write_slide(path, pixels, self.mpp), lambda px: (px - old) @ linear.T + new

    def landmarks(self, right: bool) -> tuple[np.ndarray, np.ndarray]:
        """Points of S1 and where they lie on S2, px."""
        size = self.image("S1").shape[0]
        across = np.linspace(0.55 if right else 0.15, 0.85, 8) * size
        points = np.stack(np.meshgrid(across, np.linspace(0.15, 0.85, 8) * size), axis=-1).reshape(
            -1, 2
        )
        places = {name: section.transform for name, section in self._sections().items()}
        there = places["S2"].to_section(places["S1"].to_block(points - 0.5)) + 0.5
        return points, there

    def _sections(self) -> dict:
        return {name: self.block.sections[name] for name in ("S1", "S2")}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("pairs"))


QUICK = RegistrationConfig(size_px=250, key_points=False)


def check_recovered(
    pairs: Pairs, degrees: float, mirror: bool, half: bool, config: RegistrationConfig
) -> None:
    slide, lay = pairs.laid(degrees, mirror, half)
    found = register(slide, pairs.fixed, config)
    assert found.accepted, found.reason()
    points, there = pairs.landmarks(half)
    errors = landmark_errors(found.require(), lay(points) * pairs.mpp, there * pairs.mpp)
    assert np.median(errors) < 12.0
    assert errors.max() < 30.0


def test_a_mirrored_turned_half_section_is_recovered(pairs: Pairs) -> None:
    check_recovered(pairs, 100.0, True, True, QUICK)


@pytest.mark.slow
def test_a_half_section_is_recovered(pairs: Pairs) -> None:
    check_recovered(pairs, 0.0, False, True, RegistrationConfig())


@pytest.mark.slow
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("degrees", range(0, 360, 45))
def test_every_rotation_is_recovered(pairs: Pairs, degrees: int, mirror: bool) -> None:
    check_recovered(pairs, degrees, mirror, False, RegistrationConfig())


@pytest.mark.slow
def test_the_same_pair_gives_the_same_map(pairs: Pairs) -> None:
    slide, _ = pairs.laid(30.0, False, False)
    one, two = register(slide, pairs.fixed), register(slide, pairs.fixed)
    assert np.array_equal(one.transform.field.values, two.transform.field.values)
    assert one.quality == two.quality


@pytest.mark.slow
def test_unrelated_slides_are_refused(pairs: Pairs, tmp_path: Path) -> None:
    other = simulate_block(BlockConfig.preset("tiny", n_sections=1, seed=5))
    slide = write_slide(tmp_path / "other.png", other.image("S1"), pairs.mpp)
    found = register(slide, pairs.fixed, QUICK)
    assert not found.accepted
    with pytest.raises(InputError, match="not better than chance"):
        found.require()


@pytest.mark.slow
def test_a_block_shares_one_frame_and_a_stranger_stays_out(pairs: Pairs, tmp_path: Path) -> None:
    stranger = simulate_block(BlockConfig.preset("tiny", n_sections=1, seed=5)).image("S1")
    images = {name: pairs.image(name) for name in ("S1", "S2", "S3")} | {"X": stranger}
    sections = [
        bare(name, write_slide(tmp_path / f"{name}.png", image, pairs.mpp), 30.0 * k)
        for k, (name, image) in enumerate(images.items())
    ]
    sections.append(bare("flat", write_slide(tmp_path / "flat.png", noise(0)), None))
    stack, links = register_stack(sections)
    blocks = {place.section: place.block for place in stack.places}
    assert len({blocks[name] for name in ("S1", "S2", "S3")}) == 1
    assert len(set(blocks.values())) == 3
    assert {(k.moving, k.fixed) for k in links if k.registration.accepted} == {
        ("S2", "S1"),
        ("S3", "S1"),
        ("S3", "S2"),
    }
    points, there = pairs.landmarks(False)
    one = stack.locate(sections[0].slide, points).xyz
    two = stack.locate(sections[1].slide, there).xyz
    assert np.median(np.hypot(*(one - two)[:, :2].T)) < 15.0
    assert (two - one)[0, 2] == 30.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moving", "fixed", "limit_px"),
    [
        ("Rat-Kidney_HE", "Rat-Kidney_PanCytokeratin", 3.4),
        ("Izd2-29-041-w35_HE", "Izd2-29-041-w35_proSPC", 5.5),
    ],
)
def test_immunohistochemistry_beats_an_affine_fit_of_the_landmarks(
    shared: Path, tmp_path: Path, moving: str, fixed: str, limit_px: float
) -> None:
    folder = shared / "data" / "registration_pairs"
    mpp = 10.0  # not known; any that a slide of tissue can have
    slides = [open_slide(folder / f"{n}.jpg").with_mpp(mpp, "test") for n in (moving, fixed)]
    tables = [pd.read_csv(folder / f"{n}.csv", index_col=0) for n in (moving, fixed)]
    count = min(map(len, tables))
    one, two = (table.to_numpy(float)[:count] * mpp for table in tables)
    found = register(*slides)
    assert found.accepted
    assert np.median(landmark_errors(found.transform, one, two)) / mpp < limit_px
    panels = registered_pair(*slides, found).axes
    assert [axes.get_title() for axes in panels] == ["as scanned", "affine", "with deformation"]


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("tissue", [(False, True), (True, False), (False, False)])
def test_pictures_without_tissue_agree_with_nothing(tissue: tuple[bool, bool]) -> None:
    density = np.random.default_rng(0).random((32, 32), np.float32)
    moving, fixed = (
        Picture(density, np.full((32, 32), there), (0.0, 0.0), 100.0) for there in tissue
    )
    found = guesses(moving, fixed, 30.0)
    assert max(guess.outline for guess in found) == pytest.approx(0, abs=1e-6)
    assert max(guess.structure for guess in found) <= 0
