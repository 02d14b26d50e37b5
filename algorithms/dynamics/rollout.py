"""Model rollouts: branched from real states, penalised, cut where the episode would end.

MOPO, algorithm 2, lines 5-10; the branching is MBPO's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from algorithms.dynamics.ensemble import DynamicsEnsemble, sample_member
from algorithms.dynamics.penalties import Prediction
from algorithms.stack.compilation import Call, call_eagerly
from algorithms.stack.distributions import TanhGaussian
from algorithms.stack.randomness import randint, randn, randperm
from algorithms.stack.transitions import Transition, unpack

# At once: on a CPU rows per seed, which each network takes alone, its activations in the cache;
# on a GPU rows times members times seeds, whose activations take 90 MB a layer.
CPU_CHUNK, GPU_CHUNK = 2048, 7 * 16_384
QUANTILE_SAMPLE = 10_000
PENALTY_QUANTILES = (0.5, 0.9, 0.99)
ALIVE_CHECK_EVERY = 50  # steps: each check waits for the device


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
    own_member_only: bool = False,
    quantiles: Sequence[float] = (),
    call: Call = call_eagerly,
) -> Rollout:
    """`length` steps from every start state with the current stochastic policy.

    Each step gives every row a random elite, in equal shares, and samples that
    member's Gaussian; r~ = r - penalty_coef * penalty (MOPO, eq. 5).

    Args:
        ensemble: of S seeds.
        policy: obs `[S, B, O]` -> action distribution.
        start_SBO: B start states per seed.
        generators: one per seed.
        length: h.
        penalty: of `PENALTIES`.
        penalty_coef_S: lambda.
        termination_fn: next_obs -> done.
        own_member_only: whether the penalty sees the row's own member alone. The others
            are then left out, and rows are grouped by member.
        quantiles: of the penalty, to be reported.
        call: calls the arithmetic of a step, compiled or not.
    """
    _, num_starts, obs_dim = start_SBO.shape
    rows_at_once = CPU_CHUNK
    if not start_SBO.is_cpu:
        members = 1 if own_member_only else ensemble.num_ensemble
        rows_at_once = max(1, GPU_CHUNK // (members * ensemble.num_seeds))
    split = _by_member if own_member_only else _in_order
    rows: list[Tensor] = []
    keep: list[Tensor] = []
    rewards: list[Tensor] = []
    penalties: list[Tensor] = []
    obs = start_SBO
    alive = torch.ones(obs.shape[:2], dtype=torch.bool, device=obs.device)
    for _ in range(length):
        action_noise = randn(generators, num_starts, ensemble.action_dim)
        model_noise = randn(generators, num_starts, obs_dim + 1)
        order_SN = randperm(generators, num_starts)
        parts = split((obs, action_noise, model_noise), order_SN, ensemble.elites_SK, rows_at_once)
        stepped = [
            call(_step, ensemble, policy, *part, penalty, penalty_coef_S, termination_fn)
            for part in parts
        ]
        row, reward, uncertainty = (torch.cat(x, dim=1) for x in zip(*stepped, strict=True))
        if own_member_only:
            inverse_SN = order_SN.argsort(dim=1)
            row, reward, uncertainty = (_take(x, inverse_SN) for x in (row, reward, uncertainty))
        # A model that ran away to inf or nan must not poison the buffer.
        valid = alive & row.isfinite().all(dim=-1)
        rows.append(row)
        keep.append(valid)
        rewards.append(reward)
        penalties.append(uncertainty)
        step_rows = unpack(row, obs_dim, ensemble.action_dim)
        alive = valid & (step_rows.terminal == 0)
        obs = step_rows.next_obs.contiguous()  # strides as at the start: compiled once
    rows_SNW, keep_SN = torch.cat(rows, dim=1), torch.cat(keep, dim=1)
    kept_S = keep_SN.sum(dim=1).clamp(min=1)
    penalty_SN = torch.where(keep_SN, torch.cat(penalties, dim=1), torch.nan)
    return Rollout(
        rows_SNW=rows_SNW,
        keep_SN=keep_SN,
        last_rows_SNW=rows[-1],
        last_keep_SN=keep[-1],
        reward_S=torch.where(keep_SN, torch.cat(rewards, dim=1), 0.0).sum(dim=1) / kept_S,
        penalty_S=penalty_SN.nansum(dim=1) / kept_S,
        penalty_quantiles_QS=_quantiles(penalty_SN, quantiles),
        terminated_S=(keep_SN & (rows_SNW[..., -1] > 0)).sum(dim=1) / num_starts,
    )


def _in_order(
    columns: tuple[Tensor, ...], order_SN: Tensor, elites_SK: Tensor, rows_at_once: int
) -> Iterator[tuple[Tensor, ...]]:
    """The columns `[S, N, ...]` in parts of B rows, each with the member `[S, B]` of every row."""
    member_SN = torch.empty_like(order_SN)
    shares = zip(order_SN.tensor_split(elites_SK.shape[1], dim=1), elites_SK.T, strict=True)
    for share_SB, member_S in shares:
        member_SN.scatter_(1, share_SB, member_S[:, None].expand_as(share_SB))
    return zip(*(_parts(x, rows_at_once) for x in (*columns, member_SN)), strict=True)


def _by_member(
    columns: tuple[Tensor, ...], order_SN: Tensor, elites_SK: Tensor, rows_at_once: int
) -> Iterator[tuple[Tensor, ...]]:
    """The columns, shuffled, in parts whose rows share a member `[S]`."""
    shares = zip(order_SN.tensor_split(elites_SK.shape[1], dim=1), elites_SK.T, strict=True)
    for share_SB, member_S in shares:
        for index_SB in _parts(share_SB, rows_at_once):
            yield *(_take(x, index_SB) for x in columns), member_S


def _parts(x: Tensor, rows_at_once: int) -> tuple[Tensor, ...]:
    """`[S, N, ...]` in parts of equal length, or of two: every length is compiled anew."""
    return x.tensor_split(max(1, -(-x.shape[1] // rows_at_once)), dim=1)


def _step(
    ensemble: DynamicsEnsemble,
    policy: Callable[[Tensor], TanhGaussian],
    obs: Tensor,
    action_noise: Tensor,
    model_noise: Tensor,
    member: Tensor,
    penalty: Callable[[Prediction], Tensor],
    penalty_coef_S: Tensor,
    termination_fn: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of B rows per seed: packed transitions, reward and penalty of each.

    `member` is every row's, `[S, B]`; or that of all a seed's rows, `[S]`, and the others'
    predictions are not made.
    """
    action, _ = policy(obs).sample(action_noise)
    predict = ensemble.predict if member.dim() == 2 else ensemble.predict_one
    prediction = predict(obs, action, member)
    outcome = sample_member(prediction, model_noise)
    next_obs, reward = obs + outcome[..., :-1], outcome[..., -1]
    uncertainty = penalty(prediction)
    penalised = reward - penalty_coef_S[:, None] * uncertainty
    done = termination_fn(next_obs).float()
    return Transition(obs, action, penalised, next_obs, done).pack(), reward, uncertainty


def _take(x: Tensor, index_SB: Tensor) -> Tensor:
    """Rows `[S, B, ...]` of `[S, N, ...]`."""
    return x[torch.arange(len(x), device=x.device)[:, None], index_SB]


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
        if t % ALIVE_CHECK_EVERY == 0 and not alive.any():
            break
        member = ensemble.elites_SK.gather(1, elite[:, t])
        prediction = ensemble.predict(obs, policy(obs), member)
        outcome = sample_member(prediction, noise[:, t])
        obs = obs + outcome[..., :-1]
        total += torch.where(alive, outcome[..., -1], 0.0)
        alive = alive & ~termination_fn(obs)
    return total.mean(dim=1)
