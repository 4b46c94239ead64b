"""Opening images of every kind and reading windows of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from deepspace.core.errors import InputError
from deepspace.io.slide import Slide, open_slide
from deepspace.io.source import ArrayLRU
from make_images import H, W, halves, picture, pyramid, smooth, tiff


def planar(path: Path, image: np.ndarray) -> Path:
    return tiff(path, np.moveaxis(image, -1, 0), planarconfig="separate", tile=(32, 32))


# every way of laying the same pixels down without loss
WRITERS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "tiled.tif": lambda p, a: tiff(p, a, tile=(32, 48)),
    "deflate.tif": lambda p, a: tiff(p, a, tile=(64, 64), compression="deflate", predictor=True),
    "j2k.tif": lambda p, a: tiff(p, a, tile=(64, 64), compression="jpeg2000"),
    "big.tif": lambda p, a: tiff(p, a, tile=(32, 32), bigtiff=True),
    "bigendian.tif": lambda p, a: tiff(p, a, tile=(32, 32), byteorder=">"),
    "strips.tif": lambda p, a: tiff(p, a, rowsperstrip=7),
    "lzw.tif": lambda p, a: tiff(p, a, rowsperstrip=11, compression="lzw"),
    "onestrip.tif": tiff,
    "planar.tif": planar,
    "x.ome.tif": lambda p, a: tiff(p, a, tile=(32, 32), metadata={"axes": "YXS"}),
    "x.png": lambda p, a: (Image.fromarray(a).save(p), p)[1],
    "misnamed.jpg": lambda p, a: (Image.fromarray(a).save(p, format="PNG"), p)[1],
}


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Slide]:
    folder = tmp_path_factory.mktemp("slides")
    return {name: open_slide(write(folder / name, picture())) for name, write in WRITERS.items()}


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=25, deadline=None)
@given(
    x=st.integers(-60, W + 60),
    y=st.integers(-60, H + 60),
    width=st.integers(1, 140),
    height=st.integers(1, 140),
)
def test_window_is_a_slice_with_white_around(
    slides: dict[str, Slide], name: str, x: int, y: int, width: int, height: int
) -> None:
    framed = np.full((H + 600, W + 600, 3), 255, np.uint8)
    framed[300 : 300 + H, 300 : 300 + W] = picture()
    expected = framed[300 + y : 300 + y + height, 300 + x : 300 + x + width]
    np.testing.assert_array_equal(slides[name].read(x, y, width, height), expected)


def test_jpeg_compressed_tiles_equal_another_decoder(tmp_path: Path) -> None:
    path = tiff(
        tmp_path / "a.tif",
        smooth(300, 300),
        tile=(64, 64),
        compression="jpeg",
        compressionargs={"level": 90},
    )
    assert np.array_equal(open_slide(path).read(0, 0, 300, 300), tifffile.imread(path))


def test_jpeg_file_equals_pillow(tmp_path: Path) -> None:
    Image.fromarray(smooth(90, 120)).save(tmp_path / "a.jpg")
    expected = np.asarray(Image.open(tmp_path / "a.jpg"))
    assert np.array_equal(open_slide(tmp_path / "a.jpg").read(0, 0, 120, 90), expected)


# colour models -----------------------------------------------------------------------------


def test_grey_is_repeated_and_white_is_zero_is_turned(tmp_path: Path) -> None:
    grey = picture()[..., 0]
    tiff(tmp_path / "g.tif", grey, photometric="minisblack")
    tiff(tmp_path / "w.tif", 255 - grey, photometric="miniswhite", compression="deflate")
    Image.fromarray(grey).save(tmp_path / "g.png")
    for name in ("g.tif", "w.tif", "g.png"):
        window = open_slide(tmp_path / name).read(0, 0, W, H)
        assert np.array_equal(window, np.repeat(grey[..., None], 3, axis=2)), name


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_transparency_is_laid_over_white(tmp_path: Path, name: str) -> None:
    rgba = np.full((20, 20, 4), 100, np.uint8)
    rgba[:10, :, 3] = 0
    rgba[10:, :, 3] = 255
    if name == "a.png":
        Image.fromarray(rgba).save(tmp_path / name)
    else:
        tiff(tmp_path / name, rgba, extrasamples=["unassalpha"])
    window = open_slide(tmp_path / name).read(0, 0, 20, 20)
    assert (window[:10] == 255).all()
    assert (window[10:] == 100).all()


def test_half_transparent_in_both_conventions(tmp_path: Path) -> None:
    straight = np.full((8, 8, 4), (200, 100, 0, 128), np.uint8)
    premultiplied = np.full((8, 8, 4), (100, 50, 0, 128), np.uint8)
    tiff(tmp_path / "s.tif", straight, extrasamples=["unassalpha"])
    tiff(tmp_path / "p.tif", premultiplied, extrasamples=["assocalpha"])
    one, two = (open_slide(tmp_path / f"{n}.tif").read(0, 0, 1, 1)[0, 0] for n in "sp")
    assert abs(one.astype(int) - two).max() <= 1
    assert abs(one.astype(int) - (227, 177, 127)).max() <= 1


def test_palette_is_looked_up(tmp_path: Path) -> None:
    index = (picture()[..., 0] % 4).astype(np.uint8)
    colours = np.zeros((256, 3), np.uint8)
    colours[:4] = [(255, 0, 0), (0, 250, 0), (0, 0, 240), (9, 8, 7)]
    tiff(
        tmp_path / "p.tif", index, photometric="palette",
        colormap=(colours.T.astype(np.uint16) * 257),
    )  # fmt: skip
    image = Image.fromarray(index).convert("P")
    image.putpalette(colours.ravel().tolist())
    image.save(tmp_path / "p.png")
    for name in ("p.tif", "p.png"):
        assert np.array_equal(open_slide(tmp_path / name).read(0, 0, W, H), colours[index]), name


@pytest.mark.parametrize(
    "kind", ["16 bit", "16 bit png", "cmyk", "cmyk jpg", "float", "5 channels"]
)
def test_other_pixels_are_refused_with_the_cure(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.tif"
    if kind == "16 bit":
        tiff(path, picture().astype(np.uint16))
    elif kind == "16 bit png":
        path = tmp_path / "a.png"
        path.write_bytes(imagecodecs.png_encode(picture().astype(np.uint16)))
    elif kind == "cmyk":
        tiff(path, np.zeros((9, 9, 4), np.uint8), photometric="separated")
    elif kind == "cmyk jpg":
        path = tmp_path / "a.jpg"
        Image.new("CMYK", (9, 9)).save(path)
    elif kind == "float":
        tiff(path, picture().astype(np.float32))
    else:
        tiff(path, np.zeros((9, 9, 5), np.uint8), planarconfig="contig")
    with pytest.raises(InputError, match=r"a\.(tif|png|jpg).*8-bit RGB.*vips"):
        open_slide(path)


# pyramids ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sub", "reduced"),
    [("a.ome.tif", True, 1), ("a.tif", True, 1), ("b.tif", False, 1), ("c.tif", False, 0)],
)
def test_levels_of_every_kind_of_pyramid(
    tmp_path: Path, name: str, sub: bool, reduced: int
) -> None:
    label = picture(125, 100)
    slide = open_slide(
        pyramid(tmp_path / name, sub=sub, reduced=reduced, extra=None if sub else label)
    )
    assert [(lv.width, lv.height, lv.downsample) for lv in slide.levels] == [
        (403, 501, 1.0),
        (201, 250, 2.0),
        (100, 125, 4.0),
    ]
    for number, level in enumerate(halves(smooth(501, 403), 2)):
        window = slide.read(0, 0, level.shape[1], level.shape[0], level=number)
        assert np.array_equal(window, level)


def test_corner_is_full_resolution_whatever_the_level(tmp_path: Path) -> None:
    slide = open_slide(pyramid(tmp_path / "a.tif", sub=True))
    level = halves(smooth(501, 403), 2)[2]
    assert np.array_equal(slide.read(40, 80, 20, 10, level=2), level[20:30, 10:30])


def test_level_choice_is_just_finer_than_needed(tmp_path: Path) -> None:
    slide = open_slide(pyramid(tmp_path / "a.tif", sub=True))
    wanted = {0.5: 0, 1.0: 0, 1.9: 0, 2.0: 1, 3.9: 1, 4.0: 2, 50.0: 2}
    assert {d: slide.level_for(d) for d in wanted} == wanted


def test_aperio_label_macro_thumbnail_are_no_levels(shared: Path) -> None:
    one = open_slide(shared / "data/wsi/CMU-1-Small-Region.svs")
    assert [(lv.width, lv.height) for lv in one.levels] == [(2220, 2967)]
    assert one.mpp == pytest.approx(0.499)
    assert one.mpp_source == "Aperio MPP"
    two = open_slide(shared / "data/wsi/TCGA-CR-7395-01A-01-TS1_j2k.svs")
    assert [(lv.width, lv.height, lv.downsample) for lv in two.levels] == [
        (4443, 3567, 1.0),
        (2221, 1783, 2.0),
    ]
    assert two.mpp is None


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1_j2k.svs"])
def test_svs_equals_openslide(shared: Path, name: str) -> None:
    path = shared / "data/wsi" / name
    openslide = pytest.importorskip("openslide")
    slide, other = open_slide(path), openslide.OpenSlide(path)
    window = slide.read(700, 900, 300, 260)
    theirs = np.asarray(other.read_region((700, 900), 0, (300, 260)))[..., :3]
    assert np.abs(window.astype(int) - theirs).max() <= 2


def test_svs_levels_show_the_same_place(shared: Path) -> None:
    slide = open_slide(shared / "data/wsi/TCGA-CR-7395-01A-01-TS1_j2k.svs")
    fine = slide.read(3000, 2400, 600, 600).reshape(300, 2, 300, 2, 3).mean((1, 3))
    coarse = slide.read(3000, 2400, 300, 300, level=1)
    assert np.corrcoef(fine.ravel(), coarse.ravel())[0, 1] > 0.95


@pytest.fixture(scope="module")
def gradient(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    """Red rises with x, green with y, half a grey value a pixel."""
    y, x = np.mgrid[:400, :400]
    exact = np.rint(np.stack([(x + 0.5) / 2, (y + 0.5) / 2, 0 * x], -1)).astype(np.uint8)
    folder = tmp_path_factory.mktemp("gradient")
    return open_slide(tiff(folder / "gradient.tif", exact, tile=(64, 64)))


# resampling --------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(40, 240),
    y=st.floats(40, 240),
    side=st.floats(20, 140),
    out=st.integers(8, 64),
)
def test_resampled_window_of_a_gradient_is_exact(
    gradient: Slide, x: float, y: float, side: float, out: int
) -> None:
    window = gradient.resample((x, y), (side, side), (out, out)).astype(float)
    centres = (np.arange(out) + 0.5) * side / out
    # the gradient rises by half a grey value a pixel; whole-pixel crops may move by half a pixel
    slack = 0.5 * max(side / out, 1) / 2 + 0.51
    assert np.abs(window[..., 0] - (x + centres)[None, :] / 2).max() <= slack
    assert np.abs(window[..., 1] - (y + centres)[:, None] / 2).max() <= slack


def test_overview_of_a_gradient(gradient: Slide) -> None:
    overview, downsample = gradient.thumbnail(100)
    assert overview.shape == (100, 100, 3)
    centres = (np.arange(100) + 0.5) * downsample / 2
    assert np.abs(overview[1:-1, 1:-1, 0] - centres[None, 1:-1]).max() <= 1.01
    assert np.abs(overview[1:-1, 1:-1, 1] - centres[1:-1, None]).max() <= 1.01


def test_overview_in_bands_equals_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = open_slide(tiff(tmp_path / "a.tif", picture(700, 300), tile=(64, 64)))
    whole = slide.overview(3.3)
    monkeypatch.setattr("deepspace.io.slide._BAND_PX", 50)
    difference = np.abs(slide.overview(3.3).astype(int) - whole)
    assert difference.max() <= 1
    assert difference.mean() < 0.01


def test_same_scale_gives_the_pixels_themselves(slides: dict[str, Slide]) -> None:
    window = slides["tiled.tif"].resample((10.3, 20.4), (64.2, 64.2), (64, 64))
    assert np.array_equal(window, picture()[20:84, 10:74])


def test_thumbnail_never_enlarges(slides: dict[str, Slide]) -> None:
    image, downsample = slides["tiled.tif"].thumbnail(4000)
    assert downsample == 1.0
    assert np.array_equal(image, picture())


# caching -----------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(keys=st.lists(st.integers(0, 20), max_size=80), room=st.integers(1, 8))
def test_cache_is_bounded_and_right(keys: list[int], room: int) -> None:
    cache = ArrayLRU(max_bytes=room * 100)
    made: list[int] = []

    def make(key: int) -> np.ndarray:
        made.append(key)
        return np.full(100, key, np.uint8)

    for key in keys:
        assert (cache.get(key, lambda key=key: make(key)) == key).all()
        assert cache.bytes <= room * 100
    recent: list[int] = []
    misses = 0
    for key in keys:
        misses += key not in recent
        recent = [k for k in recent if k != key][-(room - 1) :] if room > 1 else []
        recent.append(key)
    assert len(made) == misses


def test_cache_makes_once_for_many_threads_and_recovers_from_failure() -> None:
    cache, made = ArrayLRU(1000), []

    def make() -> np.ndarray:
        made.append(1)
        return np.zeros(10, np.uint8)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: cache.get("a", make), range(64)))
    assert len(made) == 1

    def fail() -> np.ndarray:
        raise InputError("no")

    with pytest.raises(InputError):
        cache.get("b", fail)
    assert cache.get("b", make).size == 10


def test_threads_read_the_same_pixels(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", picture(600, 600), tile=(32, 32), compression="deflate")
    slide = open_slide(path, cache_bytes=20_000)
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 500, (200, 2))
    with ThreadPoolExecutor(8) as pool:
        windows = list(pool.map(lambda c: slide.read(int(c[0]), int(c[1]), 100, 100), corners))
    for (x, y), window in zip(corners, windows, strict=True):
        assert np.array_equal(window, picture(600, 600)[y : y + 100, x : x + 100])


def test_a_window_may_be_written_to(slides: dict[str, Slide]) -> None:
    for name, slide in slides.items():
        window = slide.read(0, 0, 20, 20)
        window[:] = 0
        assert np.array_equal(slide.read(0, 0, 20, 20), picture()[:20, :20]), name


def test_content_hash_follows_the_file(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", picture())
    slide = open_slide(path)
    assert slide.content_hash() == hashlib.sha256(path.read_bytes()).hexdigest()
    tiff(path, picture(seed=1))
    os.utime(path, (1, 1))
    assert open_slide(path).content_hash() == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("folder", ["her2st", "mob"])
def test_real_jpegs(shared: Path, folder: str) -> None:
    path = sorted((shared / "data" / folder / "images").glob("*.jpg"))[0]
    slide = open_slide(path)
    assert slide.mpp is None  # 72 dpi is no pixel size
    with JpegImageFile(path) as image:  # Image.open warns of the size
        assert (slide.width, slide.height) == image.size
        expected = np.asarray(image.crop((1000, 1100, 1200, 1300)))
    assert np.array_equal(slide.read(1000, 1100, 200, 200), expected)
