"""The Adroit hand's tasks with the rewards and ends of D4RL's own environments.

They are gymnasium-robotics' environments, whose physics and observations are D4RL's. Two things
are not (gymnasium-robotics 1.2.1 to 1.4.2 against `d4rl/hand_manipulation_suite/*_v0.py`):

* Door, hammer and relocate subtract a tenth of the distance between the hand and what it should
  reach for. Here that term is added, which rewards keeping away.
* A pen that is dropped ends the episode. Here it never ends, and -5 a step goes on.

Scores against D4RL's reference returns, and data of D4RL's, need D4RL's.
"""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from algorithms.errors import UserError

# The observation's part that is (or whose difference is) the vector from the hand to its object.
REACH: dict[str, tuple[slice, slice | None]] = {
    "AdroitHandDoor-v1": (slice(35, 38), None),
    "AdroitHandHammer-v1": (slice(33, 36), slice(36, 39)),
    "AdroitHandRelocate-v1": (slice(30, 33), None),
}


def make(env_id: str, **arguments: Any) -> gymnasium.Env[Any, Any]:
    """As `gymnasium.make`, of one of the four tasks, with dense rewards.

    Raises:
        UserError: gymnasium-robotics is not installed.
    """
    try:
        import gymnasium_robotics
    except ImportError:
        raise UserError(
            f"environment {env_id} needs the package gymnasium-robotics: "
            "pip install 'orchestrator-rl[adroit]'"
        ) from None
    gymnasium.register_envs(gymnasium_robotics)
    return AsD4RL(gymnasium.make(env_id, **arguments), env_id)


class AsD4RL(gymnasium.Wrapper[Any, Any, Any, Any]):
    """D4RL's sign of the reaching term, and its end of an episode of the pen."""

    def __init__(self, env: gymnasium.Env[Any, Any], env_id: str) -> None:
        super().__init__(env)
        self._reach = REACH.get(env_id)
        self._ends_when_dropped = env_id == "AdroitHandPen-v1"

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._reach:
            hand, target = self._reach
            vector = obs[hand] if target is None else obs[hand] - obs[target]
            reward = float(reward) - 2 * 0.1 * float(np.linalg.norm(vector))
        if self._ends_when_dropped:
            terminated = bool(obs[26] < 0.075)
        return obs, reward, terminated, truncated, info
