"""Strict tables of values, whose faults are told in plain words, all at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Final, TypeGuard, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from deepspace.core.errors import Problems

ModelT = TypeVar("ModelT", bound=BaseModel)

# pydantic names its own types; users write TOML
_WANTED: Final = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text in quotes",
    "tuple_type": "a list in square brackets (in Python a tuple)",
    "model_type": "a table with keys of its own",
    "model_attributes_type": "a table with keys of its own",
}


class StrictModel(BaseModel):
    """Base of all tables of values that a user or a file gives."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def validated(model: type[ModelT], values: Mapping[str, Any], where: str) -> ModelT:
    """Make a table of values, or tell all that is wrong with them.

    Raises
    ------
    InputError
        If a key is unknown or a value is wrong: all of them listed.

    Examples
    --------
    >>> class Table(StrictModel):
    ...     folds: int = 5
    >>> validated(Table, {"fold": 3}, "c.toml")
    Traceback (most recent call last):
    ...
    deepspace.core.errors.InputError: c.toml: unknown key fold: did you mean folds?
    >>> validated(Table, {"folds": "many"}, "c.toml")
    Traceback (most recent call last):
    ...
    deepspace.core.errors.InputError: c.toml: folds = 'many': give a whole number
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = Problems(where)
        for message in _messages(model, error):
            problems.add(message)
        problems.raise_if_any()
        raise


def _messages(model: type[BaseModel], error: ValidationError) -> list[str]:
    """One message a key: a value of several possible types has a fault for each of them."""
    found: dict[str, list[str]] = {}
    faults = error.errors()
    for fault in faults:
        loc = fault["loc"]
        if fault["type"] == "too_short" and any(_inside(f["loc"], loc) for f in faults):
            continue  # pydantic counts the good values only
        place, table = _place(model, loc)
        if fault["type"] == "extra_forbidden":
            what, cure = f"unknown key {place}", _known_keys(model, table, str(loc[-1]))
        else:
            given = fault["input"]
            whole = isinstance(given, dict | BaseModel)  # a fault of several keys together
            what, cure = place if whole else f"{place} = {given!r}", _cure(dict(fault))
        cures = found.setdefault(what, [])
        if cure not in cures:
            cures.append(cure)
    return [f"{what}: {' or '.join(cures)}".removeprefix(": ") for what, cures in found.items()]


def _inside(loc: Sequence[str | int], outer: Sequence[str | int]) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer


def _place(model: type[BaseModel], loc: Sequence[str | int]) -> tuple[str, type[BaseModel]]:
    """Keys down to a fault, and the table that the last one is in."""
    place: list[str] = []
    table, kind = model, _plain(model)
    for part in loc:
        if _is_table(kind):
            table = kind
            field = kind.model_fields.get(str(part))
            kind = None if field is None else _plain(field.annotation)
        elif get_origin(kind) in (dict, tuple, list):
            kind = _plain(next((arg for arg in get_args(kind)[::-1] if arg is not ...), None))
        else:
            break  # pydantic adds the names of the types that it tried
        place.append(str(part))
    return ".".join(place), table


def _plain(kind: Any) -> Any:
    """A type without what pydantic is told beside it, and without None."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        some = [arg for arg in get_args(kind) if arg is not NoneType]
        return _plain(some[0]) if len(some) == 1 else None
    return kind


def _is_table(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _known_keys(model: type[BaseModel], table: type[BaseModel], name: str) -> str:
    tables = {key: _plain(field.annotation) for key, field in model.model_fields.items()}
    inside = [k for k, kind in tables.items() if _is_table(kind) and name in kind.model_fields]
    if inside and table is model:  # written above its table
        return f"it belongs into the table {' or '.join(f'[{key}]' for key in inside)}"
    near = difflib.get_close_matches(name, table.model_fields, n=1, cutoff=0.75)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(table.model_fields)}"


def _cure(fault: Mapping[str, Any]) -> str:
    if fault["type"] in _WANTED:
        return f"give {_WANTED[fault['type']]}"
    if fault["type"] == "too_short":
        return f"give at least {fault['ctx']['min_length']}"
    text = str(fault["msg"]).removeprefix("Value error, ")
    choice = fault["type"] == "literal_error"
    return text.replace("Input should be ", "choose " if choice else "must be ")
