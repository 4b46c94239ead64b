"""Images that are damaged, odd, or need OpenSlide."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deepspace.core.errors import InputError
from deepspace.io.slide import open_slide
from deepspace.io.tiff import TiffSource
from deepspace.io.vendor import VendorSource
from make_images import picture, pyramid, smooth, tiff


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg", ".svs", ".ndpi", ".mrxs", ".czi"])
@pytest.mark.parametrize("content", [b"", b"just some text\n" * 40])
def test_text_or_nothing_under_an_image_name(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"a\{suffix}: .*(;|:) ?\w+"):
        open_slide(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such image"):
        open_slide(tmp_path / "a.tif")
    with pytest.raises(InputError, match="is a folder"):
        open_slide(tmp_path)


def files_for_damage(folder: Path) -> list[Path]:
    image = smooth(200, 220)
    paths = [
        tiff(
            folder / "a.tif",
            image,
            tile=(64, 64),
            compression="jpeg",
            compressionargs={"level": 80},
        ),
        tiff(folder / "b.tif", image, compression="deflate", rowsperstrip=16),
        tiff(folder / "c.tif", image),
        pyramid(folder / "d.ome.tif", sub=True),
    ]
    for name in ("e.png", "f.jpg"):
        Image.fromarray(image).save(folder / name)
        paths.append(folder / name)
    return paths


@pytest.fixture(scope="module")
def damage(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return files_for_damage(tmp_path_factory.mktemp("damage"))


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.995])
def test_truncated_file_is_named(tmp_path: Path, number: int, share: float) -> None:
    path = files_for_damage(tmp_path)[number]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    def everything() -> None:
        slide = open_slide(path)
        for i, level in enumerate(slide.levels):
            slide.read_level(i, 0, 0, level.width, level.height)

    with pytest.raises(InputError, match=f"{path.name}.*(copy|export)"):
        everything()


@pytest.mark.parametrize("number", range(6))
@settings(max_examples=60, deadline=None)
@given(where=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_never_break_out(
    damage: list[Path], number: int, where: list[tuple[float, int]]
) -> None:
    source = damage[number]
    content = bytearray(source.read_bytes())
    for place, value in where:
        # most hits in the headers, at either end
        content[int(place**3 * (len(content) - 1))] = value
    path = source.with_name(f"hit_{source.name}")
    path.write_bytes(content)
    try:
        slide = open_slide(path)
        if slide.width * slide.height < 10**7:
            slide.read(0, 0, slide.width, slide.height)
    except InputError as error:
        assert path.name in str(error)  # noqa: PT017  (either outcome is right)


def test_damaged_tile_is_named_and_the_others_can_be_read(tmp_path: Path) -> None:
    path = tiff(
        tmp_path / "a.tif",
        smooth(256, 256),
        tile=(64, 64),
        compression="jpeg",
        compressionargs={"level": 90},
    )
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[6], file.pages[0].databytecounts[6]
    content = bytearray(path.read_bytes())
    content[offset : offset + count] = bytes(count)
    path.write_bytes(content)
    slide = open_slide(path)
    assert slide.read(0, 0, 64, 64).shape == (64, 64, 3)
    with pytest.raises(InputError, match=r"a\.tif: tile in row 1, column 2 of level 0"):
        slide.read(0, 0, 256, 256)


def test_jpeg_tile_that_stops_early_is_no_grey_tile(tmp_path: Path) -> None:
    path = tiff(
        tmp_path / "a.tif",
        picture(128, 128),
        tile=(64, 64),
        compression="jpeg",
        compressionargs={"level": 90},
    )
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    content = bytearray(path.read_bytes())
    content[offset + count // 2 : offset + count] = bytes(count - count // 2)
    path.write_bytes(content)
    with pytest.raises(InputError, match="row 0, column 0"):
        open_slide(path).read(0, 0, 64, 64)


def test_nothing_moves_the_file_while_threads_read_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every seek holds the lock, from the first tile on: else a thread reads another's bytes."""
    path = tiff(
        tmp_path / "s.tif", picture(320, 320), tile=(64, 64), compression="jpeg", photometric="rgb"
    )
    source = open_slide(path)._source
    assert isinstance(source, TiffSource)
    seek, unlocked = tifffile.FileHandle.seek, []

    def watched(handle: tifffile.FileHandle, offset: int, whence: int = 0) -> int:
        if not source._lock.locked():
            unlocked.append(offset)
        return int(seek(handle, offset, whence))

    monkeypatch.setattr(tifffile.FileHandle, "seek", watched)
    source.read(0, 0, 0, 320, 320)
    assert unlocked == []


def test_empty_tiles_are_white_and_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiles = iter([picture(64, 64), None, picture(64, 64), None])
    tifffile.imwrite(
        path, tiles, shape=(128, 128, 3), dtype=np.uint8, tile=(64, 64), photometric="rgb"
    )
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = file.pages[0].tags[name]
            tag.overwrite([value if i % 2 == 0 else 0 for i, value in enumerate(tag.value)])
    slide = open_slide(path)
    assert any("2 tiles hold no data" in note for note in slide.notes)
    assert (slide.read(64, 0, 64, 64) == 255).all()
    assert np.array_equal(slide.read(0, 0, 64, 64), picture(64, 64))


@pytest.mark.parametrize("where", [0.3, 0.7])
def test_png_checksums_are_checked(tmp_path: Path, where: float) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png: the picture cannot be decoded"):
        open_slide(path).read(0, 0, 5, 5)


def test_exif_orientation_is_told_and_not_applied(tmp_path: Path) -> None:
    image = Image.fromarray(smooth(60, 90))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    slide = open_slide(tmp_path / "a.jpg")
    assert (slide.width, slide.height) == (90, 60)
    assert any("orientation 6" in note for note in slide.notes)


# vendor formats ----------------------------------------------------------------------------


def test_missing_openslide_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    path = tmp_path / "a.mrxs"
    path.write_bytes(b"\xff\xd8\xff" + bytes(50))
    with pytest.raises(InputError, match=r"pip install 'deepspace\[wsi\]'"):
        open_slide(path)


def test_vendor_backend_reads_levels_and_windows(shared: Path) -> None:
    pytest.importorskip("openslide")
    path = shared / "data/wsi/CMU-1-Small-Region.svs"
    vendor, own = VendorSource(path, 1 << 24), open_slide(path)
    assert vendor.sizes == ((2220, 2967),)
    assert vendor.scale.mpp == pytest.approx(0.499)
    theirs, ours = vendor.read(0, 500, 600, 200, 100), own.read(500, 600, 200, 100)
    assert np.abs(theirs.astype(int) - ours).max() <= 2


def test_scanner_tiff_under_a_plain_name_is_sent_to_openslide(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiff(path, picture(), extratags=[(65420, 4, 1, 1, True), (271, 2, 0, "Hamamatsu", True)])
    with pytest.raises(InputError, match=r"a\.tif: .*name it a\.ndpi.*deepspace\[wsi\]"):
        open_slide(path)


def test_forged_vendor_header_is_an_input_error(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("openslide")
    content = bytearray((shared / "data/wsi/CMU-1-Small-Region.svs").read_bytes())
    content[4:8] = b"\xf0\xff\xff\x7f"
    path = tmp_path / "a.ndpi"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.ndpi"):
        open_slide(path)
