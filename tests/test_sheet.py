"""The cohort sheet: its contract, and every fault of it at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deepspace.core.errors import InputError
from deepspace.io.sheet import read_sheet
from make_files import Array, write_image, write_outs, write_positions, write_sheet, write_st


@pytest.fixture
def row(tmp_path: Path) -> dict[str, object]:
    return {"section": "01", "patient": "P", "z_um": 16, "mpp": 5.0, **write_st(tmp_path)}


def test_ids_are_text_and_paths_relative(
    tmp_path: Path, row: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = write_sheet(tmp_path / "s.csv", [row])
    monkeypatch.chdir("/")
    (section,) = read_sheet(sheet)
    assert (section.section, section.patient, section.z_um) == ("01", "P", 16.0)
    assert (section.slide.mpp, section.slide.mpp_source) == (5.0, "given")
    assert section.measured
    assert section.sources["counts"] == tmp_path / "S.tsv"
    assert section.coords.dtype == np.float64


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_spreadsheets_do(
    tmp_path: Path, row: dict[str, object], mark: str, bom: str, end: str
) -> None:
    sheet = write_sheet(tmp_path / "s.csv", [row], mark)
    lines = [line + mark for line in sheet.read_text().splitlines()]
    lines += [mark * (len(row) + 1), ""]
    sheet.write_bytes((bom + end.join(lines)).encode())
    assert [section.section for section in read_sheet(sheet)] == ["01"]


def test_unmeasured_rows(tmp_path: Path, row: dict[str, object]) -> None:
    positions = write_positions(tmp_path / "p.csv", Array().positions, header=False)
    image = {"section": "bare", "patient": "P", "image": row["image"], "mpp": 5}
    rows = [
        image,
        {**image, "section": "st", "spots": row["spots"]},
        {**image, "section": "vi", "spots": positions.name, "mpp": ""},
    ]
    bare, legacy, visium = read_sheet(write_sheet(tmp_path / "s.csv", rows))
    assert not any(section.measured for section in (bare, legacy, visium))
    assert (bare.platform, bare.spots) == ("image", None)
    assert (legacy.platform, len(legacy.spots)) == ("st", 30)
    assert (visium.platform, len(visium.spots)) == ("visium", 48)
    assert visium.slide.mpp == pytest.approx(5.0)
    with pytest.raises(InputError, match="has no counts"):
        _ = bare.coords


def test_space_ranger_rows_and_a_bare_folder(tmp_path: Path, row: dict[str, object]) -> None:
    outs = write_outs(tmp_path / "a" / "outs")
    rows = [row, {"section": "v", "patient": "Q", "spaceranger": "a/outs"}]
    measured, visium = read_sheet(write_sheet(tmp_path / "s.csv", rows))
    assert (measured.platform, visium.platform) == ("st", "visium")
    (alone,) = read_sheet(outs)
    assert alone.section == "a"
    np.testing.assert_array_equal(alone.coords, visium.coords)


def test_only_reads_what_is_asked_for(tmp_path: Path, row: dict[str, object]) -> None:
    (tmp_path / "broken.tsv").write_text("not a table")
    rows = [{**row, "section": "02", "counts": "broken.tsv"}, row]
    sheet = write_sheet(tmp_path / "s.csv", rows)
    assert [section.section for section in read_sheet(sheet, only=["01"])] == ["01"]
    with pytest.raises(InputError, match=r"line 2, section 02: .*broken.tsv"):
        read_sheet(sheet)
    with pytest.raises(InputError, match="no section '1'; did you mean 01"):
        read_sheet(sheet, only=["1"])


def test_every_fault_at_once(tmp_path: Path, row: dict[str, object]) -> None:
    write_image(tmp_path / "other.png")
    rows = [
        {**row, "z_um": "deep", "mpp": -1},
        {**row, "image": "nowhere.png", "spots": ""},
        {"section": "x", "patient": "", "mpp": "0,5"},
        {**row, "section": "y", "h5ad": "y.h5ad"},
    ]
    with pytest.raises(InputError) as caught:
        read_sheet(write_sheet(tmp_path / "s.csv", rows, ";"))
    text = str(caught.value)
    for fault in (
        "section '01' occurs more than once",
        "line 2, section 01: z_um is 'deep', not a number",
        "line 2, section 01: mpp is -1",
        f"line 3, section 01: image: no such file {tmp_path / 'nowhere.png'}",
        "line 3, section 01: counts without spots",
        "line 4, section x: patient is empty",
        "line 4, section x: image is empty",
        "line 4, section x: mpp is '0,5', not a number; write a decimal point",
        "line 5, section y: counts and h5ad are given",
    ):
        assert fault in text
    assert text.startswith(str(tmp_path / "s.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("section,image\nA,a.png\n", "no column patient"),
        ("patient,image\nA,a.png\n", "no column section"),
        ("section,patient,mpp\nA,P,1\n", "no column image"),
        ("section,patient,img\nA,P,a.png\n", "unknown column 'img'.*did you mean image"),
        ("section,patient,image,Z_um\nA,P,a.png,1\n", "'Z_um': did you mean z_um"),
        ("section,patient,image,image\nA,P,a.png,\n", "column image occurs more than once"),
        ("section,patient,image\n", "has no rows"),
        ("section,patient,image\n,,\n\n", "has no rows"),
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("section,patient,image\nA,P,a.png,b,c\nB,P\n", "line 2 has 5 cells"),
    ],
)
def test_refused_sheets(tmp_path: Path, text: str, message: str) -> None:
    sheet = tmp_path / "s.csv"
    sheet.write_text(text)
    with pytest.raises(InputError, match=rf"(?s){message}"):
        read_sheet(sheet)


def test_wrong_files_for_a_sheet(tmp_path: Path) -> None:
    image = write_image(tmp_path / "s.png")
    with pytest.raises(InputError, match="not a file that can be read"):
        read_sheet(image)
    image.rename(tmp_path / "s.csv")
    with pytest.raises(InputError, match="is a PNG image, a text table is needed"):
        read_sheet(tmp_path / "s.csv")
    with pytest.raises(InputError, match="no such file"):
        read_sheet(tmp_path / "t.csv")
    with pytest.raises(InputError, match="not a folder that can be read"):
        read_sheet(tmp_path)


def test_counts_and_spots_of_different_kinds(tmp_path: Path, row: dict[str, object]) -> None:
    outs = write_outs(tmp_path / "a" / "outs", image=False)
    matrix = outs / "filtered_feature_bc_matrix.h5"
    positions = outs / "spatial" / "tissue_positions.csv"
    with pytest.raises(InputError, match="is no tissue_positions file"):
        read_sheet(write_sheet(tmp_path / "s.csv", [{**row, "counts": matrix}]))
    with pytest.raises(InputError, match="is no 10x matrix"):
        read_sheet(write_sheet(tmp_path / "s.csv", [{**row, "spots": positions}]))
    both = {**row, "counts": matrix, "spots": positions}
    (section,) = read_sheet(write_sheet(tmp_path / "s.csv", [both]))
    assert section.platform == "visium"


def test_a_quote_that_is_not_closed_is_told_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text('section,patient,mpp,image\nA,P,1,a.png\n"B,P,1,b.png\nC,P,1,c.png\n')
    with pytest.raises(InputError, match=r"row that begins in line 3 .* quotes"):
        read_sheet(path)


def test_ids_that_differ_only_in_case_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text("section,patient,mpp,image\nA1,P,1,a.png\na1,P,1,b.png\n")
    with pytest.raises(InputError, match="'A1' and 'a1' differ only in case"):
        read_sheet(path)
