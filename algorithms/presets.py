"""Settings that others have tuned for D4RL's tasks: what a sweep's `preset` stands for.

Coefficients are tuned together with a version of the data and with the learning
rates, so a preset is taken as a whole and never mixed with another one. It does
not set `epochs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from algorithms.errors import UserError, expected

LEVELS = ("medium", "medium-replay", "medium-expert")

Table = Mapping[str, Mapping[str, Any]]  # task -> settings


def _table(keys: Sequence[str], **rows: Sequence[Sequence[Any]]) -> Table:
    """An environment a row, a level a column."""
    return {
        f"{environment}-{level}": dict(zip(keys, values, strict=True))
        for environment, row in rows.items()
        for level, values in zip(LEVELS, row, strict=True)
    }


class Preset(NamedTuple):
    """Where the values come from, those of every task, and those of each task by algorithm."""

    source: str
    everywhere: Mapping[str, Any]
    tables: Mapping[str, Table]


# fmt: off
PRESETS: dict[str, Preset] = {
    "offlinerlkit_v2": Preset(
        source="OfflineRL-Kit, run_example/run_mopo.py and run_combo.py, for D4RL v2",
        everywhere={
            "actor_lr": 1e-4, "critic_lr": 3e-4, "alpha_lr": 1e-4, "actor_lr_schedule": "cosine",
        },
        tables={
            "mopo": _table(
                ("penalty_coef", "rollout_length"),
                #             medium    replay    expert
                hopper=      [(5.0, 5), (2.5, 5), (5.0, 5)],
                walker2d=    [(0.5, 5), (2.5, 1), (2.5, 1)],
                halfcheetah= [(0.5, 5), (0.5, 5), (2.5, 5)],
            ),
            # Its weight multiplies against a mean squared error without COMBO's 1/2: beta is half.
            "combo": _table(
                ("beta", "rollout_length"),
                hopper=      [(2.5, 5), (0.25, 5), (2.5, 5)],
                walker2d=    [(2.5, 1), (0.25, 1), (2.5, 1)],
                halfcheetah= [(0.25, 5), (0.25, 5), (2.5, 5)],
            ),
        },
    ),
    "mopo_v0": Preset(
        source="MOPO (Yu et al. 2020, arXiv 2005.13239), appendix, for D4RL v0",
        everywhere={
            "actor_lr": 3e-4, "critic_lr": 3e-4, "alpha_lr": 3e-4, "actor_lr_schedule": "constant",
        },
        tables={
            "mopo": _table(
                ("penalty_coef", "rollout_length"),
                hopper=      [(5.0, 5), (1.0, 5), (1.0, 5)],
                walker2d=    [(5.0, 5), (1.0, 1), (2.0, 1)],
                halfcheetah= [(1.0, 1), (1.0, 5), (5.0, 5)],
            ),
        },
    ),
}
# fmt: on

# Without a penalty or a model, what was tuned with them is the best guess; SAC has neither
# a penalty nor rollouts, so no task's row applies to it.
ROWS_OF = {"mopo": "mopo", "mbpo": "mopo", "combo": "combo", "cql": "combo"}


def preset_settings(preset: str, algorithm: str, task: str | None) -> dict[str, Any]:
    """What a preset sets for an algorithm on a data set of a D4RL task.

    Args:
        preset: a key of `PRESETS`.
        algorithm: a key of `algorithms.ALGORITHMS`.
        task: environment and level, like `hopper-medium-replay`; None where it is not known.

    Raises:
        UserError: the preset has no values for the algorithm or for the task.
    """
    values = PRESETS[preset]
    if algorithm not in ROWS_OF:
        return dict(values.everywhere)
    if ROWS_OF[algorithm] not in values.tables:
        having = [name for name, p in PRESETS.items() if ROWS_OF[algorithm] in p.tables]
        raise UserError(
            f"preset {preset} has no values for {algorithm}: use preset {' or '.join(having)}, "
            "or none"
        )
    table = values.tables[ROWS_OF[algorithm]]
    if task is None:
        raise UserError(
            f"preset {preset} needs to know the D4RL task that the data is of: "
            f"give task, one of {', '.join(sorted(table))}"
        )
    if task not in table:
        raise UserError(f"preset {preset} has no values for it: {expected('task', task, table)}")
    return {**table[task], **values.everywhere}
