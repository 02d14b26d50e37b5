"""Settings that others have tuned for D4RL's tasks: what a sweep's `preset` stands for.

Coefficients are tuned together with a version of the data and with the learning
rates, so a preset is taken as a whole and never mixed with another one. It does
not set `epochs`. The values of each task lie with the algorithm that they are of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from algorithms.errors import UserError, expected

LEVELS = ("medium", "medium-replay", "medium-expert")

Table = Mapping[str, Mapping[str, Any]]  # task -> settings


def by_task(keys: Sequence[str], **rows: Sequence[Sequence[Any]]) -> Table:
    """An environment a row, a level a column."""
    return {
        f"{environment}-{level}": dict(zip(keys, values, strict=True))
        for environment, row in rows.items()
        for level, values in zip(LEVELS, row, strict=True)
    }


class Preset(NamedTuple):
    """Where the values come from, and those that are the same for every task."""

    source: str
    everywhere: Mapping[str, Any]


PRESETS: dict[str, Preset] = {
    "offlinerlkit_v2": Preset(
        source="OfflineRL-Kit, run_example/, for D4RL v2",
        everywhere={
            "actor_lr": 1e-4,
            "critic_lr": 3e-4,
            "alpha_lr": 1e-4,
            "actor_lr_schedule": "cosine",
        },
    ),
    "mopo_v0": Preset(
        source="MOPO (Yu et al. 2020, arXiv 2005.13239), appendix, for D4RL v0",
        everywhere={
            "actor_lr": 3e-4,
            "critic_lr": 3e-4,
            "alpha_lr": 3e-4,
            "actor_lr_schedule": "constant",
        },
    ),
}


def preset_settings(preset: str, algorithm: str, task: str | None) -> dict[str, Any]:
    """What a preset sets for an algorithm on a data set of a D4RL task.

    Args:
        preset: a key of `PRESETS`.
        algorithm: a key of `algorithms.ALGORITHMS`.
        task: environment and level, like `hopper-medium-replay`; None where it is not known.

    Raises:
        UserError: the preset has no values for the algorithm or for the task.
    """
    from algorithms import ALGORITHMS  # whose rows hold tables that are made with this module

    everywhere, tables = PRESETS[preset].everywhere, ALGORITHMS[algorithm].presets
    if tables is None:
        return dict(everywhere)
    if preset not in tables:
        raise UserError(
            f"preset {preset} has no values for {algorithm}: "
            f"use preset {' or '.join([*tables, 'none'])}"
        )
    table = tables[preset]
    if task is None:
        raise UserError(
            f"preset {preset} needs to know the D4RL task that the data is of: "
            f"give task, one of {', '.join(sorted(table))}"
        )
    if task not in table:
        raise UserError(f"preset {preset} has no values for it: {expected('task', task, table)}")
    return {**table[task], **everywhere}
