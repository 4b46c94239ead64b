"""Strict tables of values, whose faults are told in plain words, all at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

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
    "tuple_type": "a list, in square brackets",
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
    for fault in error.errors():
        place = _place(model, fault["loc"])
        if fault["type"] == "extra_forbidden":
            found[f"unknown key {'.'.join(place)}"] = [_known_keys(model, place)]
            continue
        given = fault["input"]
        whole = isinstance(given, dict | BaseModel)  # a fault of several keys together
        what = ".".join(place) if whole else f"{'.'.join(place)} = {given!r}"
        found.setdefault(what, []).append(_cure(dict(fault)))
    return [f"{what}: {' or '.join(cures)}".removeprefix(": ") for what, cures in found.items()]


def _place(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Keys down to a fault; pydantic adds the names of the types that it tried."""
    place: list[str] = []
    fields: Mapping[str, Any] | None = model.model_fields
    for part in loc:
        if fields is None and isinstance(part, str):
            break
        place.append(str(part))
        field = (fields or {}).get(str(part))
        fields = None if field is None else _fields(field.annotation)
    return place


def _fields(kind: Any) -> Mapping[str, Any] | None:
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _known_keys(model: type[BaseModel], place: Sequence[str]) -> str:
    *tables, name = place
    fields: Mapping[str, Any] = model.model_fields
    for table in tables:
        fields = _fields(fields[table].annotation) or {}
    near = difflib.get_close_matches(name, fields, n=1)
    inside = {k for k, f in model.model_fields.items() if name in (_fields(f.annotation) or {})}
    if near:
        return f"did you mean {near[0]}?"
    if inside and not tables:  # written above its table
        return f"it belongs into the table [{min(inside)}]"
    return f"known are {', '.join(fields)}"


def _cure(fault: Mapping[str, Any]) -> str:
    if fault["type"] in _WANTED:
        return f"give {_WANTED[fault['type']]}"
    if fault["type"] == "too_short":
        return f"give at least {fault['ctx']['min_length']}"
    text = str(fault["msg"]).removeprefix("Value error, ")
    choice = fault["type"] == "literal_error"
    return text.replace("Input should be ", "choose " if choice else "must be ")
