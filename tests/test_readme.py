"""Every command of the README runs, in its order, on a small simulated cohort."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deepspace.simulate import BlockConfig, simulate_block
from deepspace.simulate.ihc import draw_ihc

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
# names of the README and what the simulated cohort has in their place
GENES = {"ERBB2": "IMG003", "CD24": "IMG005", "ESR1": "IMG007"}
# an hour of training of VGG16 with 224 px; `tests/test_cnn_cli.py` runs the preset in small
TOO_LONG = ("deepspace-2022", "--model cnn")

pytestmark = pytest.mark.slow


def commands(text: str) -> list[list[str]]:
    """Commands of the indented lines, split into words, without comments."""
    lines = re.findall(r"^    (?:\.venv/bin/)?(deepspace [a-z]+ .*)$", text, re.MULTILINE)
    words = [shlex.split(line, comments=True) for line in lines]
    return [[GENES.get(word, word) for word in line] for line in words]


def renamed(text: str) -> str:
    for name, own in GENES.items():
        text = text.replace(name, own)
    return text


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the README's cohort.csv and the stained section."""
    folder = tmp_path_factory.mktemp("readme")
    block = simulate_block(
        BlockConfig.preset("demo", side_um=1200.0, mpp=1.0, n_sections=4, artefacts={})
    )
    sheet = block.write(folder)
    text = sheet.read_text(encoding="utf-8")
    named = re.sub(r"^S(\d)", r"A\1", text, flags=re.MULTILINE)
    sheet.with_name("cohort.csv").write_text(named, encoding="utf-8")
    draw_ihc(block, GENES["ESR1"], z_um=75.0).write(sheet.with_name("A4-ESR1.tif"))
    return sheet.parent


def environment(folder: Path) -> dict[str, str]:
    """That of a user who activated the environment."""
    here = str(Path(sys.executable).parent)
    path = {"PATH": here + os.pathsep + os.environ["PATH"], "MPLBACKEND": "agg"}
    return {**os.environ, **path, "DEEPSPACE_CACHE": str(folder / "cache")}


def test_every_command_of_the_readme_runs(cohort: Path) -> None:
    shown = commands(renamed(README))
    assert len(shown) > 15
    for words in shown:
        line = " ".join(words)
        if any(part in line for part in TOO_LONG) or words[1] == "view":
            continue
        # several commands of the README show ways to one output
        out = cohort / words[words.index("--out") + 1]
        again = ["--overwrite"] if out.exists() else []
        done = subprocess.run(
            [*words, *again],
            cwd=cohort,
            env=environment(cohort),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
