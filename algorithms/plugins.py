"""Penalties, environments and algorithms that a user brings along.

In a file of one's own, which a sweep names in `plugins`:

    from algorithms.plugins import penalty

    @penalty("mine", label="Mine")
    def mine(p):
        return p.std.amax(dim=-1).amax(dim=-2)

The file is executed on the driver and, from its source, in every process that needs it. The hash
of its source is part of the keys of what uses it, so a changed idea is another result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from algorithms import ALGORITHMS
from algorithms.algorithm import Algorithm
from algorithms.dynamics.penalties import Prediction, penalty
from algorithms.environments.table import ENVIRONMENTS, Environment, Termination
from algorithms.errors import UserError
from algorithms.settings import OfflineSettings

if TYPE_CHECKING:
    from algorithms.sac.agent import SAC

__all__ = ["Prediction", "algorithm", "environment", "penalty"]

Agent = TypeVar("Agent", bound="type[SAC]")


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
    `terminals` of the data; as a decorator it takes the function below it.

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
    if random_return >= expert_return:
        raise UserError(f"environment {env_id}: random_return must be below expert_return")
    if action_low >= action_high:
        raise UserError(f"environment {env_id}: action_low must be below action_high")
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
    ENVIRONMENTS.add(env_id, row)

    def enter(termination: Termination) -> Termination:
        ENVIRONMENTS.add(env_id, row._replace(termination=termination))
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
        UserError: there is an algorithm of that name.
    """
    presets = next(
        (row.presets for row in reversed(ALGORITHMS.values()) if issubclass(settings, row.settings)
         and row.presets is not None),
        None,
    )  # fmt: skip

    def enter(agent: Agent) -> Agent:
        ALGORITHMS.add(name, Algorithm(name, settings, agent, dict(pinned or {}), presets))
        return agent

    return enter
