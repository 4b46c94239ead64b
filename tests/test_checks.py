"""Each classic mistake has its own message, and sound sections have none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deepspace.core.errors import InputError
from deepspace.io.checks import check_cohort, section_id_problems, validate
from deepspace.io.section import Section, read_section
from deepspace.io.sheet import read_sheet
from make_files import Array, write_image, write_outs, write_scalefactors, write_sheet, write_st


@pytest.fixture
def outs(tmp_path: Path) -> Path:
    return write_outs(tmp_path / "a" / "outs")


@pytest.fixture
def section(outs: Path) -> Section:
    return read_section(outs)


def only(section: Section) -> str:
    """Return the one problem: a mistake must not be reported as three."""
    problems = validate(section)
    assert len(problems) == 1, problems
    return problems[0]


def with_values(section: Section, change: object) -> Section:
    counts = section.counts.copy()
    counts.X.data = np.asarray(change(counts.X.data), np.float32)
    return replace(section, counts=counts)


def test_sound_section(section: Section) -> None:
    assert validate(section) == []
    assert validate(section.without_counts()) == []


def test_hires_by_name_and_by_content(outs: Path) -> None:
    write_scalefactors(outs / "spatial", tissue_hires_scalef=0.25)
    for name in ("tissue_hires_image.png", "he.png"):
        image = write_image(outs.parent / "b" / name, 160, 160)
        message = only(read_section(outs, image=image))
        assert "Space Ranger's hires picture (160 x 160 px, tissue_hires_scalef 0.25)" in message
        assert str(image) in message
        assert "--image" in message


def test_lowres_by_content(outs: Path) -> None:
    image = write_image(outs.parent / "b" / "he.png", 96, 96)
    assert "Space Ranger's lowres picture" in only(read_section(outs, image=image))


def test_hires_by_size_without_scale_factors(outs: Path) -> None:
    (outs / "spatial" / "scalefactors_json.json").unlink()
    path = outs / "spatial" / "tissue_positions.csv"
    table = pd.read_csv(path)
    table[["pxl_row_in_fullres", "pxl_col_in_fullres"]] *= 20
    table.to_csv(path, index=False)
    image = write_image(outs.parent / "b" / "he.png", 2000, 1500)
    section = read_section(outs, image=image)
    assert "Space Ranger's hires picture (2000 x 1500 px)" in only(section)


def test_hires_by_size_though_all_spots_fit(outs: Path) -> None:
    image = write_image(outs.parent / "b" / "he.png", 2000, 1500)
    assert "Space Ranger's hires picture (2000 x 1500 px" in only(read_section(outs, image=image))
    # but a full-resolution image may be as large as that
    write_scalefactors(outs / "spatial", tissue_hires_scalef=1.0)
    assert validate(read_section(outs, image=image)) == []


def swap(outs: Path) -> None:
    path = outs / "spatial" / "tissue_positions.csv"
    table = pd.read_csv(path)
    names = ["pxl_row_in_fullres", "pxl_col_in_fullres"]
    table[names] = table[names[::-1]].to_numpy()
    table.to_csv(path, index=False)


def test_swapped_axes_in_a_square_image(outs: Path) -> None:
    swap(outs)
    message = only(read_section(outs))
    assert "x and y look swapped" in message
    assert "mirrored" in message
    assert "tissue_positions.csv" in message


def test_swapped_axes_in_a_flat_image(outs: Path) -> None:
    swap(outs)
    image = write_image(outs.parent / "b" / "he.png", 640, 190)
    assert "spots lie outside the image, none if swapped" in only(read_section(outs, image=image))


def test_mirrored_cytassist_is_no_mistake(outs: Path) -> None:
    path = outs / "spatial" / "tissue_positions.csv"
    table = pd.read_csv(path)
    # the same places, taken by the array from right to left
    table["pxl_col_in_fullres"] = (
        table["pxl_col_in_fullres"].sum() / len(table) * 2 - table["pxl_col_in_fullres"]
    )
    table.to_csv(path, index=False)
    write_image(outs / "spatial" / "cytassist_image.tiff")
    assert validate(read_section(outs)) == []


def test_quarter_turn_is_no_mistake(outs: Path) -> None:
    path = outs / "spatial" / "tissue_positions.csv"
    table = pd.read_csv(path)
    x, y = table["pxl_col_in_fullres"] - 250, table["pxl_row_in_fullres"] - 120
    table["pxl_col_in_fullres"], table["pxl_row_in_fullres"] = 250 - y, 120 + x
    table.to_csv(path, index=False)
    assert validate(read_section(outs)) == []


def test_spots_outside_the_image(outs: Path) -> None:
    image = write_image(outs.parent / "b" / "he.png", 230, 230)
    # neither the scale factor nor exchanged axes would bring them in
    write_scalefactors(outs / "spatial", tissue_hires_scalef=0.95, tissue_lowres_scalef=0.95)
    message = only(read_section(outs, image=image))
    assert "spots lie outside the image (230 x 230 px; spots reach over x " in message


def test_resized_image(outs: Path) -> None:
    write_image(outs / "spatial" / "tissue_hires_image.png", 320, 320)
    assert validate(read_section(outs)) == []
    image = write_image(outs.parent / "b" / "he.png", 1280, 1280)
    message = only(read_section(outs, image=image))
    assert "the full-resolution image had 640 x 640 px" in message


def test_wrong_scale_factors(outs: Path) -> None:
    write_scalefactors(outs / "spatial", spot_diameter_fullres=90.0)
    message = only(read_section(outs))
    assert "wrong scale factors: spot_diameter_fullres is 90 px, that is 450 um" in message
    assert "scalefactors_json.json" in message


def test_wrong_mpp(outs: Path) -> None:
    message = only(read_section(outs, mpp=0.25))
    assert "wrong mpp: with 0.25 um/px (given) neighbouring spots would be 5 um apart" in message
    with pytest.raises(InputError, match="mpp is 5000"):
        read_section(outs, mpp=5000)


@pytest.mark.parametrize("name", ["", "a/b", ".a", "a" * 151, "ä" * 76])
def test_ids_that_name_no_file_are_told(name: str) -> None:
    assert len(section_id_problems(name)) == 1
    assert section_id_problems("Probe 3 (ä)") == []


def test_an_image_larger_than_a_glass_slide_is_noted(tmp_path: Path) -> None:
    image = write_image(tmp_path / "he.png", 2100, 50)
    for mpp, told in (("40", True), ("0.5", False)):
        rows = [{"section": "A", "patient": "P", "image": image, "mpp": mpp}]
        (section,) = read_sheet(write_sheet(tmp_path / "s.csv", rows))
        assert any("would be 84 mm long" in note for note in section.notes) == told


def test_missing_mpp(tmp_path: Path) -> None:
    cells = write_st(tmp_path)
    rows = [{"section": "A", "patient": "P", "image": cells["image"]}]
    (bare,) = read_sheet(write_sheet(tmp_path / "s.csv", rows))
    message = only(bare)
    assert "missing mpp" in message
    assert "column mpp" in message


def test_duplicate_barcodes(section: Section) -> None:
    counts = section.counts.copy()
    counts.obs_names = [counts.obs_names[0], counts.obs_names[0], *counts.obs_names[2:]]
    message = only(replace(section, counts=counts))
    assert f"duplicate barcodes: 1 occur more than once ({counts.obs_names[0]})" in message


def test_normalised_counts(section: Section) -> None:
    message = only(with_values(section, np.log1p))
    assert "normalised instead of raw counts (100% of the values" in message
    assert "filtered_feature_bc_matrix.h5" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: np.where(np.arange(v.size) == 3, np.nan, v), "1 counts are NaN or infinite"),
        (lambda v: v - v.mean(), "negative counts"),
        (lambda v: v * 0, "all counts are zero"),
    ],
)
def test_impossible_counts(section: Section, change: object, message: str) -> None:
    assert message in only(with_values(section, change))


def test_empty_sections(section: Section) -> None:
    none = np.zeros(section.counts.n_obs, bool)
    assert "empty section: 0 spots in tissue, 12 genes" in only(section.subset(none))
    genes = replace(section, counts=section.counts[:, :0].copy())
    assert "empty section" in only(genes)


def test_empty_section_from_files(tmp_path: Path) -> None:
    array = Array()
    array.positions["in_tissue"] = 0
    section = read_section(write_outs(tmp_path / "a" / "outs", array))
    assert any("empty section: 0 spots in tissue" in problem for problem in validate(section))


def rename(section: Section, name: str, genes: list[str]) -> Section:
    counts = section.counts.copy()
    counts.var_names = genes
    return replace(section, section=name, counts=counts)


@pytest.mark.parametrize(
    ("genes", "cause"),
    [
        ([f"ENSG{i:011d}" for i in range(12)], "Ensembl identifiers against symbols"),
        ([f"Gene{i}" for i in range(12)], "differ in case only"),
        ([f"FBgn{i}" for i in range(12)], "other species or another annotation"),
    ],
)
def test_gene_names_that_do_not_match(section: Section, genes: list[str], cause: str) -> None:
    other = rename(section, "b", genes)
    with pytest.raises(InputError, match=f"gene names do not match between.* a .*{cause}"):
        check_cohort([section, other])


def test_versions_of_identifiers(section: Section) -> None:
    plain = rename(section, "b", [f"ENSG{i:011d}" for i in range(12)])
    versioned = rename(section, "c", [f"ENSG{i:011d}.{i + 1}" for i in range(12)])
    with pytest.raises(InputError, match="with and without a version"):
        check_cohort([plain, versioned])


def test_cohort_that_goes_together(section: Section) -> None:
    # a panel that shares a third of the genes is another panel, no mistake
    genes = [*section.counts.var_names[:4], *(f"OTHER{i}" for i in range(8))]
    other = rename(section, "b", genes)
    other.counts.obsm["spatial"] = section.coords + 500.0  # elsewhere on the same scan
    check_cohort([section, other, replace(section.without_counts(), section="c")])
    with pytest.raises(InputError, match="the same image and the same spots"):
        check_cohort([section, rename(section, "b", genes)])
    with pytest.raises(InputError, match="section 'a' occurs more than once"):
        check_cohort([section, section])


def test_description_is_json(section: Section) -> None:
    facts = section.describe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["spots"] == 48
    assert facts["spots_measured"] == facts["spots_in_tissue"] == section.counts.n_obs
    assert facts["median_umis"] == np.median(section.counts.X.toarray().sum(axis=1))
    assert facts["median_genes"] == np.median((section.counts.X.toarray() > 0).sum(axis=1))
    assert facts["image_size"] == [640, 640]
    assert facts["spot_diameter_px"] == pytest.approx(11.0, rel=1e-3)


def test_subset_keeps_slide_and_spots(section: Section) -> None:
    few = section.subset(np.arange(3))
    assert few.slide is section.slide
    np.testing.assert_array_equal(few.coords, section.coords[:3])
    assert len(few.spots) == len(section.spots)
    few.notes.append("mine")
    assert "mine" not in section.notes
