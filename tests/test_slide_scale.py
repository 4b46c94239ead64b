"""Micrometres per pixel from what an image says about itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import tifffile
from PIL import Image

from deepspace.core.errors import InputError
from deepspace.io.slide import open_slide
from make_images import picture, tiff


@pytest.mark.parametrize(
    ("unit", "size", "mpp"),
    [("µm", 0.25, 0.25), ("nm", 500, 0.5), ("mm", 0.001, 1.0), ("pixel", 1, None), ("µm", 0, None)],
)
def test_ome_physical_size(tmp_path: Path, unit: str, size: float, mpp: float | None) -> None:
    meta = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size}
    meta |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    slide = open_slide(tiff(tmp_path / "a.ome.tif", picture(), metadata=meta))
    assert slide.mpp == (None if mpp is None else pytest.approx(mpp))
    if mpp is None:
        assert any("OME" in note for note in slide.notes)


@pytest.mark.parametrize(
    ("per_unit", "unit", "mpp"),
    [(20000, "CENTIMETER", 0.5), (50800, "INCH", 0.5), (72, "INCH", None), (96, "INCH", None),
     (300, "INCH", None), (20000, "NONE", None), (1, "CENTIMETER", None)],
)  # fmt: skip
def test_resolution_tag(tmp_path: Path, per_unit: int, unit: str, mpp: float | None) -> None:
    path = tiff(tmp_path / "a.tif", picture(), resolution=(per_unit, per_unit), resolutionunit=unit)
    slide = open_slide(path)
    assert slide.mpp == (None if mpp is None else pytest.approx(mpp))
    if mpp is None:
        with pytest.raises(InputError, match=r"a\.tif.*mpp column"):
            slide.require_mpp()


def test_imagej_unit(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, picture(), imagej=True, resolution=(2, 2), metadata={"unit": "um", "axes": "YXS"}
    )
    assert open_slide(path).mpp == pytest.approx(0.5)


def test_sources_that_disagree_are_reported(tmp_path: Path) -> None:
    meta = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    path = tiff(
        tmp_path / "a.ome.tif", picture(), metadata=meta, resolution=(10000, 10000),
        resolutionunit="CENTIMETER",
    )  # fmt: skip
    slide = open_slide(path)
    assert slide.mpp == 0.5
    assert any("0.5" in note and "says 1" in note for note in slide.notes)


def test_png_and_jpeg_resolution(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png", dpi=(50800, 50800))
    Image.fromarray(picture()).save(tmp_path / "a.jpg", dpi=(72, 72))
    assert open_slide(tmp_path / "a.png").mpp == pytest.approx(0.5, rel=1e-3)
    assert open_slide(tmp_path / "a.jpg").mpp is None


@pytest.mark.parametrize("mpp", [0, -1, float("nan"), 1e9])
def test_with_mpp_refuses_nonsense(tmp_path: Path, mpp: float) -> None:
    with pytest.raises(InputError, match="micrometres per pixel"):
        open_slide(tiff(tmp_path / "a.tif", picture())).with_mpp(mpp, "the sheet")


def test_with_mpp_leaves_the_first_slide_alone(tmp_path: Path) -> None:
    first = open_slide(tiff(tmp_path / "a.tif", picture()))
    other = first.with_mpp(0.7, "the sheet")
    assert (other.mpp, other.mpp_source) == (0.7, "the sheet")
    assert first.mpp is None
