"""Features pooled from a map of the slide: a function of slide and point alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deepspace.core.config import Config, EncoderConfig
from deepspace.core.errors import InputError
from deepspace.data.cache import ArrayCache
from deepspace.data.patches import PatchSpec, read_patch
from deepspace.data.stain import REFERENCE_MAXIMA, REFERENCE_STAINS, StainNormaliser
from deepspace.io.slide import Slide, open_slide
from deepspace.models.backbones import VGG16, ViT, ViTConfig
from deepspace.models.dense import compact_groups, dense_features, embed
from deepspace.models.encoders import Encoder, load_encoder
from deepspace.models.features import FeatureExtractor
from deepspace.models.network import IMAGENET, NetworkFeatures, Reading, stained_patch
from deepspace.models.network_maps import NetworkMaps, receptive_field
from deepspace.models.registry import MODELS, Workbench
from deepspace.models.texture_maps import ColourMaps, TextureMaps
from deepspace.workflows.points import points_at, share_ahead
from make_sections import lattice, make_section

SIDE = 500
POINTS = np.array([[250.0, 250.0], [130.3, 200.7], [64.0, 128.0], [3.0, 490.0], [260.0, 251.0]])


def small_vgg(layers: tuple[int, ...] = (1, 2)) -> NetworkMaps:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = VGG16()
    network = NetworkFeatures(backbone, Reading(layers, ("mean", "sd"), IMAGENET), 64, "fp32")
    maps = NetworkMaps("vgg16", network, 64)
    maps.core_px = 128
    return maps


def small_vit(pooling: tuple[str, ...] = ("mean", "sd")) -> NetworkMaps:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = ViT(ViTConfig(depth=2, dim=32, heads=2, patch=14, grid=4, mlp_dim=64))
    network = NetworkFeatures(backbone, Reading((1,), pooling, IMAGENET), 112, "fp32")  # type: ignore[arg-type]
    return NetworkMaps("small", network, 112)


ALL_MAPS = {
    "colour": ColourMaps,
    "texture": TextureMaps,
    "convolutions": small_vgg,
    "tokens": small_vit,
}


def slide_of(folder: Path, image: np.ndarray, name: str = "slide") -> Slide:
    path = folder / f"{name}.png"
    Image.fromarray(image).save(path)
    return open_slide(path).with_mpp(1.0, "test")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return stained_patch(SIDE)


@pytest.fixture(scope="module")
def slide(image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return slide_of(tmp_path_factory.mktemp("dense"), image)


@pytest.mark.parametrize("kind", ALL_MAPS)
def test_a_point_never_depends_on_the_others(slide: Slide, kind: str) -> None:
    maps, spec = ALL_MAPS[kind](), PatchSpec(64, 64)
    together = dense_features(slide, POINTS, spec, maps)
    turned = dense_features(slide, POINTS[::-1], spec, maps)[::-1]
    alone = np.concatenate([dense_features(slide, p[None], spec, maps) for p in POINTS])
    assert together.dtype == np.float32
    assert together.shape == (len(POINTS), len(maps.names))
    assert together.tobytes() == alone.tobytes() == turned.tobytes()
    assert np.ptp(together, axis=0).max() > 0


@given(st.floats(-20, 520), st.floats(-20, 520), st.integers(1, 90))
def test_pooling_is_the_integral_over_the_field(
    image: np.ndarray, slide: Slide, x: float, y: float, fov: int
) -> None:
    """Cells that the edge of the field cuts count in part, those outside the slide are white."""
    maps = ColourMaps()
    maps.core_px = 32
    # 1 um a pixel: the map is the image itself
    spec = PatchSpec(float(fov), fov)
    found = dense_features(slide, np.array([[x, y]]), spec, maps)[0]
    white = np.full((700, 700, 3), 255.0)
    white[100 : 100 + SIDE, 100 : 100 + SIDE] = image
    weights = [cover(centre + 100, spec.fov_um, 700) for centre in (y, x)]
    expected = np.einsum("i,j,ijc->c", *weights, white, optimize=True) / spec.fov_um**2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def cover(centre: float, width: float, cells: int) -> np.ndarray:
    """How much of each cell lies within `width` around the centre."""
    edges = np.arange(cells + 1.0)
    inside = np.clip(edges, centre - width / 2, centre + width / 2)
    return np.diff(inside)


@pytest.mark.parametrize("layers", [(1,), (2, 3)])
def test_a_networks_map_is_that_of_the_whole_slide(
    image: np.ndarray, slide: Slide, layers: tuple[int, ...]
) -> None:
    """Windows with a halo give what one pass over the slide gives."""
    maps, spec = small_vgg(layers), PatchSpec(64, 64)
    points = np.array([[128.0, 128.0], [256.0, 160.0], [300.0, 256.0]])
    found = dense_features(slide, points, spec, maps)
    whole = np.ascontiguousarray(image[:448, :448])
    expected = []
    for x, y in points.astype(int) - 32:
        parts = []
        for layer in maps._network.maps(whole[None]):
            cell = 448 // layer.shape[-1]
            rows, columns = (slice(v // cell, (v + 64) // cell) for v in (y, x))
            field = layer[0, :, rows, columns].double().flatten(1)
            parts += [field.mean(1), field.std(1, correction=0)]
        expected.append(torch.cat(parts).numpy())
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fov_um", [64, 64.01, 43])
@pytest.mark.parametrize("kind", ["colour", "texture", "convolutions"])
def test_borders_of_windows_are_invisible(slide: Slide, kind: str, fov_um: float) -> None:
    """Points on and beside a border have what a single larger window gives, at any scale."""
    points = np.array([[256.0, 256.0], [255.3, 140.0], [128.0, 384.1], [257.0, 250.0]])
    small, large = ALL_MAPS[kind](), ALL_MAPS[kind]()
    small.core_px, large.core_px = 128, 384
    spec = PatchSpec(fov_um, 64)
    points = points * fov_um / 64
    cut, whole = (dense_features(slide, points, spec, maps) for maps in (small, large))
    np.testing.assert_allclose(cut, whole, rtol=1e-5, atol=1e-5)


def test_network_features_are_those_of_crops_that_see_their_surroundings(slide: Slide) -> None:
    maps, wide = small_vgg((3,)), PatchSpec(128, 128)
    found = dense_features(slide, POINTS[:2], PatchSpec(64, 64), maps)
    for x_y, row in zip(POINTS[:2], found, strict=True):
        patch = read_patch(slide, *np.floor(x_y), wide)
        layer = maps._network.maps(patch[None])[0][0, :, 8:-8, 8:-8].double().flatten(1)
        crop = torch.cat([layer.mean(1), layer.std(1, correction=0)]).numpy()
        # a crop begins at any pixel, the map's cells of 4 pixels at multiples of 4
        assert np.linalg.norm(row - crop) < 0.03 * np.linalg.norm(crop)


def test_receptive_fields() -> None:
    """Two convolutions of 3 x 3 see 2 pixels, the third block of VGG16 18; tokens see all."""
    assert receptive_field(small_vgg((1,))._network) == (2, 1)
    reach, cell = receptive_field(small_vgg((3,))._network)
    assert cell == 4
    assert reach is not None
    assert 18 <= reach < 18 + cell
    assert receptive_field(small_vit()._network) == (None, 14)


def test_a_constant_slide_has_no_spread(tmp_path: Path) -> None:
    grey = slide_of(tmp_path, np.full((400, 400, 3), 131, np.uint8))
    points, spec = np.array([[200.0, 200.0], [190.4, 210.9]]), PatchSpec(32, 32)
    network = small_vgg()
    found = dense_features(grey, points, spec, network)
    spread = np.array(["_sd_" in name for name in network.names])
    assert (found[:, spread] == 0).all()
    assert found[:, ~spread].max() > 0
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    texture = TextureMaps()
    row = dict(zip(texture.names, dense_features(grey, points, spec, texture)[0], strict=True))
    assert row["r_mean"] == pytest.approx(131 - 255)
    assert row["r_sd"] == row["haematoxylin_sd"] == row["nuclei_fraction"] == 0
    assert row["lbp_8"] == pytest.approx(1)
    assert row["glcm_homogeneity_3px"] == pytest.approx(1)
    assert row["glcm_contrast_3px"] == 0


def test_textures_tell_nuclei_and_direction(tmp_path: Path) -> None:
    """A sparse field, a crowded one, and stripes."""
    y, x = np.mgrid[:400, :400]
    dots = np.hypot((x % 20) - 10, (y % 20) - 10) < 4
    picture = np.full((400, 1200, 3), (235, 200, 220), np.uint8)
    picture[:, :400][dots & (x % 80 < 20) & (y % 80 < 20)] = (90, 60, 140)
    picture[:, 400:800][dots] = (90, 60, 140)
    picture[:, 800:][x // 8 % 2 == 0] = (90, 60, 140)
    slide = slide_of(tmp_path, picture)
    points, maps = np.array([[200.0, 200], [600, 200], [1000, 200]]), TextureMaps()
    found = dense_features(slide, points, PatchSpec(160, 160), maps)
    sparse, crowded, stripes = (dict(zip(maps.names, row.tolist(), strict=True)) for row in found)
    assert crowded["nuclei_peaks"] == pytest.approx(16 * sparse["nuclei_peaks"], rel=0.02)
    # one peak for 20 x 20 pixels, a quarter as many at half the resolution
    assert crowded["nuclei_peaks"] == pytest.approx(1 / 100, rel=0.02)
    assert crowded["nuclei_fraction"] > 5 * sparse["nuclei_fraction"] > 0
    assert crowded["haematoxylin_mean"] > sparse["haematoxylin_mean"]
    assert stripes["grey_coherence3_mean"] > 1.5 * crowded["grey_coherence3_mean"]
    inside, outside = crowded["nuclei_haematoxylin_inside"], crowded["nuclei_haematoxylin_outside"]
    assert inside > 2 * outside


def test_outside_the_slide_is_white(slide: Slide, tmp_path: Path) -> None:
    points, spec, maps = (
        np.array([[-300.0, 250.0], [5000.0, -4000.0]]),
        PatchSpec(64, 64),
        small_vgg(),
    )
    white = slide_of(tmp_path, np.full((400, 400, 3), 255, np.uint8), "white")
    expected = dense_features(white, np.array([[200.0, 200.0]]), spec, maps)
    found = dense_features(slide, points, spec, maps)
    np.testing.assert_allclose(found, np.repeat(expected, 2, axis=0), rtol=1e-5, atol=1e-6)


def test_stain_normalisation_reaches_the_map(slide: Slide) -> None:
    spec, maps = PatchSpec(64, 64), ColourMaps()
    normaliser = StainNormaliser(REFERENCE_STAINS, REFERENCE_MAXIMA * 2)
    found = dense_features(slide, POINTS[:1], spec, maps, normaliser=normaliser)
    patch = normaliser.apply(read_patch(slide, *POINTS[0], spec))
    np.testing.assert_allclose(found[0], patch.mean(axis=(0, 1)), rtol=1e-6)


def test_class_tokens_have_no_map() -> None:
    with pytest.raises(InputError, match=r"class token.*sampling = .crop."):
        small_vit(("cls",))


def test_an_encoder_says_how_it_samples() -> None:
    crop, dense = (load_encoder("stain", sampling=s) for s in ("crop", "dense"))  # type: ignore[arg-type]
    assert crop.maps is None
    assert dense.maps is not None
    assert crop.key() != dense.key()
    assert "dense" not in crop.identity  # features cached and models saved before stay valid
    assert len(dense.feature_names) == dense.n_features == 2 * len(TextureMaps().names)
    assert len(set(dense.feature_names)) == dense.n_features


def test_single_patches_can_be_looked_at(image: np.ndarray) -> None:
    """For attributions: like the map, where the surroundings are the mirrored patch."""
    patches = image[None, 100:196, 100:196].repeat(2, axis=0)
    patches[1] = patches[1, ::-1]
    maps = small_vgg((2,))
    found = embed(patches, maps)
    assert found.shape == (2, len(maps.names))
    assert np.linalg.norm(found[0] - found[1]) > 0
    flat = embed(np.full((1, 96, 96, 3), 131, np.uint8), ColourMaps())
    np.testing.assert_allclose(flat, 131)


def features(slide: Slide, encoder: Encoder, cache: ArrayCache | None = None) -> np.ndarray:
    return FeatureExtractor(encoder, cache=cache, reference_points=20)(slide, POINTS)


def test_extractors_standardise_and_remember(slide: Slide, tmp_path: Path) -> None:
    encoder = load_encoder("stain", fov_um=(64,), size_px=64, sampling="dense")
    cache = ArrayCache(tmp_path / "cache")
    first, again = features(slide, encoder, cache), features(slide, encoder, cache)
    assert first.tobytes() == again.tobytes() == features(slide, encoder).tobytes()
    assert np.isfinite(first).all()
    alone = FeatureExtractor(encoder, reference_points=20)
    scale = alone._section_scale(slide)
    assert ((alone.raw(slide, POINTS) - scale[0]) / scale[1]).tobytes() == first.tobytes()
    assert np.abs(first[[0, 1, 2, 4]]).max() < 10


def test_a_feature_that_varies_by_rounding_counts_for_nothing(
    slide: Slide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel that is silent on the reference points, and active somewhere else."""
    extractor = FeatureExtractor(load_encoder("stain", fov_um=(64,), size_px=64))
    rng = np.random.default_rng(0)
    table = rng.normal(size=(20, 4)) * [1.0, 30.0, 0.005, 1e-15]
    table[:, 2] += 5.0
    monkeypatch.setattr(extractor, "lattice", lambda slide: np.zeros((20, 2)))
    monkeypatch.setattr(extractor, "raw", lambda slide, coords: table[: len(coords)])
    _, spread = extractor._section_scale(slide)
    assert np.isfinite(spread).tolist() == [True, True, True, False]
    # alone, it is told by its own size
    table[:, :3] = 1.0
    extractor._scales.clear()
    _, spread = extractor._section_scale(slide)
    assert np.isfinite(spread).tolist() == [False, False, False, True]


def test_the_lattice_and_the_points_share_one_pass(
    slide: Slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And points that were shared cost nothing later, in this process or in another."""
    encoder = load_encoder("colour", fov_um=(64,), size_px=64, sampling="dense")
    cache = ArrayCache(tmp_path / "cache")
    asked: list[int] = []
    encode = FeatureExtractor._encode
    monkeypatch.setattr(
        FeatureExtractor, "_encode", lambda *given: asked.append(len(given[2])) or encode(*given)
    )
    extractor = FeatureExtractor(encoder, cache=cache, reference_points=20)
    first = extractor(slide, POINTS)
    assert asked == [len(extractor.lattice(slide)) + len(POINTS)]
    assert extractor(slide, POINTS[:2]).tobytes() == first[:2].tobytes()
    later = POINTS + 7.0
    extractor.share(slide, np.concatenate([POINTS, later]))
    asked.clear()
    other = FeatureExtractor(encoder, cache=cache, reference_points=20)
    found = other(slide, later[::-1])
    assert not asked
    alone = FeatureExtractor(encoder, reference_points=20)(slide, later[::-1])
    assert found.tobytes() == alone.tobytes()
    other.over(20)(slide, POINTS + 3.0)  # other points of the slide
    asked.clear()
    other.over(20)(slide, later)
    assert not asked


def test_shared_points_that_the_cache_lost_are_encoded_again(slide: Slide, tmp_path: Path) -> None:
    encoder = load_encoder("colour", fov_um=(64,), size_px=64, sampling="dense")
    cache = ArrayCache(tmp_path / "cache")
    first = FeatureExtractor(encoder, cache=cache, reference_points=20)(slide, POINTS)
    biggest = max((tmp_path / "cache").glob("??/*.npy"), key=lambda path: path.stat().st_size)
    biggest.unlink()
    again = FeatureExtractor(encoder, cache=cache, reference_points=20)(slide, POINTS)
    assert again.tobytes() == first.tobytes()


def test_a_cache_that_keeps_nothing_costs_one_block(slide: Slide, tmp_path: Path) -> None:
    encoder = load_encoder("colour", fov_um=(64,), size_px=64, sampling="dense")
    cache = ArrayCache(tmp_path / "cache", max_bytes=0)
    found = FeatureExtractor(encoder, cache=cache, reference_points=20)(slide, POINTS)
    alone = FeatureExtractor(encoder, reference_points=20)(slide, POINTS)
    assert found.tobytes() == alone.tobytes()


def test_sections_of_one_scan_share_one_list(tmp_path: Path) -> None:
    """What was encoded for one is still there after the other."""
    coords = lattice(4, pitch=40.0, start=60.0)
    one = make_section(tmp_path, "S1", np.ones((16, 2)), coords, mpp=0.5)
    other = replace(
        make_section(tmp_path, "S2", np.ones((16, 2)), coords + 11.0, mpp=0.5), slide=one.slide
    )
    encoder = load_encoder("colour", fov_um=(32,), size_px=32, sampling="dense")
    extractor = FeatureExtractor(encoder, cache=ArrayCache(tmp_path / "c"), reference_points=20)
    share_ahead(extractor, [one, other])
    for section in (one, other):
        between = points_at(section, "between").coords
        for wanted in (section.coords, between):
            assert extractor._from_shared(extractor.cache, section.slide, wanted) is not None


def test_the_configuration_reaches_the_extractor() -> None:
    config = Config().with_values(encoder={"sampling": "dense"})
    assert Workbench.of(config).extractor(config.encoder).encoder.maps is not None
    assert EncoderConfig().sampling == "crop"


def test_fine_tuning_needs_crops() -> None:
    encoder = {"name": "vgg16", "weights": "random:0", "sampling": "dense"}
    bench = Workbench.of(Config().with_values(encoder=encoder))
    assert "cnn" in MODELS
    with pytest.raises(InputError, match="fine-tuned on crops"):
        bench.check(["cnn"])


@given(st.integers(0, 60), st.integers(1, 20))
def test_groups_hold_every_point_once(n: int, at_most: int) -> None:
    points = np.random.default_rng(n).uniform(0, 100, (n, 2)).round(-1)
    groups = compact_groups(points, at_most)
    assert sorted(np.concatenate([*groups, np.empty(0, int)]).tolist()) == list(range(n))
    assert all(0 < len(group) <= at_most for group in groups)
    assert len(groups) <= 2 * -(-n // at_most)


def test_groups_are_compact() -> None:
    points = np.stack(np.meshgrid(np.arange(32.0), np.arange(32.0)), -1).reshape(-1, 2)
    groups = compact_groups(points, 64)
    assert len(groups) == 16
    assert all((np.ptp(points[group], axis=0) == 7).all() for group in groups)


def test_no_points(slide: Slide) -> None:
    maps = ColourMaps()
    assert dense_features(slide, np.empty((0, 2)), PatchSpec(64, 64), maps).shape == (0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "dinov2-s"])
def test_real_weights(slide: Slide, shared: Path, name: str) -> None:
    """Bytes do not depend on the others; VGG16 agrees with crops that see their surroundings."""
    if not (shared / "weights").is_dir():
        pytest.skip(f"no weights at {shared}")
    encoder = load_encoder(name, fov_um=(150,), weights=shared / "weights", sampling="dense")
    (spec,), maps = encoder.specs, encoder.maps
    assert maps is not None
    points = np.array([[250.0, 250.0], [200.3, 290.7]])
    found = dense_features(slide, points, spec, maps)
    assert found[1:].tobytes() == dense_features(slide, points[1:], spec, maps).tobytes()
    assert np.isfinite(found).all()
