"""The variants of a sweep: every combination of its `grid`, and what stands in `variants` by name.

A variant is an algorithm and the settings that the sweep chooses for it. All
others come, in this order, from `fixed`, the preset and the algorithm's defaults.
"""

from __future__ import annotations

import itertools
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from algorithms import ALGORITHMS
from algorithms.algorithm import Algorithm
from algorithms.errors import UserError, expected
from algorithms.identity import content_key
from algorithms.settings import OfflineSettings
from orchestrator.sweep.messages import settings_sentence, unknown_key

ALGORITHM = "algorithm"  # the one key of `grid` and of a named variant that is no setting


@dataclass(frozen=True)
class Variant:
    """A row of the results table, on whichever data set."""

    name: str | None  # in `variants`; None: a combination of the grid, called by its values
    algorithm: str
    choices: Mapping[str, Any] = field(hash=False)  # as written, ALGORITHM included

    @property
    def section(self) -> str:
        """Where the choices stand in the sweep file."""
        return "grid" if self.name is None else f"variants.{self.name}"

    @property
    def row(self) -> Algorithm:
        return ALGORITHMS[self.algorithm]

    @property
    def chosen_settings(self) -> dict[str, Any]:
        return {key: value for key, value in self.choices.items() if key != ALGORITHM}

    def check(self, fixed: Mapping[str, Any]) -> None:
        """Whether the algorithm has the chosen settings, and stays what it is with them.

        Raises:
            UserError: it does not.
        """
        known = self.row.settings.model_fields
        for key in self.chosen_settings:
            if key not in known:
                allowed = [ALGORITHM, *sorted(known)]
                raise UserError(
                    f"{self.section}.{key}: {unknown_key(key, allowed, self.algorithm)}"
                )
        for section, values in (("fixed", fixed), (self.section, self.chosen_settings)):
            for key, needed in self.row.pinned.items():
                if key in values and values[key] != needed:
                    raise UserError(
                        f"{section}.{key}: {self.algorithm} is {self.row.base} with "
                        f"{key}: {_text(needed)}, got {values[key]!r}: leave it out, or give it "
                        f"to variants of {self.row.base} alone"
                    )

    def settings(self, fixed: Mapping[str, Any], preset: Mapping[str, Any]) -> OfflineSettings:
        """Every hyperparameter.

        Args:
            fixed: the sweep's; what this algorithm does not have is another variant's.
            preset: what the sweep's preset says of this algorithm on a data set.

        Raises:
            UserError: a value is of the wrong type, out of bounds, or does not go with another.
        """
        kind = self.row.settings
        fixed = {key: value for key, value in fixed.items() if key in kind.model_fields}
        chosen = self.chosen_settings
        try:
            return kind(**{**preset, **self.row.pinned, **fixed, **chosen})
        except ValidationError as error:
            given = {self.section: chosen, "fixed": fixed}
            raise UserError(settings_sentence(error, given)) from None

    def label(self, settings: OfflineSettings) -> str:
        """The name in tables: a grid's combination is called by the choices that have an effect."""
        if self.name is not None:
            return self.name
        values = {ALGORITHM: self.algorithm, **dict(settings)}
        parts = [
            f"{key}={_text(values[key])}"
            for key in self.choices
            if key not in settings.without_effect
        ]
        return ", ".join(parts) or "default"


def expand(
    algorithm: str | None,
    grid: Mapping[str, list[Any]],
    named: Mapping[str, Mapping[str, Any]],
) -> list[Variant]:
    """The grid's combinations, the last key varying fastest, then the named variants.

    Without either there is one variant, everything as `fixed` and the defaults have it.

    Raises:
        UserError: a variant has no algorithm, or one that does not exist.
    """
    combinations = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    if named and not grid:
        combinations = []
    return [
        Variant(name, _algorithm(name, choices, algorithm), choices)
        for name, choices in [
            *((None, choices) for choices in combinations),
            *named.items(),
        ]
    ]


def _algorithm(name: str | None, choices: Mapping[str, Any], default: str | None) -> str:
    section = "grid." if name is None else f"variants.{name}."
    if ALGORITHM not in choices:
        if default is None:
            where = "at the top level or in grid" if name is None else "here or at the top level"
            path = ALGORITHM if name is None else section + ALGORITHM
            raise UserError(
                f"{path}: this key is required, {where}: one of {', '.join(sorted(ALGORITHMS))}"
            )
        return default
    value = choices[ALGORITHM]
    if not isinstance(value, str) or value not in ALGORITHMS:
        raise UserError(f"{section}{ALGORITHM}: {expected(ALGORITHM, value, ALGORITHMS)}")
    return value


def check_names(names: Mapping[str, object]) -> None:
    """Whether every name can stand in a table, a path and MLflow.

    Raises:
        UserError: one cannot.
    """
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+ -]{0,63}", name):
            raise UserError(
                f"variants: the name {reprlib.repr(name)} must be 1 to 64 letters, digits, "
                "spaces, '.', '_', '+' and '-', starting with a letter or digit"
            )


def slug(text: str, longest: int = 96) -> str:
    """`text` as part of a file's name."""
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", text.replace(", ", "_"))
    if len(short) <= longest:
        return short
    # File systems end a name at 255 bytes, MLflow at 250 characters.
    return f"{short[: longest - 9]}-{content_key({'text': text})[:8]}"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "x".join(map(_text, value))
    if isinstance(value, float):
        return str(value).removesuffix(".0").replace("e+", "e")
    return str(value)
