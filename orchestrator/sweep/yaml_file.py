"""Reading YAML the way its users mean it: version 1.2, strict, and mistakes in one sentence."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from algorithms.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars (1e-3 is a number, `yes` is text), and no duplicate keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's registry

    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001, FBT002 - PyYAML's signature
    ) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise yaml.MarkedYAMLError(
                    problem="a key must be text", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands here for the second time",
                    problem_mark=key.start_mark,
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern in (
    ("null", r"~|null|Null|NULL|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"),
    ("merge", r"<<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), None
    )


def read_yaml(path: Path) -> object:
    """The content of a YAML file; None of an empty one.

    Raises:
        UserError: it cannot be read, or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: give a sweep file (YAML)") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file: give a sweep file (YAML, UTF-8)") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> object:
    """The content of a text; None of an empty one.

    Raises:
        UserError: it is not YAML; `where` it stands is for the message.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{where}, line {line}: not a valid sweep: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        raise UserError(f"{where} is not a text file: {error.reason}") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply for a sweep") from None
