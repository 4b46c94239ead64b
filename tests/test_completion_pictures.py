"""Pictures of what was completed: between the spots, on a grid, through the block."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure

from deepspace.data.coords import between_spots
from deepspace.output import plot
from deepspace.output.canvas import add_points, new_figure
from deepspace.output.completion import FRAMES, PlaneMap, shown_planes, volume_planes
from deepspace.output.maps import robust_limits
from deepspace.output.volume import VolumeGrid
from make_sections import lattice

GRID = VolumeGrid((5, 30, 40), (8.0, 20.0, 20.0), (0.0, 10.0, 10.0))
SPOTS = plot.Points(lattice(4, pitch=120.0, start=110.0), 60.0)


@pytest.fixture
def planes() -> list[PlaneMap]:
    """C2 measured, C3 not, C4 measured, with a plane between each two."""
    rng = np.random.default_rng(0)
    field = np.full((30, 40), np.nan)
    field[2:27, 3:30] = rng.normal(3.0, 1.0, (25, 27))
    made = [PlaneMap(8.0 * i, field + 0.2 * i, np.abs(field) / 10) for i in range(5)]
    image = np.full((60, 80, 3), 200, np.uint8)
    for i, name in ((0, "C2"), (2, "C3"), (4, "C4")):
        made[i] = replace(made[i], section=name, image=image)
    for i in (0, 4):
        made[i] = replace(made[i], spots=SPOTS, values=rng.normal(3.0, 1.0, 16))
    return made


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.images]


def headings(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_planes_say_where_they_lie_and_what_was_measured(planes: list[PlaneMap]) -> None:
    figure = volume_planes(GRID, planes[::-1], "ERBB2", score=0.5, title="Patient C")
    assert headings(figure) == [
        "z = 0 µm\nC2, measured",
        "z = 8 µm\nbetween sections",
        "z = 16 µm\nC3, not measured",
        "z = 24 µm\nbetween sections",
        "z = 32 µm\nC4, measured",
    ]
    # three sections have an image, all planes a prediction and its sd
    assert len(panels(figure)) == 3 + 5 + 5
    frames = [axes.spines["left"].get_edgecolor() for axes in panels(figure)[3:8]]
    kinds = [plane.kind for plane in planes]
    assert len({*frames}) == len(FRAMES)
    assert [frames[kinds.index(kind)] for kind in kinds] == frames
    texts = [t.get_text() for axes in figure.axes for t in axes.texts]
    assert {"H&E", "ERBB2", "sd", "held-out r 0.50"} <= {*texts}
    assert texts.count("no section") == 2


def test_planes_and_spots_share_their_colours(planes: list[PlaneMap]) -> None:
    figure = volume_planes(GRID, planes, "ERBB2")
    measured = np.concatenate([p.values for p in planes if p.values is not None])
    shown = panels(figure)[3:8]
    limits = {axes.images[0].get_clim() for axes in shown}
    limits |= {c.get_clim() for axes in shown for c in axes.collections}
    assert limits == {robust_limits(measured)}
    discs = [c for axes in shown for c in axes.collections if isinstance(c, EllipseCollection)]
    assert [len(c.get_array()) for c in discs] == [16, 16]
    sd = {axes.images[0].get_clim() for axes in panels(figure)[8:]}
    assert sd == {robust_limits(np.concatenate([p.sd.ravel() for p in planes if p.sd is not None]))}
    labels = {axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()}
    assert labels == {"log1p CP10k", "sd of log1p CP10k"}


def test_a_voxel_is_drawn_where_it_lies() -> None:
    mean = np.zeros((30, 40))
    mean[7, 11] = 1.0
    figure = volume_planes(GRID, [PlaneMap(0.0, mean)], "A")
    (axes,) = panels(figure)
    left, right, bottom, top = axes.images[0].get_extent()
    assert (left, right, top, bottom) == (0.0, 800.0, 0.0, 600.0)
    x, y = GRID.plane_points()[7 * 40 + 11]
    column, row = (x - left) / (right - left) * 40, (y - top) / (bottom - top) * 30
    assert (int(column), int(row)) == (11, 7)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())
    place = axes.transData.transform((x, y)).astype(int)
    colour = pixels[pixels.shape[0] - 1 - place[1], place[0], :3].astype(int)
    assert colour[0] > 200  # the yellow end
    assert colour[2] < 100


def test_panels_show_the_tissue_in_its_true_shape(planes: list[PlaneMap]) -> None:
    figure = volume_planes(GRID, planes, "A")
    for axes in panels(figure):
        (x0, x1), (y1, y0) = axes.get_xlim(), axes.get_ylim()
        assert x0 <= 60.0
        assert 600.0 <= x1 < 700.0
        assert y0 <= 40.0
        assert y1 >= 540.0
        box = axes.get_window_extent()
        assert box.height / box.width == pytest.approx((y1 - y0) / (x1 - x0), rel=0.01)


def test_titles_do_not_overlap(planes: list[PlaneMap]) -> None:
    many = [replace(planes[2], z_um=1234.5 + i) for i in range(14)]
    figure = volume_planes(GRID, many, "ERBB2", title="Patient C")
    figure.canvas.draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    boxes.append(figure.texts[0].get_window_extent())
    assert len(boxes) == 15
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_planes_without_anything(planes: list[PlaneMap]) -> None:
    bare = [PlaneMap(p.z_um, np.full((30, 40), np.nan)) for p in planes]
    figure = volume_planes(GRID, bare, "A")
    assert len(panels(figure)) == 5


def test_the_same_planes_give_the_same_bytes(planes: list[PlaneMap], tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        plot.save(volume_planes(GRID, planes, "A"), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@given(st.integers(1, 40), st.lists(st.floats(0, 100), max_size=6), st.integers(1, 20))
def test_shown_planes_hold_every_section(n: int, sections: list[float], most: int) -> None:
    z = np.linspace(0, 100, n)
    chosen = shown_planes(z, sections, most)
    assert (np.diff(chosen) > 0).all()
    assert min(n, most) <= len(chosen) <= max(min(n, most), len(sections))
    for depth in sections:
        assert np.abs(z[chosen] - depth).min() == np.abs(z - depth).min()


def test_between_and_grid_share_their_colours_with_the_spots() -> None:
    backdrop = plot.Backdrop(np.full((90, 120, 3), 200, np.uint8), 10.0, 0.5)
    spots = plot.Points(lattice(6, pitch=120.0, start=60.0), 30.0)
    measured = np.random.default_rng(0).normal(3, 1, 36)
    between = plot.Points(between_spots(spots.coords), 30.0)
    grid = plot.Points(lattice(17, pitch=40.0, start=40.0), 20.0, square=True)
    for points in (between, grid):
        n = len(points.coords)
        gene = plot.GeneMap("A", np.full(n, 2.5), measured, sd=np.linspace(0.1, 0.3, n))
        figure = plot.expression_maps(backdrop, [gene], points, spots)
        assert headings(figure) == [
            "H&E",
            "measured",
            "predicted",
            "both (measured outlined)",
            "uncertainty (sd)",
        ]
        clims = [
            {c.get_clim() for c in axes.collections if c.get_array() is not None}
            for axes in panels(figure)
        ]
        assert clims[1] == clims[2] == clims[3] == {gene.limits()}


@pytest.mark.parametrize(("step", "offset"), [(20 / 0.687, 0.0), (7.3, 0.0), (7.3, 3.7)])
def test_tiles_of_a_grid_leave_no_seams(step: float, offset: float) -> None:
    figure = new_figure(2.5, 2.5)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(offset, offset + 60 * step), ylim=(60 * step, 0))
    axes.axis("off")
    tiles = plot.Points(lattice(60, pitch=step, start=step / 2), step, square=True)
    add_points(axes, tiles, 1.0, facecolors="black")
    figure.canvas.draw()
    inside = np.asarray(figure.canvas.buffer_rgba())[5:-5, 5:-5, 0]
    if offset:
        inside = inside[:, :-10]
    assert not inside.any()
