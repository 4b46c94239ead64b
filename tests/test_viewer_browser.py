"""The viewer's page in a real browser: Chromium without a screen."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deepspace.simulate import Block, BlockConfig, simulate_block
from deepspace.viewer.app import make_app
from deepspace.viewer.project import open_project
from deepspace.viewer.serve import HOST, _listen
from make_completed import write_completed

uvicorn = pytest.importorskip("uvicorn")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed here"),
]
READY = "body[data-ready]"


@pytest.fixture(scope="module")
def block() -> Block:
    return simulate_block(BlockConfig.preset("tiny", seed=1, unmeasured=("S2",)))


@pytest.fixture(scope="module")
def address(block: Block, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = write_completed(block, tmp_path_factory.mktemp("viewer"))
    listener = _listen(0)
    host = f"{HOST}:{listener.getsockname()[1]}"
    app = make_app(open_project(folder), "token", {host})
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield f"http://{host}/?token=token"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as driver:
        found = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--enable-unsafe-swiftshader"]
        )
        yield found
        found.close()


@pytest.fixture
def page(browser: sync_api.Browser, address: str) -> Iterator[sync_api.Page]:
    context = browser.new_context(viewport={"width": 1400, "height": 850}, accept_downloads=True)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(address)
    page.wait_for_selector(READY)
    yield page
    context.close()
    assert faults == []


def until(page: sync_api.Page, expression: str) -> None:
    """Wait until something is so; playwright's own way is stopped by the page's policy."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never so: {expression}")


def state(page: sync_api.Page) -> dict:
    until(page, "location.hash.length > 1")
    return json.loads(unquote(page.evaluate("location.hash.slice(1)")))


def pick_gene(page: sync_api.Page, name: str) -> None:
    page.keyboard.press("/")
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    until(page, f"deepspace.active.gene?.name === '{name}' && deepspace.active.layerData")


def on_stage(page: sync_api.Page, index: int) -> tuple[float, float]:
    """Where a point of the first view lies in the window."""
    x, y = page.evaluate(
        f"""() => {{ const p = deepspace.panels[0], f = p.frame(),
        box = p.root.querySelector('.stage').getBoundingClientRect();
        return [box.left + f.corner.x + p.places[{2 * index}] * f.step,
                box.top + f.corner.y + p.places[{2 * index + 1}] * f.step]; }}"""
    )
    return x, y


def test_the_token_leaves_the_address(page: sync_api.Page) -> None:
    assert "token" not in page.url
    assert "S1" in page.inner_text("#section-name")


def test_points_have_the_colours_of_their_values(page: sync_api.Page, tmp_path: Path) -> None:
    page.evaluate(
        "() => { const p = deepspace.panels[0]; p.part('opacity').value = 1; p.restyle(); }"
    )
    values = np.array(page.evaluate("Array.from(deepspace.panels[0].layerData.values)"))
    low, high = page.evaluate("deepspace.panels[0].range")
    page.screenshot(path=tmp_path / "s.png")
    shown = np.asarray(Image.open(tmp_path / "s.png").convert("RGB"), float)
    bright = []
    for index in range(len(values)):
        x, y = on_stage(page, index)
        bright.append(shown[round(y), round(x)].sum())
    share = np.clip((values - low) / (high - low), 0, 1)
    # the lightness of viridis grows with the value
    assert np.corrcoef(share, bright)[0, 1] > 0.95


def test_a_gene_that_cannot_be_believed_is_told(page: sync_api.Page, block: Block) -> None:
    pick_gene(page, block.genes[2])  # its verdict is "no"
    until(page, "document.querySelector('.warning').textContent.includes('do not read')")
    assert page.is_visible(".warning")
    pick_gene(page, block.genes[0])
    until(page, "document.querySelector('.warning').hidden")
    assert "predictable" in page.inner_text(".panel > .bar > .badge")


def test_genes_can_be_chosen_with_the_mouse(page: sync_api.Page) -> None:
    page.fill('[data-role="gene"]', "img01")
    until(page, "!!document.querySelector('.gene li')?.textContent.startsWith('IMG01')")
    second = page.locator(".gene li").nth(1)
    name = second.inner_text().split()[0]
    second.click()
    until(page, f"deepspace.active.gene.name === '{name}'")


def test_an_open_list_hides_only_what_it_covers(page: sync_api.Page, tmp_path: Path) -> None:
    page.screenshot(path=tmp_path / "closed.png")
    page.fill('[data-role="gene"]', "i")
    until(page, "(u => u && u.scrollHeight > u.clientHeight)(document.querySelector('.gene ul'))")
    box = page.locator(".gene ul").bounding_box()
    assert box is not None
    page.screenshot(path=tmp_path / "open.png")
    below = np.s_[round(box["y"] + box["height"]) + 25 :, :1000]  # but for its shadow
    closed, shown = (
        np.asarray(Image.open(tmp_path / name).convert("RGB"), float)[below]
        for name in ("closed.png", "open.png")
    )
    assert (np.abs(closed - shown).sum(axis=2) > 20).mean() < 0.001


def test_layers_and_sections_change(page: sync_api.Page) -> None:
    page.keyboard.press("2")
    until(page, "deepspace.panels[0].layer === 'measured'")
    page.keyboard.press("]")
    until(page, "deepspace.panels[0].section.name === 'S2'")
    # nothing is measured there
    until(page, "deepspace.panels[0].layer === 'predicted'")
    assert "S2" in page.inner_text("#section-name")
    assert state(page)["section"] in ("S1", "S2")


def test_two_views_move_together(page: sync_api.Page) -> None:
    page.keyboard.press("Shift+Digit2")
    until(page, "deepspace.panels.length === 2 && !!deepspace.panels[1].layerData")
    before = page.evaluate("deepspace.panels[0].viewer.viewport.getBounds(true).width")
    page.mouse.move(*on_stage(page, 3))
    page.mouse.wheel(0, -400)
    same = f"""() => {{
        const [a, b] = deepspace.panels.map((p) => p.viewer.viewport.getBounds(true));
        const apart = Math.abs(a.x - b.x) + Math.abs(a.width - b.width);
        return a.width < {0.85 * before} && apart < 1e-6; }}"""
    until(page, same)
    assert page.evaluate("deepspace.panels.map((p) => p.layer)") == ["predicted", "measured"]


def test_a_point_tells_what_it_rests_on(page: sync_api.Page, block: Block) -> None:
    pick_gene(page, block.genes[0])
    page.mouse.move(*on_stage(page, 7))
    page.wait_for_selector("#point .big")
    told = page.inner_text("#point")
    assert "nine in ten" in told
    assert "S1" in told
    assert page.locator("#point tbody tr").count() == 6


def test_an_area_is_compared_and_saved(page: sync_api.Page, tmp_path: Path) -> None:
    page.keyboard.press("l")
    box = page.locator(".stage").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for dx, dy in ((200, 0), (200, 200), (0, 200), (0, 10)):
        page.mouse.move(x + dx, y + dy, steps=4)
    page.mouse.up()
    page.wait_for_selector("#region table")
    assert "points inside" in page.inner_text("#region")
    for text, name in (("Table", "a.csv"), ("Outline", "a.geojson")):
        with page.expect_download() as download:
            page.click(f"#region button:has-text('{text}')")
        download.value.save_as(tmp_path / name)
    assert len(pd.read_csv(tmp_path / "a.csv")) > 10
    drawn = json.loads((tmp_path / "a.geojson").read_text())
    assert drawn["features"][0]["geometry"]["type"] == "Polygon"


def test_a_picture_is_saved(page: sync_api.Page, tmp_path: Path) -> None:
    with page.expect_download() as download:
        page.keyboard.press("s")
    download.value.save_as(tmp_path / "p.png")
    picture = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"), float)
    assert picture.shape[0] > 500
    assert picture.std() > 10


def test_an_address_brings_the_same_view(page: sync_api.Page, block: Block) -> None:
    pick_gene(page, block.genes[4])
    page.keyboard.press("]")
    until(page, "deepspace.panels[0].section.name === 'S2'")
    until(page, "location.hash.includes('S2')")
    url, gene = page.url, block.genes[4]
    other = page.context.new_page()
    other.goto(url)
    other.wait_for_selector(READY)
    assert "S2" in other.inner_text("#section-name")
    assert other.evaluate("deepspace.panels[0].gene.name") == gene
