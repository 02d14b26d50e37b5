"""COMBO: Conservative Offline Model-Based Policy Optimization (Yu et al. 2021, arXiv 2102.08363).

Algorithm 1 of the paper, and where each line of it is:

    train an ensemble of N probabilistic dynamics     dynamics/training.py (once, shared)
    for epoch 1, 2, ...                               training/loop.py
        sample states from the data set
        for h steps: a ~ pi, model ~ elites           dynamics/rollout.py
            add (s, a, r, s') to the model buffer     stack/transitions.py
        conservative critics (eq. 2), then pi as      here
            SAC's, on 50 % real, 50 % model

Eq. 2, for each critic:

    min_Q  beta (E_{s ~ rho} max_mu E_{a ~ mu} Q(s, a) - E_{(s, a) ~ D} Q(s, a))
           + 1/2 E_{(s, a, s') ~ d_f} (Q(s, a) - B^pi Q(s, a))^2

The bracket is the gap; `conservatism.py` has its first term. D are the batch's real
rows alone, d_f all of its rows, rho the states of all rows or of the model's.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from algorithms.combo.conservatism import (
    IMPORTANCE,
    PRIORS,
    Importance,
    Policies,
    Prior,
    WeightedActions,
    soft_maximum,
)
from algorithms.combo.settings import COMBOSettings
from algorithms.sac.agent import SAC, Context, StepStatistics, improve_policy, update_targets
from algorithms.sac.losses import bellman_target, critic_loss
from algorithms.sac.networks import SACNetworks
from algorithms.stack.chunks import sum_over_chunks
from algorithms.stack.distributions import TanhGaussian
from algorithms.stack.mlp import StackedMLP
from algorithms.stack.optimizers import adam, load_optimizer_state, optimizer_state, step_along
from algorithms.stack.randomness import randn
from algorithms.stack.state import State, below
from algorithms.stack.transitions import Transition

ADVANTAGE_STD_RATE = 0.005


class COMBO(SAC):
    """Soft actor-critic on model rollouts, with critics that are kept conservative."""

    settings: COMBOSettings

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        settings, device = self.settings, context.device
        self.prior, self.importance = PRIORS[settings.prior], IMPORTANCE[settings.importance]
        # Where the states of rho begin in a batch, which has its real rows first.
        self.first_rho_row = 0 if settings.rho_states == "mix" else settings.real_rows
        self.entropy_in_backup = settings.backup == "soft"
        if settings.beta == "learned":
            self.beta_unit, beta = self.reward_scale.rms, settings.beta_init
        else:
            self.beta_unit, beta = 1.0, settings.beta
        num_seeds = context.num_seeds
        self.log_beta_S = nn.Parameter(torch.full((num_seeds,), math.log(beta), device=device))
        self.beta_optimizer = adam([self.log_beta_S], settings.beta_lr)
        self.advantage_std_S = torch.zeros(num_seeds, device=device)
        self.previous_actor = deepcopy(self.networks.actor).requires_grad_(requires_grad=False)

    @property
    def phase(self) -> Hashable:
        """The first step, and from the end of the warm-up those that learn beta."""
        learns_beta = self.settings.learns_beta and self.steps >= self.settings.beta_warmup_steps
        return Phase(is_first=self.steps == 0, learns_beta=learns_beta)

    def begin_epoch(self, actor_lr: float) -> None:
        """The policy of this moment is the epoch's previous policy."""
        super().begin_epoch(actor_lr)
        self.previous_actor.load_state_dict(self.networks.actor.state_dict())

    def draw_noise(self, generators: Sequence[torch.Generator], steps: int) -> tuple[Tensor, ...]:
        """As of `SAC`, and that of the actions at the states of rho."""
        s = self.settings
        states, proposals = s.batch_size - self.first_rho_row, self.prior.num_proposals
        shape = (steps, states, proposals, s.num_action_samples, self.networks.action_dim)
        return (*super().draw_noise(generators, steps), randn(generators, *shape))

    def gradient_step(self, batch: Transition, noise: tuple[Tensor, ...]) -> StepStatistics:
        """One step of critics (eq. 2), actor, temperature, targets and beta on a batch `[S, B]`."""
        settings, networks = self.settings, self.networks
        next_action_noise, action_noise, samples_noise = noise
        beta_S = self.beta_unit * self.log_beta_S.detach().exp()
        data = self.call(
            data_gradients,
            networks,
            batch,
            next_action_noise,
            beta_S,
            settings,
            self.entropy_in_backup,
        )
        value_SC, value_gradients = self._conservative_value(batch, samples_noise, beta_S)
        gradients = zip(data.gradients, value_gradients, strict=True)
        step_along(self.optimizers.critic, [a + b for a, b in gradients])

        actor = improve_policy(
            networks, self.optimizers, settings, batch.obs, action_noise, self.call
        )
        update_targets(networks, settings.tau)
        gap_S = value_SC.mean(dim=-1) - data.q_data_S
        advantage_SB = (data.q_SB - actor.q_SB)[:, : settings.real_rows]
        threshold_S = self._update_beta(gap_S, advantage_SB)
        means = {
            "critic_loss": data.loss_S + beta_S * value_SC.sum(dim=-1),
            "bellman_error": data.bellman_S,
            **actor.means,
            "gap": gap_S,
            "beta": beta_S,
            "beta_threshold": threshold_S,
        }
        return StepStatistics(data.q_SB, means)

    def _conservative_value(
        self, batch: Transition, noise: Tensor, beta_S: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """E_{s ~ rho} max_mu E_mu Q `[S, C]`, and the critics' gradients of beta times it."""
        obs = batch.obs[:, self.first_rho_row :]
        next_obs = batch.next_obs[:, self.first_rho_row :]
        num_states = obs.shape[1]
        actions = self.call(
            draw_actions,
            self.networks,
            self.previous_actor,
            obs,
            next_obs,
            noise,
            self.prior,
            self.importance,
        )

        def of_states(obs: Tensor, *actions: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            value_SC, gradients = self.call(
                value_gradients,
                self.networks,
                obs,
                WeightedActions(*actions),
                beta_S / num_states,
                self.settings.temperature,
            )
            return value_SC / num_states, gradients

        return sum_over_chunks(of_states, (obs, *actions))

    def _update_beta(self, gap_S: Tensor, advantage_SB: Tensor) -> Tensor:
        """One step of max_{beta >= 0} beta (gap - threshold) on log-beta; returns the threshold.

        The threshold is in units of the spread of the data's advantages Q(s, a) - Q(s, pi(s)),
        at one sampled action of the policy, so that it scales with the rewards and asks how
        much better or worse than the data's an action may look, whatever the states are worth.
        The spread is capped, so that a diverging Q cannot move its own threshold without end.
        """
        settings, phase = self.settings, self.phase
        assert isinstance(phase, Phase)
        std_S = advantage_SB.std(dim=-1, unbiased=False)
        self.advantage_std_S.lerp_(std_S, 1.0 if phase.is_first else ADVANTAGE_STD_RATE)
        spread_S = self.advantage_std_S.clamp(max=self.reward_scale.max_q)
        threshold_S = settings.beta_threshold * spread_S
        # Before the warm-up ends the optimizer takes no step, whose count corrects its moments.
        if phase.learns_beta:
            excess_S = gap_S - threshold_S
            step_along(self.beta_optimizer, [-self.log_beta_S.detach().exp() * excess_S])
            with torch.no_grad():
                self.log_beta_S.clamp_(math.log(settings.beta_min), math.log(settings.beta_max))
        return threshold_S

    def state_dict(self) -> State:
        previous = self.previous_actor.state_dict()
        return {
            **super().state_dict(),
            **{f"previous_actor/{k}": v for k, v in previous.items()},
            **optimizer_state(self.beta_optimizer, "optimizers/beta/"),
            "log_beta": self.log_beta_S.detach(),
            "advantage_std": self.advantage_std_S,
        }

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.previous_actor.load_state_dict(below(state, "previous_actor/"))
        load_optimizer_state(self.beta_optimizer, below(state, "optimizers/beta/"))
        with torch.no_grad():
            self.log_beta_S.copy_(state["log_beta"])
        self.advantage_std_S.copy_(state["advantage_std"])


class Phase(NamedTuple):
    """What the Python of a gradient step branches on."""

    is_first: bool
    learns_beta: bool


class DataGradients(NamedTuple):
    """Of the sum over seeds of the loss on the batch's own actions, by the critics' parameters."""

    gradients: tuple[Tensor, ...]
    loss_S: Tensor  # 1/2 Bellman error - beta E_D Q, summed over critics
    bellman_S: Tensor  # its first term
    q_SB: Tensor  # mean over critics
    q_data_S: Tensor  # E_D Q, mean over critics


def data_gradients(
    networks: SACNetworks,
    batch: Transition,
    noise_SBA: Tensor,
    beta_S: Tensor,
    settings: COMBOSettings,
    entropy_in_backup: bool,  # noqa: FBT001 - positional, because compiled
) -> DataGradients:
    """All of eq. 2 that needs no sampled actions: the Bellman error, and - beta E_D Q."""
    entropy_weight_S = networks.log_alpha_S.detach().exp()
    if not entropy_in_backup:
        entropy_weight_S = torch.zeros_like(entropy_weight_S)
    target_SB = bellman_target(networks, batch, noise_SBA, entropy_weight_S, settings.gamma)
    q_SCB = networks.q(batch.obs, batch.action)
    loss_S = bellman_S = 0.5 * critic_loss(q_SCB, target_SB)
    q_data_SCB = q_SCB[..., : settings.real_rows]
    if settings.maximize_dataset_q:
        loss_S = loss_S - beta_S * q_data_SCB.mean(dim=-1).sum(dim=-1)
    gradients = torch.autograd.grad(loss_S.sum(), list(networks.critic.parameters()))
    return DataGradients(
        gradients,
        loss_S.detach(),
        bellman_S.detach(),
        q_SB=q_SCB.detach().mean(dim=1),
        q_data_S=q_data_SCB.detach().mean(dim=(1, 2)),
    )


@torch.no_grad()
def draw_actions(
    networks: SACNetworks,
    previous_actor: StackedMLP,
    obs_SBO: Tensor,
    next_obs_SBO: Tensor,
    noise_SBPMA: Tensor,
    prior: Prior,
    importance: Importance,
) -> WeightedActions:
    """The prior's actions at the states of rho."""
    policies = Policies(
        current=_for_samples(networks.policy(obs_SBO)),
        next=_for_samples(networks.policy(next_obs_SBO)),
        previous=_for_samples(TanhGaussian.from_output(previous_actor(obs_SBO))),
    )
    return prior.draw(policies, noise_SBPMA, importance)


def value_gradients(
    networks: SACNetworks,
    obs_SBO: Tensor,
    actions: WeightedActions,
    weight_S: Tensor,
    temperature: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Sum over states of max_mu E_mu Q `[S, C]`, and the gradients of `weight_S` times it."""
    num_actions = actions.action_SBNA.shape[2]
    obs_SBNO = obs_SBO.unsqueeze(2).expand(-1, -1, num_actions, -1)
    q = networks.q(obs_SBNO.flatten(1, 2), actions.action_SBNA.flatten(1, 2))
    value_SCB = soft_maximum(
        q.unflatten(-1, (-1, num_actions)),
        actions.log_weight_SBN[:, None],
        actions.log_total_SB[:, None],
        temperature,
    )
    value_SC = value_SCB.sum(dim=-1)
    parameters = list(networks.critic.parameters())
    gradients = torch.autograd.grad((weight_S[:, None] * value_SC).sum(), parameters)
    return value_SC.detach(), gradients


def _for_samples(policy: TanhGaussian) -> TanhGaussian:
    return TanhGaussian(policy.mean.unsqueeze(2), policy.log_std.unsqueeze(2))
