"""COMBO's conservative value of a state: the largest expected Q over actions, kept near a prior.

COMBO, eq. 2, pushes down E_{a ~ mu} Q(s, a) for the worst mu. Regularised towards
a prior, that mu has a closed form (CQL, appendix A):

    max_mu E_mu[Q] - T KL(mu || prior) = T log E_{a ~ prior} exp(Q(s, a) / T)

estimated with sampled actions. To add a prior, write how it samples and weighs actions, and
its row above it. torch is imported by those who use it, so the tables can be read without it.

Axes: S seeds, B states, P proposals of M actions each, N = P M actions, A action dims.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from algorithms.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from algorithms.stack.distributions import TanhGaussian

MAX_ACTION = 1.0 - 1e-6  # atanh(1) is infinite


class WeightedActions(NamedTuple):
    """log E_{a ~ prior} exp(f(a)) is estimated as logsumexp_N(f(a) + log_weight) - log_total."""

    action_SBNA: Tensor
    log_weight_SBN: Tensor
    log_total_SB: Tensor


def soft_maximum(q: Tensor, log_weight: Tensor, log_total: Tensor, temperature: float) -> Tensor:
    """T log E_{a ~ prior} exp(Q / T) per state: `[..., B, N] -> [..., B]`."""
    return temperature * ((q / temperature + log_weight).logsumexp(dim=-1) - log_total)


# --- importance weights: log-densities [S, B, N, P] of every action under every proposal, actions
# --- in the order of their proposals -> log-weights [S, B, N] and what normalises them [S, B]


def own_density(log_density_SBNP: Tensor, log_prior: float) -> tuple[Tensor, Tensor]:
    """Each action weighted by the density of the proposal it came from: CQL's estimator.

    Unbiased inside the logarithm. A constant Q = c gives c only where every proposal
    is the prior; with narrow policies it falls short, by up to log P.
    """
    *_, num_actions, num_proposals = log_density_SBNP.shape
    own = log_density_SBNP.unflatten(2, (num_proposals, -1)).diagonal(dim1=2, dim2=4)
    log_weight = log_prior - own.transpose(2, 3).flatten(2)
    return log_weight, log_weight.new_full(log_weight.shape[:-1], math.log(num_actions))


def balanced(log_density_SBNP: Tensor, log_prior: float) -> tuple[Tensor, Tensor]:
    """Each action weighted by the mean density of all proposals, self-normalised.

    The balance heuristic (Veach and Guibas 1995); a constant Q = c gives c exactly.
    """
    log_mixture = log_density_SBNP.logsumexp(dim=-1) - math.log(log_density_SBNP.shape[-1])
    log_weight = log_prior - log_mixture
    return log_weight, log_weight.logsumexp(dim=-1)


Importance = Callable[["Tensor", float], tuple["Tensor", "Tensor"]]

IMPORTANCE: Registry[Importance] = Registry("importance")
IMPORTANCE.add("own_density", own_density)
IMPORTANCE.add("balanced", balanced)


# --- priors: policies at the states of rho, [S, B, 1, A], and standard-normal noise [S, B, P, M, A]
# --- -> actions with their weights


class Policies(NamedTuple):
    """Where a prior may draw actions from; every action is evaluated at s, also those of s'."""

    current: TanhGaussian  # pi(.|s)
    next: TanhGaussian  # pi(.|s')
    previous: TanhGaussian  # pi(.|s) as it was when the epoch began


Draw = Callable[[Policies, "Tensor", Importance], WeightedActions]


class Prior(NamedTuple):
    """One row of the table."""

    num_proposals: int  # P
    draw: Draw


PRIORS: Registry[Prior] = Registry("prior")


def prior(name: str, *, num_proposals: int) -> Callable[[Draw], Draw]:
    """Enter the function below it in the table, as a sweep names it."""

    def enter(draw: Draw) -> Draw:
        PRIORS.add(name, Prior(num_proposals, draw))
        return draw

    return enter


@prior("uniform", num_proposals=3)
def uniform(policies: Policies, noise_SBPMA: Tensor, importance: Importance) -> WeightedActions:
    """The paper's prior, uniform over [-1, 1]^A: M actions each from it, pi(.|s) and pi(.|s')."""
    import torch

    noise_uniform, noise_current, noise_next = noise_SBPMA.unbind(dim=2)
    # erf(z / sqrt 2) is 2 Phi(z) - 1: uniform over [-1, 1].
    action = (noise_uniform / math.sqrt(2.0)).erf().clamp(-MAX_ACTION, MAX_ACTION)
    current, following = policies.current, policies.next
    u_SBNA = torch.cat(
        [
            action.atanh(),
            current.mean + current.log_std.exp() * noise_current,
            following.mean + following.log_std.exp() * noise_next,
        ],
        dim=2,
    )
    log_prior = -math.log(2.0) * noise_SBPMA.shape[-1]
    log_density_SBNP = torch.stack(
        [
            torch.full_like(u_SBNA[..., 0], log_prior),
            current.log_prob(u_SBNA),
            following.log_prob(u_SBNA),
        ],
        dim=-1,
    )
    return WeightedActions(u_SBNA.tanh(), *importance(log_density_SBNP, log_prior))


@prior("previous_policy", num_proposals=1)
def previous_policy(
    policies: Policies, noise_SBPMA: Tensor, importance: Importance
) -> WeightedActions:
    """The policy at the start of the epoch (CQL(rho)): drawn from the prior itself, unweighted."""
    del importance  # every weight is 1
    action_SBNA, _ = policies.previous.sample(noise_SBPMA.squeeze(2))
    log_weight = action_SBNA.new_zeros(action_SBNA.shape[:-1])
    log_total = log_weight.new_full(log_weight.shape[:-1], math.log(log_weight.shape[-1]))
    return WeightedActions(action_SBNA, log_weight, log_total)
