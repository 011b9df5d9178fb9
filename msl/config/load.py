"""Reads a configuration file and applies `--set` overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from msl.config.schema import Config
from msl.config.wording import Loc, kind, word
from msl.config.yaml_file import dump_yaml, parse_yaml
from msl.errors import ConfigError


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a whole configuration file.

    Args:
        path: YAML file with one mapping.
        overrides: `dotted.path=value` each, the value in YAML; they win over the file, the last one over all.

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
        tree = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {kind(tree)}, a configuration is a mapping like 'model: ...'")
    settings = [_read_override(override) for override in overrides]
    for setting in settings:
        _apply(tree, setting)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        faults = [f"{text}{_origin(loc, settings)}" for loc, text in word(error.errors(), Config)]
        raise ConfigError(f"{path}: " + "; ".join(faults)) from None


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal value."""
    return dump_yaml(config.model_dump())


def from_yaml(text: str) -> Config:
    """A configuration as `to_yaml` wrote it.

    Raises:
        ConfigError: it is none.
    """
    try:
        return Config.model_validate(parse_yaml(text))
    except ValidationError as error:
        raise ConfigError("; ".join(text for _, text in word(error.errors(), Config))) from None


class _Override(NamedTuple):
    text: str
    keys: tuple[str, ...]
    value: Any

    def refuse(self, why: str) -> ConfigError:
        return ConfigError(f"--set {self.text}: {why}")


def _read_override(text: str) -> _Override:
    path, sep, value = text.partition("=")
    override = _Override(text, tuple(path.strip().split(".")), value)
    if not sep or not all(override.keys):
        raise override.refuse("write it as path.to.value=VALUE, e.g. train.epochs=5")
    try:
        return override._replace(value=parse_yaml(value))
    except ConfigError as error:
        raise override.refuse(f"{value!r} is not a YAML value: {error}") from error


def _apply(tree: dict[Any, Any], override: _Override) -> None:
    node: Any = tree
    *parents, last = override.keys
    for depth, key in enumerate(parents):
        index = _index(node, key, override, depth)
        if isinstance(node, dict) and node.get(index) is None:
            node[index] = _default(override.keys[: depth + 1])
        node = node[index]
    node[_index(node, last, override, len(parents))] = override.value


def _index(node: Any, key: str, override: _Override, depth: int) -> Any:
    """The index of `key` in a node of the tree, or an error that says what there is."""
    if isinstance(node, dict):
        return key
    where = ".".join(override.keys[:depth])
    if not isinstance(node, list):
        raise override.refuse(f"{where} is {kind(node)}, not a mapping")
    if not key.isdecimal() or int(key) >= len(node):
        entries = f"has entries 0 to {len(node) - 1}" if node else "is an empty list"
        raise override.refuse(f"{where} {entries}")
    return int(key)


def _default(keys: Sequence[str]) -> Any:
    """What a setting is if the file says nothing of it: an override then changes a part of that."""
    field = Config.model_fields.get(keys[0])
    value: Any = field.default if field else None
    for key in keys[1:]:
        value = getattr(value, key, None)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else {}


def _origin(loc: Loc, overrides: Sequence[_Override]) -> str:
    """Says of a fault that it comes from the command line, if so."""
    path = [str(part) for part in loc]
    for override in reversed(overrides):
        if path[: len(override.keys)] == list(override.keys):
            return f" (--set {override.text})"
    return ""
