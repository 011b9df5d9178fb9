"""Reads a configuration file, applies `--set` overrides, and words what is wrong with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from msl.config.schema import Config
from msl.errors import ConfigError


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read and check a whole configuration file.

    Args:
        path: YAML file with one mapping.
        overrides: `dotted.path=value` each, the value in YAML; they win over the file.

    Raises:
        ConfigError: names the file, the path within it, the value, and what would be right.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {_kind(tree)}, a configuration is a mapping like 'model: ...'")
    for override in overrides:
        _apply(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [_word(detail) for detail in error.errors()]
        raise ConfigError(f"{path}: " + "; ".join(lines)) from None


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False)


def _apply(tree: dict[Any, Any], override: str) -> None:
    path, sep, text = override.partition("=")
    keys = path.strip().split(".")
    if not sep or not all(keys):
        raise ConfigError(f"--set {override}: write it as path.to.value=VALUE, e.g. train.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {text!r} is not a YAML value") from error
    node: Any = tree
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise ConfigError(f"--set {override}: {'.'.join(keys[:depth])} has entries 0 to {len(node) - 1}")
            index: Any = int(key)
        elif isinstance(node, dict):
            index = key
        else:
            raise ConfigError(f"--set {override}: {'.'.join(keys[:depth])} is {_kind(node)}, not a mapping")
        if last:
            node[index] = value
            continue
        if isinstance(node, dict) and node.get(index) is None:
            node[index] = {}
        node = node[index]


def _word(detail: ErrorDetails) -> str:
    where = _path(detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        known = _siblings(detail["loc"])
        close = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        return f"{where}: no such setting; {hint}"
    if detail["type"] == "missing":
        return f"{where}: is missing"
    value = detail["input"]
    if not where:
        return message
    if isinstance(value, Mapping | list | tuple):
        return f"{where}: {message}"
    return f"{where}: {value!r}: {message[0].lower() + message[1:]}"


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif "[" not in str(part):  # a union's member, e.g. 'tuple[str, ...]', is no part of the file
            path += f".{part}" if path else str(part)
    return path


def _siblings(loc: tuple[int | str, ...]) -> list[str]:
    """The settings that exist beside the last part of `loc`."""
    model: Any = Config
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        model = _model_within(model.model_fields[part].annotation)
    return list(model.model_fields)


def _model_within(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for arg in getattr(annotation, "__args__", ()) if (m := _model_within(arg))), None)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else repr(value)
