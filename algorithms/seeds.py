"""Which seeds are meant: a number of them, or a list."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

from algorithms.errors import UserError

MAX_SEEDS = 1000


def seed_list(value: object, key: str = "") -> tuple[int, ...]:
    """The seeds: 0 to n - 1 of a number n, or those of a list, each once.

    Args:
        value: what a user gave.
        key: what the user calls it, for the message.

    Raises:
        UserError: anything else.
    """
    if type(value) is int and 1 <= value <= MAX_SEEDS:
        return tuple(range(value))
    if (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and 1 <= len(value) <= MAX_SEEDS
        and all(type(seed) is int and 0 <= seed < 2**31 for seed in value)
    ):
        for seed in value:
            if list(value).count(seed) > 1:
                raise UserError(f"{key}{seed!r} is listed twice")
        return tuple(value)
    raise UserError(
        f"{key}must be a number of seeds from 1 to {MAX_SEEDS} (2 means seeds 0 and 1) "
        f"or a list of seeds from 0 to 2147483647, got {reprlib.repr(value)}"
    )
