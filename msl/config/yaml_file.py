"""YAML as configurations are written in it: 1e-3 is a number, and a key that stands twice is refused."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from msl.errors import ConfigError

# YAML 1.1, which PyYAML follows, reads 1e-3 as text: a learning rate written so would fail far from here.
_EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+")


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        pairs = node.value if isinstance(node, yaml.MappingNode) else []  # else the base class refuses it
        for key in (key for key, _ in pairs if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands here twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """The value that a YAML text stands for.

    Raises:
        ConfigError: it is not YAML; the message says where and why, in one line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{where}{_one_line(error.problem or error.context)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: e.g. the date 2020-13-45
        raise ConfigError(_one_line(error)) from error


def dump_yaml(tree: Any) -> str:
    """A value as YAML that `parse_yaml` reads back, its keys in their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
