"""Mistakes in a sweep, one sentence each: the path of the key, what is wrong, what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ValidationError

from algorithms.errors import UserError
from algorithms.settings import reason


def model_sentence(error: ValidationError, top: type[BaseModel], entry: type[BaseModel]) -> str:
    """What pydantic found wrong with a `top`, whose lists hold `entry`s."""
    details = error.errors(include_url=False)
    # A misspelt key is the cause, the key that is therefore missing a consequence.
    detail = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    path = _path(detail["loc"])
    if detail["type"] == "extra_forbidden":
        model = top if len(detail["loc"]) == 1 else entry
        return f"{path}: {unknown_key(str(detail['loc'][-1]), model.model_fields)}"
    if detail["type"] == "missing":
        return f"{path}: this key is required"
    return f"{path}: {reason(detail)}" if path else reason(detail)


def settings_sentence(error: ValidationError, given: Mapping[str, Iterable[str]]) -> str:
    """What pydantic found wrong with settings that stand in sections: {section: keys}."""
    detail = error.errors(include_url=False)[0]
    sentence = reason(detail)
    # A rule between several keys has no location of its own, but its sentence names them.
    named = set(detail["loc"][:1] or re.findall(r"\w+", sentence))
    paths = [f"{section}.{key}" for section, keys in given.items() for key in keys if key in named]
    return f"{', '.join(paths) or 'fixed'}: {sentence}"


def unknown_key(key: str, allowed: Iterable[str], owner: str = "") -> str:
    """The sentence for a key that is not `allowed`, with the nearest one that is."""
    allowed = list(allowed)
    nearest = difflib.get_close_matches(key, allowed, n=1)
    hint = f" (did you mean {nearest[0]!r})" if nearest else ""
    return f"unknown key{owner and f' for {owner}'}{hint}: one of {', '.join(allowed)}"


def refuse_duplicates(values: Iterable[object]) -> None:
    """Raises a UserError that names the first value which stands in `values` twice."""
    seen: list[object] = []  # not a set: a value may be a list
    for value in values:
        if value in seen:
            raise UserError(f"{value!r} is listed twice")
        seen.append(value)


def _path(location: tuple[int | str, ...]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".")
