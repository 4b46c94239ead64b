"""Sphinx extension: the directive `deepspace-commands`, what the program says of itself.

Commands are the functions of `deepspace.cli.COMMANDS`; their options are read from the annotations,
so that the reference cannot fall behind the program.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from typer.models import ArgumentInfo

from deepspace.cli import COMMANDS

TAKES = {Path: "path", str: "text", int: "whole number", float: "number", bool: ""}


def as_markdown(command: Callable[..., Any]) -> list[str]:
    """Heading, help, usage and the table of options of one command."""
    name = command.__name__.replace("_", "-")
    hints = get_type_hints(command, include_extras=True)
    parameters = inspect.signature(command).parameters.values()
    rows = [_parameter(p, hints[p.name]) for p in parameters]
    usage = " ".join([name, *(row["usage"] for row in rows if row["required"]), "[OPTIONS]"])
    lines = [f"## deepspace {name}", "", *inspect.getdoc(command).splitlines(), ""]
    lines += ["```text", f"deepspace {usage}", "```", ""]
    lines += ["| option | takes | what it does |", "|---|---|---|"]
    return [*lines, *(_row(row) for row in rows), ""]


def _parameter(parameter: inspect.Parameter, hint: Any) -> dict[str, Any]:
    """What the annotation says of one parameter."""
    kind, about = get_args(hint)[:2]
    plain, many = _plain(kind)
    required = parameter.default is inspect.Parameter.empty
    if isinstance(about, ArgumentInfo):
        words = parameter.name.upper()
        usage = words
    else:
        # typer takes the first word of an annotation for a default, and mends that later
        first = [about.default] if isinstance(about.default, str) else []
        found = [*first, *(about.param_decls or ())]
        words = ", ".join(found or [_word(parameter.name, plain)])
        usage = f"{words} {TAKES.get(plain, 'text').upper()}".strip()
    return {
        "words": words,
        "usage": usage,
        "takes": TAKES.get(plain, "text"),
        "help": " ".join((about.help or "").split()),
        "required": required,
        "default": None if required else parameter.default,
        "many": many,
    }


def _word(name: str, plain: Any) -> str:
    word = name.replace("_", "-")
    return f"--{word}/--no-{word}" if plain is bool else f"--{word}"


def _plain(kind: Any) -> tuple[Any, bool]:
    """Type without ``None`` and ``list``; whether it may be given several times."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is list:
        return get_args(kind)[0], True
    return kind, False


def _row(found: dict[str, Any]) -> str:
    notes = ["required"] if found["required"] else []
    if found["default"] not in (None, False, True, (), []):
        notes.append(f"default {found['default']}")
    if found["many"] and "repeat" not in found["help"]:
        notes.append("may be repeated")
    text = found["help"] + (f" ({'; '.join(notes)})" if notes else "")
    return f"| `{found['words']}` | {found['takes']} | {text} |".replace("*", r"\*")


class Commands(Directive):
    """All commands, in the order in which the program lists them."""

    def run(self) -> list[nodes.Node]:
        """Parse the generated Markdown in place."""
        lines = [line for command in COMMANDS for line in as_markdown(command)]
        holder = nodes.Element()
        self.state.nested_parse(StringList(lines, "deepspace.cli"), self.content_offset, holder, 1)
        return list(holder.children)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register."""
    app.add_directive("deepspace-commands", Commands)
    return {"version": "1", "parallel_read_safe": True}
