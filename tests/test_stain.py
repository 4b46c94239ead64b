"""Macenko stain normalisation against mixtures of known stains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from deepspace.core.errors import InputError
from deepspace.data.stain import (
    REFERENCE_MAXIMA,
    REFERENCE_STAINS,
    WHITE,
    StainNormaliser,
    optical_density,
)
from deepspace.data.tissue import TissueMask, tissue_mask
from deepspace.io.slide import open_slide

HAEMATOXYLIN = [(0.65, 0.70, 0.29), (0.56, 0.72, 0.41), (0.70, 0.66, 0.25)]
EOSIN = [(0.07, 0.99, 0.11), (0.22, 0.80, 0.56), (0.10, 0.95, 0.30)]


def unit(rows: list[tuple[float, float, float]]) -> np.ndarray:
    stains = np.array(rows)
    return stains / np.linalg.norm(stains, axis=1, keepdims=True)


def mixture(stains: np.ndarray, seed: int, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of a section: many nearly pure in one stain, the rest mixed."""
    rng = np.random.default_rng(seed)
    amounts = rng.gamma(2.0, 0.35, (n, 2)) + 0.05
    amounts[: n // 4, 1] *= 0.02
    amounts[n // 4 : n // 2, 0] *= 0.02
    light = WHITE * np.exp(-np.minimum(amounts @ stains, 5)) - 1
    return np.clip(np.rint(light), 0, 255).astype(np.uint8), amounts


@settings(max_examples=20, deadline=None)
@given(h=st.sampled_from(HAEMATOXYLIN), e=st.sampled_from(EOSIN), seed=st.integers(0, 99))
def test_stains_of_a_mixture_are_found(
    h: tuple[float, float, float], e: tuple[float, float, float], seed: int
) -> None:
    stains = unit([h, e])
    pixels, _ = mixture(stains, seed)
    found = StainNormaliser.from_pixels(pixels).stains
    assert angle(found, stains).max() < 4


def test_reference_is_left_as_it_is() -> None:
    stains = REFERENCE_STAINS / np.linalg.norm(REFERENCE_STAINS, axis=1, keepdims=True)
    pixels, _ = mixture(stains, 0)
    same = StainNormaliser(REFERENCE_STAINS, REFERENCE_MAXIMA).apply(pixels)
    assert np.abs(same.astype(int) - pixels).max() <= 2


def test_two_scanners_look_alike_afterwards() -> None:
    rng = np.random.default_rng(0)
    amounts = rng.gamma(2.0, 0.3, (20_000, 2)) + 0.05
    amounts[:8000, 1] *= 0.05
    amounts[8000:16000, 0] *= 0.05
    looks, after = [], []
    for h, e, strength in [(0, 0, 1.0), (1, 1, 0.7)]:
        stains = unit([HAEMATOXYLIN[h], EOSIN[e]])
        light = WHITE * np.exp(-strength * amounts @ stains) - 1
        pixels = np.clip(np.rint(light), 0, 255).astype(np.uint8)
        looks.append(pixels.astype(float))
        after.append(StainNormaliser.from_pixels(pixels).apply(pixels).astype(float))
    before = np.abs(looks[0] - looks[1]).mean()
    assert np.abs(after[0] - after[1]).mean() < before / 4


def test_glass_stays_bright_and_shape_stays() -> None:
    normaliser = StainNormaliser.from_pixels(mixture(unit([HAEMATOXYLIN[0], EOSIN[0]]), 1)[0])
    patches = np.full((2, 5, 5, 3), 239, np.uint8)
    assert normaliser.apply(patches).shape == patches.shape
    assert normaliser.apply(patches).min() >= 238


def test_optical_density_adds_up() -> None:
    assert optical_density(np.array([239], np.uint8))[0] == pytest.approx(0)
    assert optical_density(np.array([119], np.uint8))[0] == pytest.approx(np.log(2))


def test_glass_alone_is_an_error() -> None:
    with pytest.raises(InputError, match="too few stained pixels"):
        StainNormaliser.from_pixels(np.full((5000, 3), 235, np.uint8))


def test_fit_uses_tissue_only(tmp_path: Path) -> None:
    stains = unit([HAEMATOXYLIN[0], EOSIN[0]])
    pixels, _ = mixture(stains, 2, 200 * 100)
    image = np.full((200, 200, 3), (30, 200, 30), np.uint8)  # green ink on the right half
    image[:, :100] = pixels.reshape(200, 100, 3)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", tile=(64, 64))
    slide = open_slide(tmp_path / "a.tif").with_mpp(2.0, "the test")
    tissue = TissueMask(np.array([[True, False]]), downsample=100.0)
    fitted = StainNormaliser.fit(slide, tissue)
    np.testing.assert_allclose(fitted.stains, stains, atol=0.06)
    with pytest.raises(InputError, match=r"a\.tif: too few"):
        StainNormaliser.fit(slide, TissueMask(np.array([[False, False]]), downsample=100.0))


def test_stains_of_real_sections(shared: Path) -> None:
    found = []
    for name in ("04", "09"):
        slide = open_slide(shared / f"data/mob/images/{name}.jpg").with_mpp(2.75, "the sheet")
        tissue = tissue_mask(slide)
        normaliser = StainNormaliser.fit(slide, tissue)
        found.append(normaliser.stains)
        pixels = slide.overview(tissue.downsample)[tissue.mask]
        again = StainNormaliser.from_pixels(normaliser.apply(pixels))
        target = REFERENCE_STAINS / np.linalg.norm(REFERENCE_STAINS, axis=1, keepdims=True)
        # afterwards a section measures closer to the reference than it did before
        assert angle(again.stains, target).max() < angle(normaliser.stains, target).max()
    assert angle(found[0], found[1]).max() < 12
    # Ruifrok and Johnston's haematoxylin, measured on a pure stain
    assert all(angle(stains, unit([HAEMATOXYLIN[0]] * 2))[0] < 20 for stains in found)


def angle(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return np.rad2deg(np.arccos(np.clip((one * two).sum(axis=1), -1, 1)))
