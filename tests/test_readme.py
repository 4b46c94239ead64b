"""Every command that the README shows runs, in its order, on a small simulated cohort.

Each uses what those before it wrote, so that they run together or not at all.

What makes them long on real data is cut short by a configuration (`SHORT`); what needs hours or
pretrained weights has tests of its own (`ELSEWHERE`).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from calls import TINY_SETTINGS
from deepspace.simulate import BlockConfig, simulate_block
from deepspace.simulate.ihc import draw_ihc

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
# genes of the README, and those of the simulated cohort that stand for them
GENES = {"ERBB2": "IMG003", "CD24": "IMG005", "ESR1": "IMG007"}
ELSEWHERE = {
    "deepspace view": "test_viewer_browser.py",
    "--weights FOLDER": "test_cnn_cli.py, test_network_parity.py",
}
SHORT = f"""{TINY_SETTINGS}
[student]
rounds = 1
tiles = 300
[registration]
nonrigid = false
[complete]
volume = false
score_within = false
"""
SHORTENED = {name: ["--config", "short.toml"] for name in ("complete", "evaluate", "train")}
# the sets that come along are of human genes, the simulated ones have names of their own
SHORTENED["annotate"] = ["--gmt", "sets.gmt"]

pytestmark = pytest.mark.slow


def shown(text: str) -> list[str]:
    """Commands of deepspace in the indented lines, without their comments."""
    return re.findall(r"^    (?:\.venv/bin/)?(deepspace [a-z]+ [^#\n]*[^#\s])", text, re.MULTILINE)


COMMANDS = shown(README)
HERE = [line for line in COMMANDS if not any(part in line for part in ELSEWHERE)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the README's cohort.csv, the stained section and the configuration."""
    folder = tmp_path_factory.mktemp("readme")
    block = simulate_block(BlockConfig.preset("tiny", n_sections=4, unmeasured=("S3",)))
    named = re.sub(r"^S(\d)", r"A\1", block.write(folder).read_text("utf-8"), flags=re.MULTILINE)
    (folder / "cohort.csv").write_text(named, encoding="utf-8")
    draw_ihc(block, GENES["ESR1"], z_um=75.0).write(folder / f"A4-{GENES['ESR1']}.tif")
    genes = "\t".join(block.genes[:10])
    (folder / "sets.gmt").write_text(f"SIMULATED\tof the block\t{genes}\n", encoding="utf-8")
    (folder / "short.toml").write_text(SHORT, encoding="utf-8")
    return folder


def words_of(line: str, folder: Path) -> list[str]:
    """A line of the README as it is called here."""
    for name, own in GENES.items():
        line = line.replace(name, own)
    words = shlex.split(line)
    words += SHORTENED.get(words[1], [])
    # the README shows several ways to one output
    out = folder / words[words.index("--out") + 1]
    return [*words, "--overwrite"] if out.exists() else words


def test_commands_are_found() -> None:
    names = {line.split()[1] for line in HERE}
    wanted = "inspect complete evaluate train predict export explain ihc annotate"
    assert names == set(wanted.split())
    assert len(HERE) > 12


def run(words: list[str], folder: Path) -> None:
    """Run in a folder as after `source .venv/bin/activate`."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MPLBACKEND": "agg",
        "DEEPSPACE_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("line", HERE)
def test_a_command_of_the_readme_runs(line: str, cohort: Path) -> None:
    words = words_of(line, cohort)
    out = cohort / words[words.index("--out") + 1]
    before = out.stat().st_mtime_ns if out.exists() else 0
    run(words, cohort)
    assert out.stat().st_mtime_ns > before


def test_the_python_of_the_readme_runs(cohort: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert "load_config(None)" in code
    code = code.replace("load_config(None)", 'load_config("../short.toml")')
    own = cohort / "python"
    own.mkdir()
    run([sys.executable, "-c", code.replace("cohort.csv", "../cohort.csv")], own)
    assert (own / "completed" / "report.html").exists()
