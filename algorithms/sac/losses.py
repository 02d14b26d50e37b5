"""The losses of soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905), and their gradients.

Plain functions of tensors with the seed axis first. Each loss is one value per seed, `[S]`, and
is summed over seeds before it is differentiated: seeds share no parameter, so each receives
exactly the gradient that it would receive alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from algorithms.sac.networks import SACNetworks
from algorithms.stack.transitions import Transition


def td_target(
    batch: Transition, target_q_SCB: Tensor, log_prob_SB: Tensor, alpha_S: Tensor, gamma: float
) -> Tensor:
    """SAC eq. 3 and 5: r + gamma (1 - d) (min_C Q'(s', a') - alpha log pi(a'|s')), `[S, B]`."""
    soft_value_SB = target_q_SCB.amin(dim=1) - alpha_S[:, None] * log_prob_SB
    return batch.reward + gamma * (1.0 - batch.terminal) * soft_value_SB


def critic_loss(q_SCB: Tensor, target_SB: Tensor) -> Tensor:
    """Sum over critics of the mean squared Bellman error, `[S]`."""
    return (q_SCB - target_SB[:, None]).square().mean(dim=-1).sum(dim=-1)


def actor_loss(q_SCB: Tensor, log_prob_SB: Tensor, alpha_S: Tensor) -> Tensor:
    """SAC eq. 9: mean of alpha log pi(a|s) - min_C Q(s, a), `[S]`."""
    return (alpha_S[:, None] * log_prob_SB - q_SCB.amin(dim=1)).mean(dim=-1)


def alpha_gradient(log_prob_S: Tensor, target_entropy: float) -> Tensor:
    """Gradient by log-alpha of -log_alpha (log pi(a|s) + target entropy), SAC eq. 18, `[S]`.

    `log_prob_S` is the mean of log pi(a|s) over the batch.
    """
    return -(log_prob_S + target_entropy)


class CriticGradients(NamedTuple):
    """Of the sum over seeds of the critics' loss, by the critics' parameters."""

    gradients: tuple[Tensor, ...]
    loss_S: Tensor
    q_SB: Tensor  # mean over critics at the batch's own actions


def critic_gradients(
    networks: SACNetworks, batch: Transition, noise_SBA: Tensor, gamma: float
) -> CriticGradients:
    """Gradients of `critic_loss` towards `td_target`."""
    alpha_S = networks.log_alpha_S.detach().exp()
    target_SB = bellman_target(networks, batch, noise_SBA, alpha_S, gamma)
    q_SCB = networks.q(batch.obs, batch.action)
    loss_S = critic_loss(q_SCB, target_SB)
    gradients = torch.autograd.grad(loss_S.sum(), list(networks.critic.parameters()))
    return CriticGradients(gradients, loss_S.detach(), q_SCB.detach().mean(dim=1))


@torch.no_grad()
def bellman_target(
    networks: SACNetworks, batch: Transition, noise_SBA: Tensor, alpha_S: Tensor, gamma: float
) -> Tensor:
    """`td_target` of the target critics at one sampled next action, `[S, B]`."""
    next_action, next_log_prob = networks.policy(batch.next_obs).sample(noise_SBA)
    target_q = networks.target_q(batch.next_obs, next_action)
    return td_target(batch, target_q, next_log_prob, alpha_S, gamma)


class ActorGradients(NamedTuple):
    """Of the sum over seeds of the actor's loss, by the actor's parameters."""

    gradients: tuple[Tensor, ...]
    loss_S: Tensor
    log_prob_S: Tensor  # mean over the batch
    q_SB: Tensor  # mean over critics at the policy's own actions


def actor_gradients(networks: SACNetworks, obs_SBO: Tensor, noise_SBA: Tensor) -> ActorGradients:
    """Gradients of `actor_loss` by the actor alone, which spares those of the critics' weights."""
    alpha_S = networks.log_alpha_S.detach().exp()
    action, log_prob = networks.policy(obs_SBO).sample(noise_SBA)
    q_SCB = networks.q(obs_SBO, action)
    loss_S = actor_loss(q_SCB, log_prob, alpha_S)
    gradients = torch.autograd.grad(loss_S.sum(), list(networks.actor.parameters()))
    return ActorGradients(
        gradients,
        loss_S.detach(),
        log_prob.detach().mean(dim=-1),
        q_SCB.detach().mean(dim=1),
    )
