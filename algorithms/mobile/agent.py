"""MOBILE: Model-Bellman Inconsistency Penalized Offline Policy Optimization (Sun et al. 2023).

Algorithm 1 of the paper, and where each line of it is:

    train an ensemble of N probabilistic dynamics     dynamics/training.py (once, shared)
    for epoch 1, 2, ...                               training/loop.py
        sample states from the data set
        for h steps: a ~ pi, model ~ elites           dynamics/rollout.py
            add (s, a, r, s') to the model buffer     stack/transitions.py
        critics towards y, then pi as SAC's, on       here
            5 % real, 95 % model

The target y of a row (s, a, r, s', d), with a' ~ pi(.|s') and the target critics Q':

    y = r - lambda u(s, a) + gamma (1 - d) min_C Q'(s', a'),   and 0 where that is below 0

u is how little the models agree on the Bellman backup, and 0 on the data's own rows:

    u(s, a) = std over elites m of mean over K samples s'_k ~ T_m(s, a) of min_C Q'(s'_k, a'_k)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.mobile.settings import MOBILESettings
from algorithms.sac.agent import SAC, Context, StepStatistics, improve_policy, update_targets
from algorithms.sac.losses import bellman_target, critic_loss
from algorithms.sac.networks import SACNetworks
from algorithms.stack.chunks import map_over_chunks
from algorithms.stack.optimizers import step_along
from algorithms.stack.randomness import randn
from algorithms.stack.transitions import Transition


class MOBILE(SAC):
    """Soft actor-critic on model rollouts, with targets less by the models' inconsistency."""

    # For a hundred steps Hopper would take 70 MB per seed; for ten, less than COMBO for a hundred.
    steps_per_draw = 10

    settings: MOBILESettings

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        settings = self.settings
        self.target = Target(
            gamma=settings.gamma,
            entropy_weight=1.0 if settings.backup == "soft" else 0.0,
            penalty_coef=settings.penalty_coef,
            minimum=0.0 if settings.clamp_target else -math.inf,
        )
        # A fixed alpha is one between equal bounds.
        if settings.alpha == "auto":
            self.log_alpha_bounds = (-math.inf, math.log(settings.alpha_max))
        else:
            self.log_alpha_bounds = (math.log(settings.alpha), math.log(settings.alpha))
        self._bound_alpha()

    def draw_noise(self, generators: Sequence[torch.Generator], steps: int) -> tuple[Tensor, ...]:
        """As of `SAC`, and that of every elite's (s', a') at the model's rows."""
        s, networks = self.settings, self.networks
        noise = super().draw_noise(generators, steps)
        if not s.penalises:
            return noise
        rows, dims = s.batch_size - s.real_rows, networks.obs_dim + networks.action_dim
        samples = (steps, rows, s.num_elites, s.num_next_samples, dims)
        return (*noise, randn(generators, *samples))

    def gradient_step(self, batch: Transition, noise: tuple[Tensor, ...]) -> StepStatistics:
        """One step of critics, actor, temperature and targets on a batch `[S, B]`."""
        next_action_noise, action_noise, *samples_noise = noise
        inconsistency_SR = self._inconsistency(batch, *samples_noise)
        critic = self.call(
            critic_gradients,
            self.networks,
            batch,
            next_action_noise,
            inconsistency_SR,
            self.target,
        )
        step_along(self.optimizers.critic, critic.gradients)
        actor = improve_policy(
            self.networks, self.optimizers, self.settings, batch.obs, action_noise, self.call
        )
        self._bound_alpha()
        update_targets(self.networks, self.settings.tau)
        means = {"critic_loss": critic.loss_S, **actor.means}
        if self.settings.penalises:
            means["inconsistency"] = inconsistency_SR.mean(dim=1)
            means["target_penalty"] = critic.penalty_SB[:, self.settings.real_rows :].mean(dim=1)
        return StepStatistics(critic.q_SB, means)

    def _inconsistency(self, batch: Transition, noise_SRMKN: Tensor | None = None) -> Tensor:
        """At the model's rows, the last R of the batch, `[S, R]`; without noise R is 0."""
        if noise_SRMKN is None:
            return batch.reward[:, :0]
        assert self.ensemble is not None
        model = slice(self.settings.real_rows, None)

        def of_rows(obs: Tensor, action: Tensor, noise: Tensor) -> Tensor:
            return self.call(inconsistency, self.networks, self.ensemble, obs, action, noise)

        return map_over_chunks(of_rows, (batch.obs[:, model], batch.action[:, model], noise_SRMKN))

    @torch.no_grad()
    def _bound_alpha(self) -> None:
        self.networks.log_alpha_S.clamp_(*self.log_alpha_bounds)


class Target(NamedTuple):
    """What y is made with."""

    gamma: float
    entropy_weight: float  # of - alpha log pi(a'|s') beside Q'(s', a'): 1 if the backup is soft
    penalty_coef: float  # lambda
    minimum: float


class CriticGradients(NamedTuple):
    """Of the sum over seeds of the critics' loss, by the critics' parameters."""

    gradients: tuple[Tensor, ...]
    loss_S: Tensor
    q_SB: Tensor  # mean over critics at the batch's own actions
    penalty_SB: Tensor  # by how much y is less than without u


def critic_gradients(
    networks: SACNetworks,
    batch: Transition,
    noise_SBA: Tensor,
    inconsistency_SR: Tensor,
    target: Target,
) -> CriticGradients:
    """Gradients of the mean squared error towards y; the last R rows of the batch have a u."""
    unpenalised_SB = unpenalised_target(networks, batch, noise_SBA, target)
    u_SB = F.pad(inconsistency_SR, (batch.reward.shape[1] - inconsistency_SR.shape[1], 0))
    y_SB = (unpenalised_SB - target.penalty_coef * u_SB).clamp(min=target.minimum)
    penalty_SB = unpenalised_SB.clamp(min=target.minimum) - y_SB
    q_SCB = networks.q(batch.obs, batch.action)
    loss_S = critic_loss(q_SCB, y_SB)
    gradients = torch.autograd.grad(loss_S.sum(), list(networks.critic.parameters()))
    return CriticGradients(gradients, loss_S.detach(), q_SCB.detach().mean(dim=1), penalty_SB)


@torch.no_grad()
def unpenalised_target(
    networks: SACNetworks, batch: Transition, noise_SBA: Tensor, target: Target
) -> Tensor:
    """The target y without u, and not yet kept above its minimum, `[S, B]`."""
    entropy_weight_S = target.entropy_weight * networks.log_alpha_S.exp()
    return bellman_target(networks, batch, noise_SBA, entropy_weight_S, target.gamma)


@torch.no_grad()
def inconsistency(
    networks: SACNetworks,
    ensemble: DynamicsEnsemble,
    obs_SBO: Tensor,
    action_SBA: Tensor,
    noise_SBMKN: Tensor,
) -> Tensor:
    """u(s, a), `[S, B]`.

    Args:
        networks: the policy, and the target critics.
        ensemble: of the same seeds, M elites each.
        obs_SBO: s.
        action_SBA: a.
        noise_SBMKN: of K samples of each elite: O standard-normal numbers for s', A for a'.
    """
    obs_dim, (num_elites, num_samples) = obs_SBO.shape[-1], noise_SBMKN.shape[2:4]
    model = ensemble(torch.cat([obs_SBO, action_SBA], dim=-1)[:, None])
    elites = ensemble.elites_SK[:, :, None, None].expand(-1, -1, *model.mean_SEBD.shape[2:])
    mean, log_var = (x.gather(1, elites)[..., :obs_dim].transpose(1, 2) for x in model)
    next_obs_noise, action_noise = noise_SBMKN.split([obs_dim, action_SBA.shape[-1]], dim=-1)

    change_SBMKO = mean[:, :, :, None] + (0.5 * log_var).exp()[:, :, :, None] * next_obs_noise
    next_obs = (obs_SBO[:, :, None, None] + change_SBMKO).flatten(1, 3)
    next_action, _ = networks.policy(next_obs).sample(action_noise.flatten(1, 3))
    value = networks.target_q(next_obs, next_action).amin(dim=1)
    value_SBMK = value.unflatten(1, (-1, num_elites, num_samples))
    return value_SBMK.mean(dim=3).std(dim=2)
