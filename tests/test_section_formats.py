"""Sections written for other programs come back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy
import squidpy
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from deepspace.core.errors import InputError
from deepspace.io.section import Section, read_section
from deepspace.io.slide import open_slide
from deepspace.output.section import section_to_anndata, write_section
from make_sections import make_slide_file

SIZE = 400


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_slide_file(tmp_path_factory.mktemp("slide") / "S 1.png", size=SIZE)


@st.composite
def sections(draw: st.DrawFn) -> dict[str, object]:
    """Spots anywhere, some off tissue, some in tissue without counts, some with labels."""
    n, genes = draw(st.integers(2, 12)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    inside = rng.random(n) < 0.8
    inside[0] = True
    measured = inside & (rng.random(n) < 0.8)
    measured[0] = True
    return {
        "spots": pd.DataFrame(
            {
                "x": rng.uniform(0, SIZE, n),
                "y": rng.uniform(0, SIZE, n),
                "in_tissue": inside,
                "array_row": rng.integers(0, 78, n),
                "array_col": rng.integers(0, 128, n),
            },
            index=[f"b{k}-1" for k in rng.permutation(n)],
        ),
        "measured": measured,
        "values": rng.poisson(0.7, (int(measured.sum()), genes)),
        "clusters": draw(st.booleans()),
        "mpp": draw(st.sampled_from([0.25, 0.5, 1.37])),
    }


def made(drawn: dict[str, object], picture: Path) -> Section:
    spots: pd.DataFrame = drawn["spots"]
    own = spots[drawn["measured"]]
    counts = AnnData(
        sparse.csr_matrix(drawn["values"].astype(np.float32)),
        obs=own.drop(columns=["x", "y"]),
        var=pd.DataFrame(index=[f"G{k}" for k in range(drawn["values"].shape[1])]),
        obsm={"spatial": own[["x", "y"]].to_numpy()},
    )
    if drawn["clusters"]:
        counts.obs["cluster"] = pd.Categorical([str(k % 3) for k in range(len(own))])
    slide = open_slide(picture).with_mpp(drawn["mpp"], "test")
    return Section("S 1", "P", slide, "visium", counts, spots, spot_diameter_um=55.0)


def same(found: Section, section: Section) -> None:
    pd.testing.assert_frame_equal(
        found.spots, section.spots, check_dtype=False, check_names=False, check_like=True
    )
    assert list(found.counts.obs_names) == list(section.counts.obs_names)
    assert list(found.counts.var_names) == list(section.counts.var_names)
    np.testing.assert_array_equal(found.counts.X.toarray(), section.counts.X.toarray())
    np.testing.assert_array_equal(found.coords, section.coords)
    assert found.slide.mpp == pytest.approx(section.slide.mpp)
    assert found.spot_diameter_um == section.spot_diameter_um
    assert ("cluster" in found.counts.obs) == ("cluster" in section.counts.obs)
    if "cluster" in section.counts.obs:
        assert list(found.counts.obs["cluster"]) == list(section.counts.obs["cluster"])


@given(sections())
@settings(max_examples=30)
def test_anndata_comes_back(
    tmp_path_factory: pytest.TempPathFactory, picture: Path, drawn: dict[str, object]
) -> None:
    section = made(drawn, picture)
    path = tmp_path_factory.mktemp("h5ad") / "s.h5ad"
    write_section(section, path)
    same(read_section(path, image=picture), section)


@given(sections())
@settings(max_examples=3)
@pytest.mark.filterwarnings("ignore")
def test_spatialdata_comes_back(
    tmp_path_factory: pytest.TempPathFactory, picture: Path, drawn: dict[str, object]
) -> None:
    pytest.importorskip("spatialdata")
    section = made(drawn, picture)
    path = tmp_path_factory.mktemp("zarr") / "s.zarr"
    write_section(section, path)
    found = read_section(path)
    same(found, section)
    whole = (0, 0, SIZE, SIZE)
    np.testing.assert_array_equal(found.slide.read(*whole), section.slide.read(*whole))


@given(sections())
@settings(max_examples=3)
def test_scanpy_and_squidpy_take_it(picture: Path, drawn: dict[str, object]) -> None:
    adata = section_to_anndata(made(drawn, picture))
    scanpy.pp.calculate_qc_metrics(adata, inplace=True, percent_top=None)
    squidpy.gr.spatial_neighbors(adata, coord_type="generic", n_neighs=1)
    squidpy.gr.spatial_autocorr(adata, mode="moran", genes=["G0"], n_perms=None)
    assert "moranI" in adata.uns


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.filterwarnings("ignore")
def test_an_unmeasured_section_comes_back_unmeasured(
    picture: Path, tmp_path: Path, suffix: str
) -> None:
    spots = pd.DataFrame(
        {"x": [9.0, 50.0], "y": [9.0, 80.0], "in_tissue": [True, False]}, index=["a", "b"]
    )
    slide = open_slide(picture).with_mpp(0.5, "test")
    write_section(Section("S1", "P", slide, "visium", spots=spots), tmp_path / f"s{suffix}")
    given = {"image": picture} if suffix == ".h5ad" else {}
    found = read_section(tmp_path / f"s{suffix}", **given)
    assert not found.measured
    pd.testing.assert_frame_equal(found.spots, spots, check_names=False, check_like=True)


def test_what_cannot_be_written_is_told(picture: Path, tmp_path: Path) -> None:
    slide = open_slide(picture)
    bare = Section("S1", "P", slide, "image")
    with pytest.raises(InputError, match="neither counts nor spots"):
        write_section(bare, tmp_path / "s.h5ad")
    with pytest.raises(InputError, match=r"must end in \.h5ad"):
        write_section(bare, tmp_path / "s.csv")
    (tmp_path / "old.h5ad").write_bytes(b"mine")
    with pytest.raises(InputError, match="overwrite"):
        write_section(bare, tmp_path / "old.h5ad")
