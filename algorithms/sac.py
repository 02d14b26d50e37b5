"""Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905) for a stack of seeds.

The losses are plain functions of tensors with the seed axis first; each returns
one value per seed, `[S]`. `gradient_step` sums them over seeds: seeds share no
parameter, so each receives exactly the gradient it would receive alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.networks import StackedMLP
from algorithms.settings import SACSettings
from algorithms.transitions import Transition

LOG_STD_BOUNDS = (-5.0, 2.0)


class SACNetworks(nn.Module):
    """Actor, critics, target critics and log-temperature of S seeds."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        settings: SACSettings,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.obs_dim, self.action_dim = obs_dim, action_dim
        critic_sizes = (obs_dim + action_dim, *settings.hidden, 1)
        self.actor = StackedMLP((obs_dim, *settings.hidden, 2 * action_dim), generators)
        self.critic = StackedMLP(critic_sizes, generators, members=(settings.num_critics,))
        self.target_critic = StackedMLP(critic_sizes, generators, members=(settings.num_critics,))
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.target_critic.requires_grad_(False)
        self.log_alpha_S = nn.Parameter(torch.zeros(len(generators)))

    def q(self, obs_SBO: Tensor, action_SBA: Tensor) -> Tensor:
        """Q-values of every critic, `[S, C, B]`."""
        return _q_values(self.critic, obs_SBO, action_SBA)

    def target_q(self, obs_SBO: Tensor, action_SBA: Tensor) -> Tensor:
        """Q-values of every target critic, `[S, C, B]`."""
        return _q_values(self.target_critic, obs_SBO, action_SBA)

    def policy(self, obs_SBO: Tensor) -> TanhGaussian:
        """The action distribution at `obs_SBO`."""
        return TanhGaussian.from_output(self.actor(obs_SBO))


def _q_values(critic: StackedMLP, obs_SBO: Tensor, action_SBA: Tensor) -> Tensor:
    return critic(torch.cat([obs_SBO, action_SBA], dim=-1).unsqueeze(1)).squeeze(-1)


class TanhGaussian(NamedTuple):
    """a = tanh(u), u ~ N(mean, std^2): actions in (-1, 1)^A."""

    mean: Tensor  # [..., A]
    log_std: Tensor  # [..., A]

    @classmethod
    def from_output(cls, output: Tensor) -> TanhGaussian:
        """From an actor's output `[..., 2 A]`: the mean, then the log-std, clamped."""
        mean, log_std = output.chunk(2, dim=-1)
        return cls(mean, log_std.clamp(*LOG_STD_BOUNDS))

    def mode(self) -> Tensor:
        """The deterministic action of evaluation, `[..., A]`."""
        return torch.tanh(self.mean)

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reparametrised action `[..., A]` and its log-density `[...]` for standard-normal `noise`.

        log(1 - tanh(u)^2) is written as 2 (log 2 - u - softplus(-2 u)), which does
        not underflow (SAC, appendix C, eq. 26, in the stable form).
        """
        u = self.mean + self.log_std.exp() * noise
        log_prob = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        log_prob = log_prob - 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
        return torch.tanh(u), log_prob.sum(dim=-1)


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


def alpha_loss(log_alpha_S: Tensor, log_prob_SB: Tensor, target_entropy: float) -> Tensor:
    """SAC eq. 18 in log-alpha: -log_alpha (log pi(a|s) + target entropy), averaged, `[S]`."""
    return -log_alpha_S * (log_prob_SB + target_entropy).mean(dim=-1)


class SACOptimizers(NamedTuple):
    """Adam for each group of parameters; elementwise, hence independent across seeds."""

    actor: torch.optim.Optimizer
    critic: torch.optim.Optimizer
    alpha: torch.optim.Optimizer

    @classmethod
    def create(cls, networks: SACNetworks, settings: SACSettings) -> SACOptimizers:
        return cls(
            actor=torch.optim.Adam(networks.actor.parameters(), settings.actor_lr, fused=True),
            critic=torch.optim.Adam(networks.critic.parameters(), settings.critic_lr, fused=True),
            alpha=torch.optim.Adam([networks.log_alpha_S], settings.alpha_lr, fused=True),
        )


class StepNoise(NamedTuple):
    """Standard-normal noise of one gradient step."""

    next_action_SBA: Tensor
    action_SBA: Tensor


class StepStatistics(NamedTuple):
    """What one gradient step saw; detached, still on the device."""

    critic_loss_S: Tensor
    actor_loss_S: Tensor
    alpha_S: Tensor
    entropy_S: Tensor
    q_SB: Tensor  # mean over critics of Q at the batch's own actions


def gradient_step(
    networks: SACNetworks,
    optimizers: SACOptimizers,
    settings: SACSettings,
    batch: Transition,
    noise: StepNoise,
) -> StepStatistics:
    """One step of critics, actor, temperature and targets on a batch `[S, B]`."""
    alpha_S = networks.log_alpha_S.detach().exp()

    with torch.no_grad():
        next_action, next_log_prob = networks.policy(batch.next_obs).sample(noise.next_action_SBA)
        target_q = networks.target_q(batch.next_obs, next_action)
        target = td_target(batch, target_q, next_log_prob, alpha_S, settings.gamma)
    q = networks.q(batch.obs, batch.action)
    critic_loss_S = critic_loss(q, target)
    apply_gradient(optimizers.critic, critic_loss_S)

    action, log_prob = networks.policy(batch.obs).sample(noise.action_SBA)
    actor_loss_S = actor_loss(networks.q(batch.obs, action), log_prob, alpha_S)
    apply_gradient(optimizers.actor, actor_loss_S)

    target_entropy = settings.target_entropy
    if target_entropy is None:
        target_entropy = -float(networks.action_dim)
    alpha_loss_S = alpha_loss(networks.log_alpha_S, log_prob.detach(), target_entropy)
    apply_gradient(optimizers.alpha, alpha_loss_S)

    update_targets(networks, settings.tau)
    return StepStatistics(
        critic_loss_S=critic_loss_S.detach(),
        actor_loss_S=actor_loss_S.detach(),
        alpha_S=alpha_S,
        entropy_S=-log_prob.detach().mean(dim=-1),
        q_SB=q.detach().mean(dim=1),
    )


def apply_gradient(optimizer: torch.optim.Optimizer, loss_S: Tensor) -> None:
    """Descend the sum over seeds of `loss_S`, for this optimizer's parameters alone.

    Asking autograd for these parameters only also spares the critics' weight
    gradients in the actor's step.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = torch.autograd.grad(loss_S.sum(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


@torch.no_grad()
def update_targets(networks: SACNetworks, tau: float) -> None:
    """Polyak averaging after every gradient step: target <- (1 - tau) target + tau critic."""
    torch._foreach_lerp_(
        list(networks.target_critic.parameters()), list(networks.critic.parameters()), tau
    )
