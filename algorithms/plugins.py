"""Penalties, environments and algorithms that a user brings along.

In a file of one's own, which a sweep names in `plugins`:

    from algorithms.plugins import penalty

    @penalty("mine", label="Mine")
    def mine(p):
        return p.std.norm(dim=-1).amax(dim=-2)

The file is executed on the driver and, from its source, in every process that needs it: it is
one file, which imports installed packages only. The hash of its source is part of the keys of
what uses it, so a changed idea is another result. A package may be a plugin as well, by its
module's name; it is installed on every machine.

Imported in any other way, a plugin enters nothing: its functions can be tried and tested.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from algorithms import ALGORITHMS
from algorithms.algorithm import Algorithm
from algorithms.dynamics.penalties import PENALTIES, Formula, Penalty, Prediction
from algorithms.environments.table import ENVIRONMENTS, Environment, Termination
from algorithms.errors import UserError, expected
from algorithms.registry import is_registering
from algorithms.settings import OfflineSettings

if TYPE_CHECKING:
    from algorithms.sac.agent import SAC

__all__ = ["Prediction", "algorithm", "environment", "penalty"]

Agent = TypeVar("Agent", bound="type[SAC]")


def penalty(
    name: str, *, label: str | None = None, colour: str | None = None, own_member_only: bool = False
) -> Callable[[Formula], Formula]:
    """Enter the function below it: a `Prediction` -> one non-negative number per row, `[..., B]`.

    Args:
        name: as a sweep says it.
        label: for reports; by default the name.
        colour: in figures, as matplotlib takes it.
        own_member_only: the function looks at `mean` and `std` of the row's own member alone.
            E is then 1, and the other members are not evaluated.

    Raises:
        UserError: there is a penalty of that name, or the name cannot be one.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", name):
        raise UserError(
            f"penalty {name!r}: a name has 1 to 64 letters, digits, '.', '_', '+' and '-'"
        )

    def enter(formula: Formula) -> Formula:
        if is_registering():
            PENALTIES.add(name, Penalty(formula, label or name, colour, own_member_only))
        return formula

    return enter


def environment(
    env_id: str,
    *,
    obs_dim: int,
    action_dim: int,
    random_return: float,
    expert_return: float,
    max_episode_steps: int,
    action_low: float = -1.0,
    action_high: float = 1.0,
) -> Callable[[Termination], Termination]:
    """Enter an environment that Gymnasium can make.

    Called alone, a function that says which states end an episode is learned from the
    `terminals` of the data; as a decorator it takes the function below it: next observations
    `[..., O]` -> `[...]` booleans.

    Args:
        env_id: Gymnasium's; the file may register it there.
        obs_dim: size of an observation, a vector.
        action_dim: size of an action, a vector.
        random_return: undiscounted, of a policy that acts at random: normalised score 0.
        expert_return: undiscounted, of a good policy: normalised score 100.
        max_episode_steps: the time limit, which is not an end of the task.
        action_low: bounds of every dimension of an action, in the data and the environment.
            Policies act in [-1, 1], which is rescaled to them.
        action_high: see `action_low`.

    Raises:
        UserError: there is an environment of that name, or the numbers make no sense.
    """
    if not random_return < expert_return:
        raise UserError(f"environment {env_id}: random_return must be below expert_return")
    if not action_low < action_high:
        raise UserError(f"environment {env_id}: action_low must be below action_high")
    if min(obs_dim, action_dim, max_episode_steps) < 1:
        raise UserError(
            f"environment {env_id}: obs_dim, action_dim and max_episode_steps must be at least 1"
        )
    row = Environment(
        obs_dim=obs_dim,
        action_dim=action_dim,
        random_return=random_return,
        expert_return=expert_return,
        max_episode_steps=max_episode_steps,
        termination=None,
        action_low=action_low,
        action_high=action_high,
    )
    if is_registering():
        ENVIRONMENTS.add(env_id, row)

    def enter(termination: Termination) -> Termination:
        if is_registering():
            ENVIRONMENTS.replace(env_id, row._replace(termination=termination))
        return termination

    return enter


def algorithm(
    name: str, *, settings: type[OfflineSettings], pinned: Mapping[str, Any] | None = None
) -> Callable[[Agent], Agent]:
    """Enter an algorithm: the agent class below it, with its hyperparameters.

    A preset's values of the algorithm whose settings it extends apply to it as well.

    Args:
        name: as a sweep says it.
        settings: a subclass of `OfflineSettings`, or of an algorithm's own.
        pinned: settings that a sweep may not change.

    Raises:
        UserError: there is an algorithm of that name, the name cannot be one, or `settings`
            or `pinned` are not such.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        raise UserError(
            f"algorithm {name!r}: a name has lower-case letters, digits and '_', a letter first"
        )
    if not (isinstance(settings, type) and issubclass(settings, OfflineSettings)):
        raise UserError(f"algorithm {name!r}: settings must be a subclass of OfflineSettings")
    for key in pinned or {}:
        if key not in settings.model_fields:
            sentence = expected("setting", key, settings.model_fields)
            raise UserError(f"algorithm {name!r}: pinned: {sentence}")
    presets = next(
        (
            row.presets
            for row in reversed(ALGORITHMS.values())
            if row.presets is not None and issubclass(settings, row.settings)
        ),
        None,
    )

    def enter(agent: Agent) -> Agent:
        from algorithms.sac.agent import SAC  # whoever has an agent has imported torch

        if not (isinstance(agent, type) and issubclass(agent, SAC)):
            raise UserError(f"algorithm {name!r}: must be a class that extends SAC, MOPO or COMBO")
        if is_registering():
            ALGORITHMS.add(name, Algorithm(name, settings, agent, dict(pinned or {}), presets))
        return agent

    return enter
