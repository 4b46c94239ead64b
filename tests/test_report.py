"""The page that says what to trust: self-contained, escaped, no empty panels, repeatable."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from calls import call
from deepspace.core.config import Config, load_config
from deepspace.core.errors import InputError
from deepspace.output.model_card import model_card_markdown
from deepspace.output.report import Chapter, Folded, Page, Picture, Table, Text, embedded
from deepspace.workflows.report import write_report

GENES = ["GOOD", "WEAK", "A<b>&C"]


class Reader(HTMLParser):
    """What a browser would fetch, and how much every chapter holds."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.unnamed = 0
        self.chapters: dict[str, int] = {}
        self.inside: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        if tag == "section":
            self.inside = str(about["id"])
            self.chapters[self.inside] = 0
        self.sources += [v for k, v in attrs if k in ("src", "srcset", "href") and v]
        self.unnamed += tag == "img" and not about.get("alt")
        if self.inside and tag in ("img", "td", "pre", "p"):
            self.chapters[self.inside] += 1


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def picture(path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(path)


def summary(**changes: Any) -> dict[str, Any]:
    scores = {"mean_pearson": 0.3, "best50_pearson": 0.6, "coverage_90": 0.9}
    gap = {"model": "probe", "split": "section", "meaning": "sections", "folds": 2, "note": None}
    return {
        "target": "expression",
        "split": "section",
        "folds": 2,
        "genes": "variable:3",
        "models": {"probe (stain)": scores, "gene mean": {**scores, "mean_pearson": 0.0}},
        "ceiling": {"mean_pearson": 0.7, "best50_pearson": 0.9},
        "not_applicable": ["nearest spot"],
        "comparisons": [
            {
                "model": "probe (stain)", "against": "gene mean", "difference": 0.3, "low": 0.2,
                "high": 0.4, "beats": True,
            }
        ],
        "verdict": ["probe (stain) is better than every baseline.", "1 of 3 genes is predictable."],
        "verdicts": {"predictable": 1, "weak": 1, "no": 1},
        "leak_gap": [{**gap, "mean_pearson": 0.3}, {**gap, "split": "spot", "mean_pearson": 0.5}],
        "quality_control": ["A: 90 of 100 spots pass"],
        "provenance": {
            "seed": 0,
            "config": Config().model_dump(mode="json"),
            "inputs": {"a.tif": "0" * 64},
            "versions": {"python": "3.11"},
        },
    } | changes  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `evaluate` writes, made by hand."""
    out = tmp_path / "scores"
    out.mkdir()
    (out / "summary.json").write_text(json.dumps(summary()))
    pd.DataFrame(
        {
            "model": "probe (stain)",
            "gene": GENES,
            "score": [0.6, 0.1, np.nan],
            "low": [0.5, 0.0, np.nan],
            "high": [0.7, 0.2, np.nan],
            "ceiling": 0.9,
            "p_value": [1e-6, 0.01, 1.0],
            "q_value": [1e-6, 0.02, 1.0],
            "verdict": ["predictable", "weak", "no"],
        }
    ).to_csv(out / "genes.csv", index=False)
    pd.DataFrame(
        {"model": "probe (stain)", "section": ["A", "B"], "gene": "GOOD", "coverage_90": [0.9, 0.8]}
    ).to_csv(out / "scores.csv", index=False)
    for name in ("scores", "genes", "uncertainty", "maps-A"):
        picture(out / f"{name}.png")
    return out


def test_the_page_needs_nothing_beside_it(folder: Path) -> None:
    path = write_report(folder)
    found = read(path)
    assert all(source.startswith(("data:", "#")) for source in found.sources)
    assert sum(source.startswith("data:image") for source in found.sources) == 4
    assert found.unnamed == 0
    assert "http" not in path.read_text().replace("http-equiv", "")


def test_no_chapter_is_empty_and_every_link_leads_somewhere(folder: Path) -> None:
    found = read(write_report(folder))
    assert set(found.chapters) == {
        "verdict", "data", "leak", "scores", "genes", "maps", "calibration", "made",
    }  # fmt: skip
    assert all(found.chapters.values())
    links = [source[1:] for source in found.sources if source.startswith("#")]
    assert set(links) == set(found.chapters) - {"verdict"}


def test_names_are_escaped(folder: Path) -> None:
    text = write_report(folder).read_text()
    assert "A<b>&C" not in text
    assert "A&lt;b&gt;&amp;C" in text


def test_bad_news_looks_like_it(folder: Path) -> None:
    assert 'class="verdict"' in write_report(folder).read_text()
    lost = summary()
    lost["comparisons"][0]["beats"] = False
    (folder / "summary.json").write_text(json.dumps(lost))
    text = write_report(folder).read_text()
    assert 'class="verdict warn"' in text
    assert "not shown to be better" in text


def test_the_configuration_beside_it_is_the_one_that_was_used(folder: Path) -> None:
    config = Config().with_values(seed=7, target={"genes": "A,B"}, encoder={"fov_um": (50.0,)})
    record = summary()["provenance"] | {"config": config.model_dump(mode="json")}
    (folder / "summary.json").write_text(json.dumps(summary(provenance=record)))
    text = write_report(folder).read_text()
    assert load_config(folder / "config.toml") == config
    assert (
        "deepspace evaluate SHEET --config config.toml --model probe --encoder stain --out DIR"
        in text
    )


def test_an_older_result_says_what_it_does_not_know(folder: Path) -> None:
    old = summary()
    for name in ("verdict", "verdicts", "leak_gap", "comparisons", "provenance"):
        del old[name]
    (folder / "summary.json").write_text(json.dumps(old))
    (folder / "genes.csv").unlink()
    found = read(write_report(folder))
    assert all(found.chapters.values())
    assert "Not recorded by the version" in (folder / "report.html").read_text()


def test_the_same_folder_gives_the_same_page(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "elsewhere")
    assert write_report(folder).read_bytes() == write_report(other).read_bytes()


def test_other_folders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="not a result of deepspace"):
        write_report(tmp_path)
    code, _, error = call("report", tmp_path, capsys=capsys)
    assert code == 2
    assert "not a result of deepspace" in error
    assert "Traceback" not in error


def test_large_pictures_become_small(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (6000, 3000), "white").save(path)
    assert len(embedded(path)) < 60_000


def test_chapters_without_blocks_are_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "p.png")
    table = Table(["a"], [["1"], ["2"]], classes=["strong", ""], note="n")
    blocks = [Text("t"), Picture.of(tmp_path / "p.png", "seen"), Folded("more", [table])]
    page = Page("T", "u", ["v"], [Chapter("x", "X", blocks), Chapter("none", "None", [])])
    text = page.html()
    assert 'id="x"' in text
    assert 'id="none"' not in text
    assert "<details><summary>more" in text


def test_a_model_card_says_what_it_is_worth() -> None:
    columns = [
        {"name": "A|B", "score": 0.5, "verdict": "predictable"},
        {"name": "C", "score": None, "verdict": "no"},
    ]
    text = model_card_markdown(
        {
            "model": "probe",
            "kind": "expression",
            "encoder": {"config": {"name": "stain"}, "fov_um": [150.0]},
            "training": [{"section": "A|1", "patient": "P", "spots": 90, "mpp": 0.5}],
            "columns": columns,
            "scores": summary(),
            "provenance": summary()["provenance"],
            "weights_sha256": "abc",
        }
    )
    assert "Not for diagnosis" in text
    assert "| A\\|1 | P | 90 | 0.5 |" in text
    assert "| gene mean | 0.000 |" in text
    assert "| noise ceiling | 0.700 |" in text
    assert "A|B (0.50)" in text
    assert "better than every baseline" in text
