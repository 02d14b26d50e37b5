"""Model rollouts: branched from real states, penalised, cut where the episode would end.

MOPO, algorithm 2, lines 5-10; the branching is MBPO's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from algorithms.dynamics.ensemble import DynamicsEnsemble, sample_member
from algorithms.penalties import Prediction
from algorithms.randomness import randint, randn
from algorithms.sac import TanhGaussian
from algorithms.transitions import Transition

# Start states at once. On a CPU seven members' activations stay in the cache; on a GPU a
# layer's take 90 MB per seed.
CPU_CHUNK, GPU_CHUNK = 1024, 16_384


class Rollout(NamedTuple):
    """Packed model transitions (`Transition.pack`), reward already penalised."""

    rows_SNW: Tensor
    keep_SN: Tensor  # false after the rollout's end
    reward_S: Tensor  # mean model reward before the penalty
    penalty_S: Tensor  # mean penalty, before the coefficient
    terminated_S: Tensor  # share of rollouts that ended in a terminal state


@torch.no_grad()
def rollout(
    ensemble: DynamicsEnsemble,
    policy: Callable[[Tensor], TanhGaussian],
    start_SBO: Tensor,
    generators: Sequence[torch.Generator],
    *,
    length: int,
    penalty: Callable[[Prediction], Tensor],
    penalty_coef: float,
    termination_fn: Callable[[Tensor], Tensor],
) -> Rollout:
    """`length` steps from every start state with the current stochastic policy.

    Each step samples a random elite per row and then that member's Gaussian;
    r~ = r - penalty_coef * penalty (MOPO, eq. 5). All random numbers are drawn
    beforehand, so that they depend neither on chunks nor on who terminates.
    """
    num_seeds, num_starts, obs_dim = start_SBO.shape
    action_dim = ensemble.action_dim
    action_noise = randn(generators, length, num_starts, action_dim)
    model_noise = randn(generators, length, num_starts, obs_dim + 1)
    elite = randint(generators, ensemble.elites_SK.shape[1], length, num_starts)

    chunk = CPU_CHUNK if start_SBO.device.type == "cpu" else GPU_CHUNK
    rows: list[Tensor] = []
    keep: list[Tensor] = []
    reward_sum, penalty_sum, kept, ended = torch.zeros(4, num_seeds, device=start_SBO.device)
    for begin in range(0, num_starts, chunk):
        part = slice(begin, begin + chunk)
        obs = start_SBO[:, part]
        alive = torch.ones(obs.shape[:2], dtype=torch.bool, device=obs.device)
        for t in range(length):
            action, _ = policy(obs).sample(action_noise[:, t, part])
            member = ensemble.elites_SK.gather(1, elite[:, t, part])
            prediction = ensemble.predict(obs, action, member)
            outcome = sample_member(prediction, model_noise[:, t, part])
            next_obs, reward = obs + outcome[..., :-1], outcome[..., -1]
            uncertainty = penalty(prediction)
            done = termination_fn(next_obs)
            row = Transition(
                obs, action, reward - penalty_coef * uncertainty, next_obs, done.float()
            ).pack()
            # A model that ran away to inf or nan must not poison the buffer.
            valid = alive & row.isfinite().all(dim=-1)
            rows.append(row)
            keep.append(valid)
            reward_sum += torch.where(valid, reward, 0.0).sum(dim=1)
            penalty_sum += torch.where(valid, uncertainty, 0.0).sum(dim=1)
            kept += valid.sum(dim=1)
            ended += (valid & done).sum(dim=1)
            alive = valid & ~done
            obs = next_obs
    kept = kept.clamp(min=1.0)
    return Rollout(
        rows_SNW=torch.cat(rows, dim=1),
        keep_SN=torch.cat(keep, dim=1),
        reward_S=reward_sum / kept,
        penalty_S=penalty_sum / kept,
        terminated_S=ended / num_starts,
    )
