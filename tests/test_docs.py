"""What the documentation says is there: links resolve, and commands have the options they show."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer.models import OptionInfo

from calls import call
from deepspace.cli import COMMANDS
from deepspace.simulate import BlockConfig, simulate_block

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PIPELINES = [ROOT / "examples/nextflow/main.nf", ROOT / "examples/snakemake/Snakefile"]

FENCE = re.compile(r"^(```+|~~~+|:::+).*?^\1\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


def options_of(command: Any) -> set[str]:
    """Words that a command takes, from the annotations of its function."""
    found = {"--help"}
    for name, hint in get_type_hints(command, include_extras=True).items():
        about = next((a for a in get_args(hint) if isinstance(a, OptionInfo)), None)
        if about is None:
            continue
        first = [about.default] if isinstance(about.default, str) else []
        words = [*first, *(about.param_decls or ())] or [f"--{name.replace('_', '-')}"]
        found |= {part for word in words for part in word.split("/")}
    return found


OPTIONS = {command.__name__: options_of(command) for command in COMMANDS}


def shown(text: str) -> list[list[str]]:
    """Commands of deepspace in a text, split into words; lines that go on are joined."""
    joined = re.sub(r"\\+\n\s*", " ", text)
    # Snakemake writes a command as neighbouring strings
    joined = re.sub(r'"\s*\n\s*f?"', "", joined)
    lines = re.findall(r"(?:^|[\s`\"$(])deepspace ([a-z]+ [^\n`#]*)", joined)
    found = []
    for line in lines:
        words = re.split(r"[\s\"']+", re.split(r" > | && |\||;|\.\.\.", line)[0])
        if words[0] in OPTIONS:
            found.append(words)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in (a or b for a, b in LINK.findall(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{name_of(page)}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{name_of(page)}: {target}"


@pytest.mark.parametrize("page", [*PAGES, *PIPELINES], ids=name_of)
def test_commands_have_the_options_that_are_shown(page: Path) -> None:
    for words in shown(page.read_text(encoding="utf-8")):
        used = {word.split("=")[0].rstrip(",.;:)]") for word in words if word.startswith("--")}
        assert used <= OPTIONS[words[0]], f"{name_of(page)}: deepspace {' '.join(words)}"


def test_the_check_of_options_finds_something() -> None:
    """A test that sees no command would pass for ever."""
    assert len(shown((ROOT / "README.md").read_text(encoding="utf-8"))) > 10
    for page in PIPELINES:
        assert {words[0] for words in shown(page.read_text())} == {"inspect", "train", "predict"}
    assert not {"--no-such"} & options_of(COMMANDS[0])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README's cohort looks like, under the names that it uses."""
    block = simulate_block(BlockConfig.preset("tiny", seed=6, unmeasured=("S3",)))
    sheet = block.write(tmp_path_factory.mktemp("cohort"))
    return sheet.rename(sheet.with_name("cohort.csv"))


def test_first_command_of_the_readme_runs(
    cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^    deepspace (inspect cohort\.csv [^#\n]*)", readme, re.MULTILINE)
    monkeypatch.chdir(cohort.parent)
    code, out, _ = call(*shlex.split(line), capsys=capsys)
    assert code == 0
    assert "S3" in out
    assert (cohort.parent / "check" / "S1.png").exists()


def test_the_sheet_of_the_readme_is_one(tmp_path: Path) -> None:
    """Its columns are those that the reader knows."""
    from deepspace.io.sheet import COLUMNS  # noqa: PLC0415

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (header,) = re.findall(r"^    (section,patient,\S+)$", readme, re.MULTILINE)
    assert set(header.split(",")) <= set(COLUMNS)


def test_every_command_is_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx", reason="the documentation's packages are not installed")
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    import command_reference  # noqa: PLC0415

    for command in COMMANDS:
        text = "\n".join(command_reference.as_markdown(command))
        assert inspect.getdoc(command).splitlines()[0] in text
        for word in options_of(command) - {"--help"}:
            assert word in text, command.__name__
