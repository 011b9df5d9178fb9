"""Says in one line what is wrong with a configuration: the path, the value, and what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

Loc = tuple[int | str, ...]

_RULES = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping, e.g. {{name: value}}",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "int_type": "must be a whole number",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "string_type": "must be text",
    "tuple_type": "must be a list, e.g. [a, b]",
}
"""What would be right, by pydantic's type of error; its own words are for programmers."""
_LONGEST_VALUE = 80


def word(details: Sequence[ErrorDetails], model: type[BaseModel]) -> Iterator[tuple[Loc, str]]:
    """What is wrong, error by error, as (path, message).

    Args:
        details: pydantic's errors.
        model: what was validated.
    """
    meant = {loc for detail in details if (loc := _meant(detail, model))}
    for detail in details:
        loc = _in_file(detail["loc"])
        if detail["type"] == "missing" and loc in meant:
            continue  # it is there, with a typing error that is told
        yield loc, _sentence(detail, loc, model)


def _sentence(detail: ErrorDetails, loc: Loc, model: type[BaseModel]) -> str:
    where, value = _path(loc), detail["input"]
    if detail["type"] == "extra_forbidden":
        close = _meant(detail, model)
        hint = f"did you mean {close[-1]!r}?" if close else f"there are {', '.join(_fields(model, loc[:-1]))}"
        return f"{where}: no such setting; {hint}"
    if detail["type"] == "missing":
        return f"{where}: is missing"
    if detail["type"] == "invalid_key" or "[key]" in detail["loc"]:
        return f"{_path(loc[:-1])}: {value!r}: must be text, as all names are".removeprefix(": ")
    if detail["type"] == "value_error":
        rule = detail["msg"].removeprefix("Value error, ")
        if not isinstance(value, str):  # of a whole mapping; it begins with the path within
            return f"{where}.{rule}" if where else rule
    elif detail["type"] == "model_type":
        rule = f"must be a mapping with {', '.join(_fields(model, loc))}"
    elif detail["type"] in _RULES:
        rule = _RULES[detail["type"]].format_map(detail.get("ctx", {}))
    else:
        rule = detail["msg"]
    if value is None:
        return f"{where}: is empty; give it a value, or leave it out"
    return f"{where}: {_shown(value)}: {rule}"


def kind(value: Any) -> str:
    """A value's kind for a message."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else repr(value)


def _shown(value: Any) -> str:
    text = kind(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _in_file(loc: Loc) -> Loc:
    """A path without pydantic's own parts: a union's member 'tuple[str, ...]', or '[key]'."""
    return tuple(part for part in loc if isinstance(part, int) or not re.search(r"[\[\]]", part))


def _path(loc: Loc) -> str:
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


def _meant(detail: ErrorDetails, model: type[BaseModel]) -> Loc | None:
    """The path of the setting that an unknown one was probably meant for."""
    if detail["type"] != "extra_forbidden":
        return None
    *parents, name = _in_file(detail["loc"])
    close = difflib.get_close_matches(str(name), _fields(model, tuple(parents)), n=1)
    return (*parents, close[0]) if close else None


def _fields(model: type[BaseModel], loc: Loc) -> list[str]:
    """The settings that there are within the mapping at `loc`."""
    within: Any = model
    for part in loc:
        if isinstance(part, str):
            within = _model_in(within.model_fields[part].annotation)
    return list(within.model_fields)


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for arg in getattr(annotation, "__args__", ()) if (m := _model_in(arg))), None)
