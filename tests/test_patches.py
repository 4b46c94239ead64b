"""Patches of a physical size around points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deepspace.core.errors import InputError
from deepspace.data.cache import ArrayCache
from deepspace.data.patches import (
    PatchSpec,
    read_all,
    read_patch,
    read_patches,
    white_fraction,
    white_patches,
    white_threshold,
)
from deepspace.data.stain import REFERENCE_MAXIMA, REFERENCE_STAINS, StainNormaliser
from deepspace.io.slide import Slide, open_slide

SIDE = 700
POINTS = np.random.default_rng(3).uniform(-60, SIDE + 60, (60, 2))
SPECS = {
    "crop": PatchSpec(fov_um=32, size_px=64),
    "shrink": PatchSpec(fov_um=50, size_px=33),
    "from a level": PatchSpec(fov_um=120, size_px=50),
    "enlarge": PatchSpec(fov_um=16, size_px=64),
}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    rng = np.random.default_rng(0)
    full = np.asarray(
        Image.fromarray(rng.integers(0, 256, (90, 90, 3), dtype=np.uint8)).resize((SIDE, SIDE))
    )
    path = tmp_path_factory.mktemp("slide") / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(full, subifds=1, tile=(64, 64), photometric="rgb")
        half = full.reshape(SIDE // 2, 2, SIDE // 2, 2, 3).mean((1, 3)).astype(np.uint8)
        writer.write(half, subfiletype=1, tile=(64, 64), photometric="rgb")
    return open_slide(path).with_mpp(0.5, "the test")


@pytest.fixture(scope="module")
def whole(slide: Slide) -> dict[str, np.ndarray]:
    return {name: read_all(slide, POINTS, spec) for name, spec in SPECS.items()}


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_patch_never_depends_on_the_other_points(
    slide: Slide, whole: dict[str, np.ndarray], name: str, data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.integers(0, len(POINTS) - 1), min_size=1, max_size=12))
    batch = data.draw(st.integers(1, 9))
    seen = []
    for index, patches in read_patches(slide, POINTS[rows], SPECS[name], batch=batch):
        assert len(index) <= batch
        assert np.array_equal(patches, whole[name][np.asarray(rows)[index]])
        seen += index.tolist()
    assert sorted(seen) == list(range(len(rows)))


def test_crop_is_the_pixels_around_the_point(slide: Slide) -> None:
    pixels = slide.read(0, 0, SIDE, SIDE)
    patch = read_patch(slide, 300, 200, SPECS["crop"])
    assert np.array_equal(patch, pixels[168:232, 268:332])


def test_outside_is_white(slide: Slide) -> None:
    for spec in SPECS.values():
        assert (read_patch(slide, -900, 100, spec) == 255).all()
        corner = read_patch(slide, 0, 0, spec)
        margin = 2 + spec.size_px // 2
        assert (corner[: spec.size_px - margin, :] == 255).all()
        assert (corner[margin:, margin:] != 255).any()


@pytest.mark.parametrize("name", ["shrink", "from a level", "enlarge"])
def test_place_of_resampled_patches_is_right_below_the_pixel(tmp_path: Path, name: str) -> None:
    # red rises with x and green with y, so the centre's colour tells where the patch is
    y, x = np.mgrid[:500, :500]
    image = np.rint(np.stack([(x + 0.5) / 2, (y + 0.5) / 2, 0 * x], -1)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "g.tif", image, photometric="rgb", tile=(64, 64))
    gradient = open_slide(tmp_path / "g.tif").with_mpp(0.5, "the test")
    for px, py in np.random.default_rng(0).uniform(150, 350, (40, 2)):
        mean = read_patch(gradient, px, py, SPECS[name]).mean((0, 1))
        assert mean[0] == pytest.approx(px / 2, abs=0.15)
        assert mean[1] == pytest.approx(py / 2, abs=0.15)


def test_shrinking_does_not_alias(tmp_path: Path) -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 200
    tifffile.imwrite(tmp_path / "s.tif", stripes, photometric="rgb", tile=(64, 64))
    slide = open_slide(tmp_path / "s.tif").with_mpp(1.0, "the test")
    patch = read_patch(slide, 200, 200, PatchSpec(fov_um=210, size_px=70))
    assert np.abs(patch.astype(int) - 100).max() <= 12


def test_order_follows_tile_rows(slide: Slide) -> None:
    spec = SPECS["crop"]
    order = np.concatenate([index for index, _ in read_patches(slide, POINTS, spec)])
    rows = np.floor((POINTS[order, 1] - 32) / 64)
    assert (np.diff(rows) >= 0).all()
    same = np.diff(rows) == 0
    assert (np.diff(POINTS[order, 0])[same] >= 0).all()


def test_each_tile_is_decoded_once(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = open_slide(slide.path, cache_bytes=64 * 64 * 3 * 45).with_mpp(0.5, "the test")
    decoded: list[tuple[int, int, int]] = []
    source = fresh._source
    decode = source._decode  # type: ignore[attr-defined]

    def count(*place: int) -> np.ndarray:
        decoded.append(place)  # type: ignore[arg-type]
        return decode(*place)

    monkeypatch.setattr(source, "_decode", count)
    points = np.random.default_rng(0).uniform(0, SIDE, (400, 2))
    for _ in read_patches(fresh, points, SPECS["crop"]):
        pass
    assert len(decoded) == len(set(decoded))
    assert len(decoded) > 100


def test_no_points(slide: Slide) -> None:
    assert list(read_patches(slide, np.empty((0, 2)), SPECS["crop"])) == []
    assert read_all(slide, np.empty((0, 2)), SPECS["crop"]).shape == (0, 64, 64, 3)


@pytest.mark.parametrize(
    ("fov", "size"), [(0, 224), (-5, 224), (float("nan"), 224), (100, 0), (100, 22.5), (100, 10**6)]
)
def test_specs_are_checked(fov: float, size: int) -> None:
    with pytest.raises(InputError, match=r"fov_um|size_px"):
        PatchSpec(fov, size)


@pytest.mark.parametrize("coords", [np.zeros(4), np.zeros((3, 3)), [[1.0, np.nan]]])
def test_coords_are_checked(slide: Slide, coords: np.ndarray) -> None:
    with pytest.raises(InputError, match="coord"):
        next(read_patches(slide, coords, SPECS["crop"]))


def test_unknown_mpp_is_an_error(slide: Slide) -> None:
    with pytest.raises(InputError, match="mpp column"):
        next(read_patches(open_slide(slide.path), POINTS, SPECS["crop"]))


def test_cached_patches_follow_everything_that_shapes_them(slide: Slide, tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path / "cache")
    spec, other = SPECS["crop"], SPECS["shrink"]
    stain = StainNormaliser(REFERENCE_STAINS, REFERENCE_MAXIMA * 2)
    first = read_all(slide, POINTS, spec, cache=cache)
    assert np.array_equal(read_all(slide, POINTS, spec, cache=cache), first)
    assert len(list(tmp_path.rglob("*.npy"))) == 1
    read_all(slide, POINTS, other, cache=cache)
    read_all(slide, POINTS[::-1], spec, cache=cache)
    read_all(slide.with_mpp(0.7, "the test"), POINTS, spec, cache=cache)
    normalised = read_all(slide, POINTS, spec, normaliser=stain, cache=cache)
    assert len(list(tmp_path.rglob("*.npy"))) == 5
    assert np.array_equal(normalised, stain.apply(first))


def test_white_filter_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    tissue = rng.integers(120, 200, (40, 16, 16, 3), dtype=np.uint8)
    glass = rng.integers(235, 250, (8, 16, 16, 3), dtype=np.uint8)
    half = tissue[0].copy()
    half[:9] = 240  # nine of sixteen rows
    less = tissue[0].copy()
    less[:5] = 240
    patches = np.concatenate([tissue, glass, half[None], less[None]])
    white = white_patches(patches, quantile=0.8)
    assert white.tolist() == [False] * 40 + [True] * 8 + [True, False]
    threshold = white_threshold(patches, 0.8)
    assert threshold == pytest.approx(np.quantile(patches.mean((1, 2, 3)), 0.8))
    assert white_fraction(patches[-2:], threshold) == pytest.approx([9 / 16, 5 / 16], abs=0.12)


def test_one_coloured_channel_is_not_white() -> None:
    patches = np.full((10, 4, 4, 3), 180, np.uint8)
    patches[0] = (255, 255, 150)
    assert not white_patches(patches).any()
