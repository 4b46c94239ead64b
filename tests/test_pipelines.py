"""The examples for workflow managers are run, not only read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import anndata
import pytest

from calls import TINY_SETTINGS
from deepspace.simulate import BlockConfig, simulate_block

EXAMPLES = Path(__file__).parents[1] / "examples"
SECTIONS = ("S1", "S2", "S3")
OPTIONS = {"model": "probe", "genes": "expressed:20", "at": "grid:200"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    block = simulate_block(BlockConfig.preset("tiny", seed=6, n_sections=3, unmeasured=("S3",)))
    path = block.write(tmp_path_factory.mktemp("cohort"))
    path.with_name("settings.toml").write_text(TINY_SETTINGS, encoding="utf-8")
    return path


def environment(tmp_path: Path) -> dict[str, str]:
    """That of a user who activated the environment."""
    here = str(Path(sys.executable).parent)
    own = {"DEEPSPACE_CACHE": str(tmp_path / "cache"), "XDG_CACHE_HOME": str(tmp_path)}
    return {**os.environ, "PATH": here + os.pathsep + os.environ["PATH"], **own}


def check_results(folder: Path, facts_of: str) -> None:
    assert json.loads((folder / "inspect.json").read_text())["sections"]
    assert (folder / "check").is_dir()
    assert (folder / "model" / "model.json").exists()
    for section in SECTIONS:
        file = folder / "predictions" / f"{section}-grid200.h5ad"
        found = anndata.read_h5ad(file)
        facts = json.loads(file.with_name(facts_of.format(section)).read_text())
        assert found.n_obs == facts["points"] > 0
        assert file.with_name(f"{section}-grid200-maps.png").exists()


def test_snakemake_runs_the_example_once(sheet: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "sheet": sheet, "options": f"--config {sheet.parent / 'settings.toml'}"}
    command = [sys.executable, "-m", "snakemake", "-s", EXAMPLES / "snakemake/Snakefile"]
    command += ["--cores", "2", "--keep-going", "--config"]
    words = [*map(str, command), *(f"{key}={value}" for key, value in options.items())]

    def run() -> str:
        done = subprocess.run(
            words,
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout + done.stderr

    run()
    check_results(tmp_path, "{}-grid200.json")
    assert "Nothing to be done" in run()


# Nextflow itself cannot be installed from a package registry: what it would run is run here


def script_of(text: str, process: str) -> tuple[str, dict[str, str]]:
    """Script of a process of main.nf, and the names that it defines before."""
    (body,) = re.findall(rf"^process {process} \{{(.*?)^\}}", text, re.MULTILINE | re.DOTALL)
    head, script = body.split("script:")
    (command,) = re.findall(r'"""\n(.*?)"""', script, re.DOTALL)
    assert "input:" in head
    defined = dict(re.findall(r'^ *def (\w+) = "(.*)"$', script, re.MULTILINE))
    return command, defined


def filled(text: str, values: dict[str, str]) -> str:
    """What Groovy makes of a string: `${name}`, and backslashes that escape."""
    text = re.sub(r"\$\{([^{}]+)\}", lambda found: values[found[1]], text)
    return text.replace("\\\\", "\\")


def test_what_nextflow_would_run_runs(sheet: Path, tmp_path: Path) -> None:
    text = (EXAMPLES / "nextflow/main.nf").read_text(encoding="utf-8")
    values = {f"params.{key}": value for key, value in OPTIONS.items()}
    values |= {"params.options": f"--config '{sheet.parent / 'settings.toml'}'", "task.cpus": "1"}
    values |= {"sheet": str(sheet), "model": str(tmp_path / "model")}

    def run(process: str, **more: str) -> None:
        command, defined = script_of(text, process)
        names = values | more
        for name, value in defined.items():
            replaced = value.replace(".replace(':', '')", "")
            names[name] = filled(replaced, names).replace(":", "")
        done = subprocess.run(
            ["bash", "-ue", "-c", filled(command, names)],
            cwd=tmp_path / more.get("folder", "."),
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]

    run("INSPECT")
    run("TRAIN")
    (tmp_path / "predictions").mkdir()
    for section in SECTIONS:
        run("PREDICT", section=section, folder="predictions")
    check_results(tmp_path, "{}.json")
