"""The environments: their sizes, their reference returns, and how one is made.

To add an environment, add its line here and its termination function in
`terminations.py`. This module imports neither torch nor, until an environment
is made, Gymnasium.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    import gymnasium

Return = TypeVar("Return", float, np.ndarray)


class Environment(NamedTuple):
    """What is known of an environment beforehand."""

    obs_dim: int
    action_dim: int
    random_return: float  # undiscounted, of a policy that acts at random
    expert_return: float  # undiscounted, of a trained SAC policy


# Returns: D4RL (Fu et al. 2020, arXiv 2004.07219), d4rl/infos.py; the same for all its versions.
ENVIRONMENTS: dict[str, Environment] = {
    "Hopper-v4": Environment(11, 3, -20.272305, 3234.3),
    "Walker2d-v4": Environment(17, 6, 1.629008, 4592.3),
    "HalfCheetah-v4": Environment(17, 6, -280.178953, 12135.0),
}

MAX_EPISODE_STEPS = 1000  # Gymnasium's time limit for each of them

REFERENCE_RETURNS: dict[str, tuple[float, float]] = {
    env_id: (env.random_return, env.expert_return) for env_id, env in ENVIRONMENTS.items()
}


def normalized_score(env_id: str, episode_return: Return) -> Return:
    """100 (return - random) / (expert - random), D4RL's normalisation."""
    random_return, expert_return = REFERENCE_RETURNS[env_id]
    return 100.0 * (episode_return - random_return) / (expert_return - random_return)


def make_env(env_id: str) -> gymnasium.Env[Any, Any]:
    """A Gymnasium environment with its time limit, without Gymnasium's checks of every step."""
    import gymnasium

    with warnings.catch_warnings():
        # v4 on purpose: the physics and rewards of D4RL's tasks, which v5 changes.
        warnings.filterwarnings("ignore", ".*is out of date", DeprecationWarning)
        return gymnasium.make(env_id, disable_env_checker=True)


def stream_seed(*words: int) -> int:
    """A 31-bit seed from a sequence of integers, well mixed and stable across versions.

    The first word names the stream, so that no two uses of random numbers (evaluation,
    online training, generated data) start from the same states.
    """
    return int(np.random.SeedSequence(words).generate_state(1)[0] >> 1)
