"""Evaluation in real physics: many MuJoCo episodes side by side, normalised scores."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import gymnasium
import numpy as np
import torch
from torch import Tensor

from algorithms.environments.table import make_env
from algorithms.stack.randomness import stream_seed

# First word of every seed drawn here, so that no evaluation starts from a state that
# generated data (`data/bundled/generate.py` has a stream of its own).
EVALUATION_STREAM = 0xE7A1


class Evaluator:
    """Runs complete episodes of one environment for S policies at once.

    Every policy plays exactly `episodes` episodes, each in an environment of its
    own and each to its end, so short episodes weigh no more than long ones.

    Args:
        env_id: a Gymnasium id, for example `Hopper-v4`.
        num_seeds: S, the number of stacked policies.
        episodes: episodes per policy and evaluation.
    """

    def __init__(self, env_id: str, num_seeds: int, episodes: int = 10) -> None:
        self.num_seeds, self.episodes = num_seeds, episodes
        self._envs = [[make_env(env_id) for _ in range(episodes)] for _ in range(num_seeds)]
        space = self._envs[0][0].observation_space
        assert isinstance(space, gymnasium.spaces.Box)
        self._obs_SBO = np.zeros((num_seeds, episodes, *space.shape), dtype=np.float32)

    @torch.no_grad()
    def returns(self, policy: Callable[[Tensor], Tensor], evaluation: int) -> np.ndarray:
        """Returns `[S, episodes]` of the first `episodes` episodes of each policy.

        An episode in which the policy gives an action that is not finite ends there, with NaN.

        Args:
            policy: `[S, B, O] -> [S, B, A]`, the deterministic action.
            evaluation: index of this evaluation; it alone selects the initial states,
                which are therefore the same for every seed, variant and run.
        """
        total = np.zeros((self.num_seeds, self.episodes))
        running: list[tuple[int, int, gymnasium.Env[Any, Any]]] = []
        for s, envs in enumerate(self._envs):
            for b, env in enumerate(envs):
                self._obs_SBO[s, b], _ = env.reset(
                    seed=stream_seed(EVALUATION_STREAM, evaluation, b)
                )
                running.append((s, b, env))
        while running:
            actions = policy(torch.from_numpy(self._obs_SBO)).numpy()
            still_running = []
            for s, b, env in running:
                if not np.isfinite(actions[s, b]).all():
                    total[s, b] = np.nan  # MuJoCo would act on 0 instead, and log to a file
                    continue
                self._obs_SBO[s, b], reward, terminated, truncated, _ = env.step(actions[s, b])
                total[s, b] += float(reward)
                if not (terminated or truncated):
                    still_running.append((s, b, env))
            running = still_running
        return total

    def close(self) -> None:
        for envs in self._envs:
            for env in envs:
                env.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
