"""Transitions in memory, whatever file or source they come from."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from algorithms.environments.table import normalized_score


class OfflineDataset(NamedTuple):
    """`n` transitions in the order in which they were made.

    The arrays may be views of a file that is mapped into memory: they are not to be written.
    An episode ends where `terminal` (the task's end) or `timeout` (a time limit, or the end of
    recording) is true. `next_obs` is what followed the action, which at an episode's end is not
    the next row's observation.
    """

    obs: np.ndarray  # [n, O] float32
    action: np.ndarray  # [n, A] float32, in [-1, 1]
    reward: np.ndarray  # [n] float32
    next_obs: np.ndarray  # [n, O] float32
    terminal: np.ndarray  # [n] float32, 1 where the task ended
    timeout: np.ndarray  # [n] bool

    @property
    def episode_ends(self) -> np.ndarray:
        """Row after the last of every complete episode, `[episodes]`."""
        return np.flatnonzero((self.terminal > 0) | self.timeout) + 1

    @property
    def initial_obs(self) -> np.ndarray:
        """First observation of every episode, `[episodes, O]`."""
        starts = np.concatenate([[0], self.episode_ends])
        return self.obs[starts[starts < len(self.obs)]]

    def episode_returns(self) -> np.ndarray:
        """Undiscounted return of every complete episode, `[episodes]`."""
        total = np.concatenate([[0.0], self.reward.cumsum(dtype=np.float64)])
        return np.diff(total[self.episode_ends], prepend=0.0)

    def behaviour_score(self, env_id: str) -> float:
        """Mean normalised score of the complete episodes: what the data's policies reach."""
        return float(normalized_score(env_id, self.episode_returns()).mean())

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self)


def arrays_sha256(data: OfflineDataset) -> str:
    """SHA-256 (hex) of the values, in the order of the fields."""
    digest = hashlib.sha256()
    for array in data:
        digest.update(array.tobytes())
    return digest.hexdigest()
