"""Run the command line inside the test's process, and settings that suit small blocks."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from deepspace import cli
from deepspace.workflows.schema import schema

# of a tiny block, which has few genes; held-out scores with little beside them
TINY_SETTINGS = """
[qc]
min_genes = 20
[encoder]
fov_um = [150]
[evaluate]
moves = 2
leak_gap = "none"
"""


def call(*args: object, capsys: pytest.CaptureFixture[str] | None = None) -> tuple[int, str, str]:
    """Run the program in this process: exit code, standard output, standard error."""
    argv = sys.argv
    sys.argv = ["deepspace", *map(str, args)]
    try:
        with pytest.raises(SystemExit) as caught:
            cli.main()
    finally:
        sys.argv = argv
    code = caught.value.code
    out, err = capsys.readouterr() if capsys else ("", "")
    return int(code or 0), out, err


def unnamed(values: Any, rules: dict[str, Any], root: dict[str, Any]) -> list[str]:
    """Keys of a document that its schema does not name, wherever it lists keys at all."""
    if "$ref" in rules:
        rules = root["$defs"][rules["$ref"].rsplit("/", 1)[-1]]
    if "anyOf" in rules:
        return min((unnamed(values, r, root) for r in rules["anyOf"]), key=len)
    if isinstance(values, list):
        return [key for v in values for key in unnamed(v, rules.get("items", {}), root)]
    known = rules.get("properties")
    if not isinstance(values, dict):
        return []
    if known is None:
        inner = rules.get("additionalProperties")
        inner = inner if isinstance(inner, dict) else {}
        return [key for v in values.values() for key in unnamed(v, inner, root)]
    return [key for key in values if key not in known] + [
        key for name, rule in known.items() if name in values
        for key in unnamed(values[name], rule, root)
    ]  # fmt: skip


def holds(command: str, document: Any) -> None:
    """Check a document against the published schema: every key of it is named there."""
    found = schema(command)
    Draft202012Validator(found).validate(document)
    assert unnamed(document, found, found) == []
