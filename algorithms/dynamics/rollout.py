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
QUANTILE_SAMPLE = 10_000


class Rollout(NamedTuple):
    """Packed model transitions (`Transition.pack`), reward already penalised."""

    rows_SNW: Tensor
    keep_SN: Tensor  # false after the rollout's end
    last_rows_SNW: Tensor  # of the last step alone
    last_keep_SN: Tensor
    reward_S: Tensor  # mean model reward before the penalty
    penalty_S: Tensor  # mean penalty, before the coefficient
    penalty_quantiles_QS: Tensor
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
    penalty_coef_S: Tensor,
    termination_fn: Callable[[Tensor], Tensor],
    quantiles: Sequence[float] = (),
) -> Rollout:
    """`length` steps from every start state with the current stochastic policy.

    Each step samples a random elite per row and then that member's Gaussian;
    r~ = r - penalty_coef * penalty (MOPO, eq. 5). All random numbers are drawn
    beforehand, so that they depend neither on chunks nor on who terminates.
    """
    _, num_starts, obs_dim = start_SBO.shape
    action_dim = ensemble.action_dim
    action_noise = randn(generators, length, num_starts, action_dim)
    model_noise = randn(generators, length, num_starts, obs_dim + 1)
    elite = randint(generators, ensemble.elites_SK.shape[1], length, num_starts)

    chunk = CPU_CHUNK if start_SBO.device.type == "cpu" else GPU_CHUNK
    # In the order of chunks, then of steps.
    rows: list[Tensor] = []
    keep: list[Tensor] = []
    rewards: list[Tensor] = []
    penalties: list[Tensor] = []
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
            penalised = reward - penalty_coef_S[:, None] * uncertainty
            done = termination_fn(next_obs)
            row = Transition(obs, action, penalised, next_obs, done.float()).pack()
            # A model that ran away to inf or nan must not poison the buffer.
            valid = alive & row.isfinite().all(dim=-1)
            rows.append(row)
            keep.append(valid)
            rewards.append(reward)
            penalties.append(uncertainty)
            alive = valid & ~done
            obs = next_obs
    rows_SNW, keep_SN = torch.cat(rows, dim=1), torch.cat(keep, dim=1)
    kept_S = keep_SN.sum(dim=1).clamp(min=1)
    penalty_SN = torch.where(keep_SN, torch.cat(penalties, dim=1), torch.nan)
    done_SN = rows_SNW[..., -1] > 0
    return Rollout(
        rows_SNW=rows_SNW,
        keep_SN=keep_SN,
        last_rows_SNW=torch.cat(rows[length - 1 :: length], dim=1),
        last_keep_SN=torch.cat(keep[length - 1 :: length], dim=1),
        reward_S=torch.where(keep_SN, torch.cat(rewards, dim=1), 0.0).sum(dim=1) / kept_S,
        penalty_S=penalty_SN.nansum(dim=1) / kept_S,
        penalty_quantiles_QS=_quantiles(penalty_SN, quantiles),
        terminated_S=(keep_SN & done_SN).sum(dim=1) / num_starts,
    )


def _quantiles(values_SN: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Of every seed's values, `[Q, S]`; of evenly spaced ones, where there are very many."""
    stride = -(-values_SN.shape[1] // QUANTILE_SAMPLE)
    at = torch.tensor(list(quantiles), device=values_SN.device)
    return values_SN[:, ::stride].nanquantile(at, dim=1)


@torch.no_grad()
def model_return(
    ensemble: DynamicsEnsemble,
    policy: Callable[[Tensor], Tensor],
    start_BO: Tensor,
    generators: Sequence[torch.Generator],
    *,
    length: int,
    termination_fn: Callable[[Tensor], Tensor],
) -> Tensor:
    """Mean undiscounted return of whole episodes in the model, `[S]`, without a penalty.

    Args:
        ensemble: of S seeds.
        policy: `[S, B, O] -> [S, B, A]`, the deterministic action.
        start_BO: initial states, the same for every seed.
        generators: one per seed.
        length: time limit, in steps.
        termination_fn: next_obs -> done.
    """
    obs = start_BO.expand(ensemble.num_seeds, *start_BO.shape)
    num_starts, outputs = start_BO.shape[0], start_BO.shape[1] + 1
    elite = randint(generators, ensemble.elites_SK.shape[1], length, num_starts)
    noise = randn(generators, length, num_starts, outputs)
    total = torch.zeros(obs.shape[:2], device=obs.device)
    alive = torch.ones_like(total, dtype=torch.bool)
    for t in range(length):
        member = ensemble.elites_SK.gather(1, elite[:, t])
        prediction = ensemble.predict(obs, policy(obs), member)
        outcome = sample_member(prediction, noise[:, t])
        obs = obs + outcome[..., :-1]
        total += torch.where(alive, outcome[..., -1], 0.0)
        alive = alive & ~termination_fn(obs)
    return total.mean(dim=1)
