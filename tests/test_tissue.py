"""The tissue mask on synthetic and real sections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from deepspace.core.errors import InputError
from deepspace.data.tissue import TissueMask, find_tissue, tissue_mask
from deepspace.io.slide import open_slide

UM = 8.0
SHAPE = (300, 360)
GLASS = (238, 232, 240)


def section(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An oval of H&E on glass: nuclei over pink ground; and where it is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    oval = ((x - 150) / 100) ** 2 + ((y - 160) / 90) ** 2 < 1
    haematoxylin = np.clip(ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 1) * 1.2, 0, None)
    eosin = 0.3 + 0.1 * ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 2)
    density = haematoxylin[..., None] * (0.56, 0.72, 0.41) + eosin[..., None] * (0.22, 0.8, 0.56)
    light = np.array(GLASS) * np.exp(-density * oval[..., None])
    return np.clip(light + rng.normal(0, 1.5, light.shape), 0, 255).astype(np.uint8), oval


def score(image: np.ndarray, oval: np.ndarray) -> tuple[float, float]:
    """Share of the tissue found, and the wrongly found area as a share of the tissue.

    A rim of 40 um around the outline counts for neither.
    """
    found = find_tissue(image, UM)
    inner = ndimage.binary_erosion(oval, iterations=5)
    outer = ndimage.binary_dilation(oval, iterations=5)
    return found[inner].mean(), (found & ~outer).sum() / oval.sum()


def draw(image: np.ndarray, paint: Callable[[ImageDraw.ImageDraw], None]) -> np.ndarray:
    """Multiply painted colours onto the picture, as ink and dirt do."""
    layer = Image.new("RGB", image.shape[1::-1], "white")
    paint(ImageDraw.Draw(layer))
    soft = np.asarray(layer.filter(ImageFilter.GaussianBlur(0.8)), float) / 255
    return (image * soft).astype(np.uint8)


def test_plain_section() -> None:
    found, wrong = score(*section())
    assert found > 0.98
    assert wrong == 0


INKS = {"blue": (40, 60, 170), "pale blue": (90, 110, 200), "green": (30, 130, 70),
        "black": (25, 25, 30)}  # fmt: skip


@pytest.mark.parametrize("colour", INKS)
def test_ink_beside_the_tissue_is_not_tissue(colour: str) -> None:
    image, oval = section()
    inked = draw(image, lambda d: d.line([(290, 20), (330, 280)], INKS[colour], width=14))
    found, wrong = score(inked, oval)
    assert found > 0.97
    assert wrong < 0.005


@pytest.mark.parametrize("colour", ["blue", "green", "black"])
def test_ink_across_the_tissue_is_cut_out(colour: str) -> None:
    image, oval = section()
    inked = draw(image, lambda d: d.line([(20, 20), (280, 290)], INKS[colour], width=14))
    stroke = ndimage.binary_erosion((inked < 0.75 * image.astype(float)).all(axis=2), iterations=2)
    found = find_tissue(inked, UM)
    assert found[stroke & oval].mean() < 0.1
    away = oval & ~ndimage.binary_dilation(stroke, iterations=10)
    assert found[ndimage.binary_erosion(away, iterations=5)].mean() > 0.97


def test_printed_dots_and_fiducials_are_not_tissue() -> None:
    image, oval = section()

    def dots(d: ImageDraw.ImageDraw) -> None:
        for x in range(8, SHAPE[1], 25):  # the faint array under the tissue, 200 um apart
            for y in range(8, SHAPE[0], 25):
                d.ellipse((x - 6, y - 6, x + 6, y + 6), (247, 247, 245))
        for x in range(8, SHAPE[1], 25):  # a row of brown fiducials
            d.ellipse((x - 7, 2, x + 7, 16), (160, 140, 120))

    found, wrong = score(draw(image, dots), oval)
    assert found > 0.98
    assert wrong < 0.005


def test_pink_smear_is_not_tissue() -> None:
    image, oval = section()
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    smear = 0.35 * np.exp(-(((x - 300) / 60) ** 2) - ((y - 200) / 80) ** 2)
    pink = image * np.exp(-smear[..., None] * (0.05, 0.9, 0.4))
    found, wrong = score(pink.astype(np.uint8), oval)
    assert found > 0.98
    assert wrong == 0


def test_dust_hair_and_bubble_are_not_tissue() -> None:
    image, oval = section()

    def dirt(d: ImageDraw.ImageDraw) -> None:
        for x, y in [(300, 30), (320, 60), (30, 280), (340, 250)]:
            d.ellipse((x - 4, y - 4, x + 4, y + 4), (120, 70, 140))
        d.line([(270, 20), (310, 120), (280, 170)], (150, 90, 160), width=4)
        d.ellipse((270, 200, 340, 270), outline=(110, 110, 112), width=5)

    found, wrong = score(draw(image, dirt), oval)
    assert found > 0.98
    assert wrong < 0.005


@pytest.mark.parametrize("around", [(0, 0, 0), (255, 255, 255)])
def test_cut_out_surroundings_are_not_tissue(around: tuple[int, int, int]) -> None:
    image, oval = section()
    image[~ndimage.binary_dilation(oval, iterations=6)] = around
    found, wrong = score(image, oval)
    assert found > 0.98
    assert wrong == 0


def test_tinted_glass_and_noise_alone_hold_no_tissue() -> None:
    rng = np.random.default_rng(0)
    for colour in [(245, 245, 245), (220, 208, 222), (236, 212, 225)]:
        glass = np.clip(rng.normal(colour, 2.5, (*SHAPE, 3)), 0, 255).astype(np.uint8)
        assert find_tissue(glass, UM).mean() == 0


def test_tissue_that_fills_the_picture() -> None:
    image, _ = section()
    assert find_tissue(image[115:205, 95:205], UM).mean() > 0.97


def test_lumen_is_filled_only_when_small() -> None:
    image, _ = section()
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    small = np.hypot(x - 120, y - 160) < 10  # 160 um across
    large = np.hypot(x - 190, y - 160) < 35  # 560 um across
    image[small | large] = GLASS
    found = find_tissue(image, UM)
    assert found[small].all()
    assert not found[ndimage.binary_erosion(large, iterations=8)].any()


@pytest.mark.parametrize("um", [4.0, 16.0])
def test_other_resolutions(um: float) -> None:
    image, oval = section()
    size = (round(SHAPE[1] * UM / um), round(SHAPE[0] * UM / um))
    scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    found = np.asarray(Image.fromarray(find_tissue(scaled, um)).resize(oval.shape[::-1]))
    assert (found & oval).sum() / (found | oval).sum() > 0.93


def test_mask_of_a_slide(tmp_path: Path) -> None:
    image, oval = section()
    large = np.repeat(np.repeat(image, 4, 0), 4, 1)
    tifffile.imwrite(tmp_path / "a.tif", large, photometric="rgb", tile=(128, 128))
    slide = open_slide(tmp_path / "a.tif")
    with pytest.raises(InputError, match="mpp column"):
        tissue_mask(slide)
    tissue = tissue_mask(slide.with_mpp(2.0, "the test"))
    assert tissue.downsample == 4.0
    assert tissue.mask.shape == SHAPE
    assert tissue.fraction() == pytest.approx(oval.mean(), abs=0.02)
    inside = tissue.contains([[600, 640], [20, 20], [-5, 10], [99999, 10], [1e12, -1e12]])
    assert inside.tolist() == [True, False, False, False, False]


def test_contains_uses_x_for_columns() -> None:
    mask = np.zeros((3, 5), np.bool_)
    mask[1, 4] = True
    tissue = TissueMask(mask, downsample=2.0)
    assert tissue.contains([[8.0, 2.0], [9.99, 3.99], [2.0, 8.0], [10.0, 2.0]]).tolist() == [
        True, True, False, False,
    ]  # fmt: skip


REAL = [("her2st", f"C{n}", ".jpg", 0.687) for n in (2, 3, 5, 6)]
REAL += [("her2st_lowres", f"A{n}", ".png", 3.19) for n in (1, 2)]
REAL += [("mob", n, ".jpg", 2.75) for n in ("04", "09")]


@pytest.mark.parametrize(("folder", "name", "suffix", "mpp"), REAL)
def test_measured_spots_of_real_sections_are_on_tissue(
    shared: Path, folder: str, name: str, suffix: str, mpp: float
) -> None:
    data = shared / "data" / folder
    slide = open_slide(data / "images" / f"{name}{suffix}").with_mpp(mpp, "the sheet")
    (table,) = (data / "spots").glob(f"{name}_*.tsv")
    spots = pd.read_csv(table, sep="\t")
    tissue = tissue_mask(slide)
    assert tissue.contains(spots[["pixel_x", "pixel_y"]]).mean() >= 0.97
    # and the glass is not: the sections fill between a sixth and two fifths of their picture
    assert 0.15 < tissue.fraction() < 0.4


@pytest.mark.parametrize("name", ["01", "03", "05"])
def test_fiducials_and_bubbles_of_real_sections_are_left_out(shared: Path, name: str) -> None:
    slide = open_slide(shared / f"data/mob/images/{name}.jpg").with_mpp(2.75, "the sheet")
    mask = tissue_mask(slide).mask
    height, width = mask.shape
    assert not mask[: height // 8, : width // 8].any()  # the corner mark
    assert not mask[-height // 16 :].any()  # the lower frame
    if name == "05":
        y, x = round(0.80 * height), round(0.47 * width)  # inside the large bubble
        assert not mask[y - 10 : y + 100, x - 60 : x + 60].any()
