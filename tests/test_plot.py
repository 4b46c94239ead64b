"""Pictures: what they show is what they were given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection, PolyCollection
from matplotlib.figure import Figure

from deepspace.data.tissue import TissueMask
from deepspace.io.section import Section
from deepspace.output import plot
from deepspace.output.canvas import add_points, new_figure, nice_length
from deepspace.output.maps import not_measured
from deepspace.output.overview import NO_COUNTS, spot_states
from make_sections import lattice, make_section

MODELS = ("probe", "stain", "colour ridge")


@pytest.fixture
def section(tmp_path: Path) -> Section:
    counts = np.random.default_rng(0).poisson(5, (25, 4))
    made = make_section(tmp_path, "S1", counts, lattice(5, pitch=80.0, start=40.0), mpp=2.0)
    return replace(made, spot_diameter_um=100.0)


@pytest.fixture
def backdrop(section: Section) -> plot.Backdrop:
    return plot.Backdrop.of(section.slide)


def gene_map(n_predicted: int, n_measured: int | None = None, gene: str = "A") -> plot.GeneMap:
    rng = np.random.default_rng(1)
    measured = None if n_measured is None else rng.normal(2.0, 1.0, n_measured)
    return plot.GeneMap(gene, rng.normal(2.0, 0.1, n_predicted), measured, score=0.5, ceiling=0.8)


def headings(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def coloured(figure: Figure) -> list[EllipseCollection | PolyCollection]:
    kinds = (EllipseCollection, PolyCollection)
    return [
        c
        for axes in figure.axes
        if axes.images
        for c in axes.collections
        if isinstance(c, kinds) and c.get_array() is not None
    ]


@pytest.mark.parametrize("square", [False, True])
def test_points_are_drawn_in_their_true_size(square: bool) -> None:
    figure = new_figure(4, 2)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 400), ylim=(200, 0))
    axes.axis("off")
    # 100 um at 2 um a pixel are 50 pixels of the slide
    points = plot.Points(np.array([[200.0, 100.0]]), 100.0, square)
    add_points(axes, points, 2.0, facecolors="black")
    figure.canvas.draw()
    dark = np.asarray(figure.canvas.buffer_rgba())[..., 0] < 128
    to_slide = 400 / dark.shape[1]
    rows, columns = np.nonzero(dark)
    assert np.ptp(columns) * to_slide == pytest.approx(50, abs=1.5)
    assert np.ptp(rows) * to_slide == pytest.approx(50, abs=1.5)
    assert columns.mean() * to_slide == pytest.approx(200, abs=1)
    assert rows.mean() * to_slide == pytest.approx(100, abs=1)
    area = 50.0**2 * (1.0 if square else np.pi / 4)
    assert dark.sum() * to_slide**2 == pytest.approx(area, rel=0.05)


@pytest.mark.parametrize("mpp", [0.25, 2.0, 10.0])
def test_scale_bar_is_as_long_as_it_says(mpp: float) -> None:
    backdrop = plot.Backdrop(np.full((90, 120, 3), 200, np.uint8), 10.0, mpp)
    spots = plot.Points(np.array([[100.0, 100.0], [1000.0, 800.0]]), 20.0 * mpp)
    figure = plot.expression_maps(backdrop, [gene_map(2)], spots)
    (bar,) = (line for axes in figure.axes for line in axes.lines if line.get_gid() == "scale-bar")
    (text,) = (t.get_text() for t in bar.axes.texts if t.get_text().endswith("m"))
    number, unit = text.split()
    length_um = float(number) * (1000.0 if unit == "mm" else 1.0)
    start, end = bar.get_xdata()
    assert (end - start) * mpp == pytest.approx(length_um)
    left, right = bar.axes.get_xlim()
    assert left < start < end < right
    assert nice_length(length_um) == length_um


def test_measured_and_predicted_share_their_colours(
    section: Section, backdrop: plot.Backdrop
) -> None:
    spots = plot.Points(section.coords, 100.0)
    gene = gene_map(25, 25)
    figure = plot.expression_maps(backdrop, [gene], spots, spots)
    assert headings(figure)[:3] == ["H&E", "measured", "predicted"]
    shapes = coloured(figure)
    assert {c.get_clim() for c in shapes} == {gene.limits()}
    # measured, predicted, and left and right halves
    assert [len(c.get_array()) for c in shapes] == [25, 25, 25, 25]


def test_limits_do_not_depend_on_how_many_points_were_predicted() -> None:
    few, many = gene_map(5, 25), gene_map(5, 25)
    many = replace(many, predicted=np.repeat(many.predicted, 100) * 0.5)
    assert few.limits() == many.limits()
    low, high = few.limits()
    assert low < high


@pytest.mark.parametrize("values", [np.zeros(4), np.full(4, np.nan)])
def test_limits_of_a_flat_gene_are_a_range(values: np.ndarray) -> None:
    low, high = plot.GeneMap("A", values).limits()
    assert low < high


def test_limits_of_a_gene_that_most_spots_lack_cover_the_spots_that_have_it() -> None:
    measured = np.zeros(100)
    measured[:3] = [1.0, 2.0, 3.0]
    assert plot.GeneMap("A", np.zeros(1), measured).limits() == (0.0, 3.0)


@pytest.mark.parametrize("pitch", [60.0, 700.0])
def test_outlines_leave_spots_their_colour(pitch: float) -> None:
    backdrop = plot.Backdrop(np.full((200, 200, 3), 200, np.uint8), pitch / 10, 1.0)
    coords = lattice(20, pitch=pitch, start=pitch / 2)
    spots = plot.Points(coords, 30.0)
    figure = plot.expression_maps(backdrop, [gene_map(400, 399)], spots, spots[np.arange(399)])
    (both,) = (axes for axes in figure.axes if axes.get_title().startswith("both"))
    *_, outline = both.collections
    left, right = both.get_xlim()
    diameter_pt = 30.0 / (right - left) * both.get_window_extent().width * 72 / figure.dpi
    (width,) = outline.get_linewidths()
    assert 0 < width <= 0.4
    assert width < 0.15 * diameter_pt


def test_square_bins_on_square_bins(section: Section, backdrop: plot.Backdrop) -> None:
    bins = plot.Points(section.coords, 80.0, square=True)
    figure = plot.expression_maps(backdrop, [gene_map(25, 20)], bins, bins[np.arange(20)])
    assert [len(c.get_array()) for c in coloured(figure)] == [20, 25, 5, 20]


def test_both_fills_only_where_nothing_was_measured(
    section: Section, backdrop: plot.Backdrop
) -> None:
    measured_at = plot.Points(section.coords[:20], 100.0)
    predicted_at = plot.Points(section.coords, 100.0)
    figure = plot.expression_maps(backdrop, [gene_map(25, 20)], predicted_at, measured_at)
    assert [len(c.get_array()) for c in coloured(figure)] == [20, 25, 5, 20]
    assert not_measured(predicted_at, measured_at, 2.0).tolist() == [False] * 20 + [True] * 5


def test_rows_panels_and_labels(section: Section, backdrop: plot.Backdrop) -> None:
    spots = plot.Points(section.coords, 100.0)
    genes = [gene_map(25, 25, gene) for gene in ("ERBB2", "COL1A1")]
    genes = [replace(gene, sd=np.linspace(0.1, 0.2, 25)) for gene in genes]
    figure = plot.expression_maps(backdrop, genes, spots, spots, title="Section S1")
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 2 * 5
    texts = [t.get_text() for axes in panels for t in axes.texts]
    assert {"ERBB2", "COL1A1", "held-out r 0.50\nceiling 0.80"} <= set(texts)
    assert figure.texts[0].get_text() == "Section S1"


def test_unmeasured_section_shows_prediction_and_sd(
    section: Section, backdrop: plot.Backdrop
) -> None:
    gene = replace(gene_map(25), sd=np.linspace(0.1, 0.2, 25), score=float("nan"), ceiling=None)
    figure = plot.expression_maps(backdrop, [gene], plot.Points(section.coords, 100.0))
    assert headings(figure) == ["H&E", "predicted", "uncertainty (sd)"]
    assert all("nan" not in t.get_text() for axes in figure.axes for t in axes.texts)


def test_colour_bars_name_the_unit(section: Section, backdrop: plot.Backdrop) -> None:
    gene = replace(gene_map(25), sd=np.linspace(0.1, 0.2, 25))
    spots = plot.Points(section.coords, 100.0)
    figure = plot.expression_maps(backdrop, [gene], spots, unit="Pearson residual")
    labels = {axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()}
    assert labels == {"Pearson residual", "sd of Pearson residual"}


def test_a_grid_of_50_000_points(tmp_path: Path) -> None:
    backdrop = plot.Backdrop(np.full((250, 200, 3), 200, np.uint8), 10.0, 1.0)
    x, y = np.meshgrid(np.arange(5, 2000, 10.0), np.arange(5, 2500, 10.0))
    points = plot.Points(np.stack([x.ravel(), y.ravel()], axis=1), 10.0, square=True)
    figure = plot.expression_maps(backdrop, [gene_map(50_000)], points)
    (tiles,) = coloured(figure)
    assert len(tiles.get_paths()) == 50_000
    assert tiles.get_paths()[0].get_extents().width == pytest.approx(10.0)
    plot.save(figure, tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size < 1_000_000


def test_overview_tells_spots_apart(section: Section) -> None:
    kept = section.subset(np.arange(25) >= 4)
    assert kept.spots is not None
    spots = kept.spots.copy()
    spots.loc[spots.index[0], "in_tissue"] = False
    kept = replace(kept, spots=spots)
    assert (spot_states(kept) == NO_COUNTS).sum() == 3
    mask = np.zeros((50, 50), bool)
    mask[10:40, 10:40] = True
    figure = plot.overview(kept, TissueMask(mask, 8.0))
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert {t.get_text() for t in legend.get_texts()} == {
        "tissue found",
        "measured (21)",
        "in tissue, no counts (3)",
        "off tissue (1)",
    }
    assert len([axes for axes in figure.axes if axes.images]) == 2


def test_overview_of_an_image_alone(section: Section) -> None:
    figure = plot.overview(replace(section, counts=None, spots=None))
    assert len(figure.axes) == 1


def test_overview_says_when_the_spot_size_is_a_guess(section: Section) -> None:
    figure = plot.overview(replace(section, spot_diameter_um=None))
    assert "true size unknown" in " ".join(t.get_text() for t in figure.texts)


def make_scores(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    ceiling = rng.uniform(0.5, 0.9, n)
    parts = [
        pd.DataFrame(
            {
                "model": model,
                "section": name,
                "gene": [f"G{i}" for i in range(n)],
                "pearson": ceiling * share + rng.normal(0, 0.02, n),
                "ceiling": ceiling,
            }
        )
        for model, share in zip(MODELS, (0.8, 0.6, 0.4), strict=True)
        for name in ("S1", "S2", "S3")
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(("n", "panels"), [(1, 1), (5, 1), (30, 1), (31, 2), (5000, 2)])
def test_gene_scores_rank_the_genes(n: int, panels: int) -> None:
    scores = make_scores(n)
    figure = plot.gene_scores(scores, "probe", ["colour ridge"])
    assert len(figure.axes) == panels
    means = scores[scores["model"] == "probe"].groupby("gene")["pearson"].mean()
    best = means.sort_values(ascending=False).index[:30]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(best)
    entries = {t.get_text() for t in figure.legends[0].get_texts()}
    assert {"noise ceiling", "stain", "colour ridge"} <= entries


def test_names_of_genes_do_not_overlap() -> None:
    figure = plot.gene_scores(make_scores(200), "probe")
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in figure.axes[0].get_yticklabels()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(box.x0 >= 0 for box in boxes)


def test_gene_scores_of_an_unknown_model() -> None:
    with pytest.raises(ValueError, match="no scores of cnn"):
        plot.gene_scores(make_scores(5), "cnn")


@pytest.mark.parametrize(("n", "panels"), [(5, 1), (80, 2)])
def test_summary_puts_baselines_under_models(n: int, panels: int) -> None:
    scores = make_scores(n)
    figure = plot.score_summary(scores, ["probe"])
    assert len(figure.axes) == panels
    rows = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert rows == ["stain", "colour ridge", "probe"]
    mean = scores.loc[scores["model"] == "probe", "pearson"].mean()
    assert f"{mean:.3f}" in {t.get_text() for t in figure.axes[0].texts}


def test_summary_of_a_model_without_scores() -> None:
    scores = make_scores(5)
    scores.loc[scores["model"] == "stain", "pearson"] = np.nan
    texts = {t.get_text() for t in plot.score_summary(scores).axes[0].texts}
    assert "not defined" in texts


@pytest.mark.parametrize(
    "draw",
    [
        plot.overview,
        lambda s: plot.expression_maps(
            plot.Backdrop.of(s.slide), [gene_map(25, 25)], *[plot.Points(s.coords, 100.0)] * 2
        ),
        lambda s: plot.gene_scores(make_scores(40), "probe"),
        lambda s: plot.score_summary(make_scores(40)),
    ],
)
def test_same_picture_same_bytes(
    draw: Callable[[Section], Figure], section: Section, tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        plot.save(draw(section), tmp_path / name)
    first = (tmp_path / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert first == (tmp_path / "b.png").read_bytes()
