"""SAC with conservative critics: COMBO's gradient step, and the coefficient that it may learn.

COMBO, eq. 2, for each critic:

    min_Q  beta (E_{s ~ rho} max_mu E_{a ~ mu} Q(s, a) - E_{(s, a) ~ D} Q(s, a))
           + 1/2 E_{(s, a, s') ~ d_f} (Q(s, a) - B^pi Q(s, a))^2

The bracket is the gap; `conservatism.py` has its first term. D are the batch's real
rows alone, d_f all of its rows, rho the states of all rows or of the model's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from algorithms.conservatism import IMPORTANCE, PRIORS, Policies, WeighedActions, soft_maximum
from algorithms.randomness import randn
from algorithms.sac import (
    SAC,
    SACNetworks,
    State,
    StepStatistics,
    TanhGaussian,
    apply_gradient,
    bellman_target,
    below,
    critic_loss,
    improve_policy,
    load_optimizer_state,
    optimizer_state,
    parameters_of,
    step_along,
    update_targets,
)
from algorithms.settings import COMBOSettings
from algorithms.transitions import Transition

Q_STD_RATE = 0.005
# States at once on a CPU: the activations of their 30 actions each stay in the cache.
CPU_CHUNK = 16


class ConservativeSAC(SAC):
    """`SAC` whose critics take COMBO's step."""

    settings: COMBOSettings

    def __init__(self, networks: SACNetworks, settings: COMBOSettings, max_q: float) -> None:
        super().__init__(networks, settings, max_q)
        device = networks.log_alpha_S.device
        num_seeds = networks.log_alpha_S.shape[0]
        beta = settings.beta_init if settings.beta == "learned" else settings.beta
        self.log_beta_S = nn.Parameter(torch.full((num_seeds,), math.log(beta), device=device))
        self.beta_optimizer = torch.optim.Adam([self.log_beta_S], settings.beta_lr, fused=True)
        self.q_std_S = torch.zeros(num_seeds, device=device)
        self.steps = torch.zeros(num_seeds, device=device)
        self.previous_actor = deepcopy(networks.actor).requires_grad_(requires_grad=False)

    def begin_epoch(self, actor_lr: float) -> None:
        super().begin_epoch(actor_lr)
        self.previous_actor.load_state_dict(self.networks.actor.state_dict())

    def draw_noise(self, generators: Sequence[torch.Generator], steps: int) -> tuple[Tensor, ...]:
        s = self.settings
        proposals = PRIORS[s.prior].num_proposals
        states = s.batch_size - self._first_rho_row
        shape = (steps, states, proposals, s.num_action_samples, self.networks.action_dim)
        return (*super().draw_noise(generators, steps), randn(generators, *shape))

    @property
    def _first_rho_row(self) -> int:
        """Where the rows of rho begin in a batch, which has its real rows first."""
        return 0 if self.settings.rho_states == "mix" else self.settings.real_rows

    def gradient_step(self, batch: Transition, noise: tuple[Tensor, ...]) -> StepStatistics:
        """One step of critics, beta, actor, temperature and targets on a batch `[S, B]`."""
        settings, networks = self.settings, self.networks
        next_action_noise, action_noise, samples_noise = noise
        alpha_S = networks.log_alpha_S.detach().exp()
        beta_S = self.log_beta_S.detach().exp()

        entropy_weight_S = alpha_S if settings.backup == "soft" else torch.zeros_like(alpha_S)
        target_SB = bellman_target(
            networks, batch, next_action_noise, entropy_weight_S, settings.gamma
        )
        q_SCB = networks.q(batch.obs, batch.action)
        bellman_S = 0.5 * critic_loss(q_SCB, target_SB)
        q_data_SCB = q_SCB[..., : settings.real_rows]
        loss_S = bellman_S
        if settings.maximize_dataset_q:
            loss_S = loss_S - beta_S * q_data_SCB.mean(dim=-1).sum(dim=-1)
        gradients = torch.autograd.grad(loss_S.sum(), parameters_of(self.optimizers.critic))
        value_SC, value_gradients = self._push_down(batch, samples_noise, beta_S)
        torch._foreach_add_(gradients, value_gradients)
        step_along(self.optimizers.critic, gradients)

        q_data_SCB = q_data_SCB.detach()
        gap_S = (value_SC - q_data_SCB.mean(dim=-1)).mean(dim=-1)
        threshold_S = self._update_beta(gap_S, q_data_SCB)
        actor_loss_S, entropy_S = improve_policy(
            networks, self.optimizers, settings, batch.obs, action_noise
        )
        update_targets(networks, settings.tau)
        means = {
            "critic_loss": loss_S.detach() + beta_S * value_SC.sum(dim=-1),
            "bellman_error": bellman_S.detach(),
            "actor_loss": actor_loss_S,
            "alpha": alpha_S,
            "entropy": entropy_S,
            "gap": gap_S,
            "beta": beta_S,
            "beta_threshold": threshold_S,
        }
        return StepStatistics(q_SCB.detach().mean(dim=1), means)

    def _push_down(
        self, batch: Transition, noise: Tensor, beta_S: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """E_{s ~ rho} max_mu E_mu Q `[S, C]`, and the critics' gradients of beta times it.

        Each chunk of states is differentiated at once, so that only its activations are kept.
        """
        rows = slice(self._first_rho_row, None)
        obs, next_obs = batch.obs[:, rows], batch.next_obs[:, rows]
        parameters = parameters_of(self.optimizers.critic)
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        value_SC = torch.zeros(self.networks.critic.stack, device=obs.device)
        num_states = obs.shape[1]
        chunk = CPU_CHUNK if obs.device.type == "cpu" else num_states
        actions = self._draw_actions(obs, next_obs, noise)
        for begin in range(0, num_states, chunk):
            part = slice(begin, begin + chunk)
            value_SCB = self._soft_maximum(
                obs[:, part], WeighedActions(*(x[:, part] for x in actions))
            )
            part_SC = value_SCB.sum(dim=-1) / num_states
            weighed = (beta_S[:, None] * part_SC).sum()
            torch._foreach_add_(gradients, torch.autograd.grad(weighed, parameters))
            value_SC += part_SC.detach()
        return value_SC, gradients

    @torch.no_grad()
    def _draw_actions(
        self, obs_SBO: Tensor, next_obs_SBO: Tensor, noise_SBPMA: Tensor
    ) -> WeighedActions:
        prior = PRIORS[self.settings.prior]
        policies = Policies(
            current=_for_samples(self.networks.policy(obs_SBO)),
            next=_for_samples(self.networks.policy(next_obs_SBO)),
            previous=_for_samples(TanhGaussian.from_output(self.previous_actor(obs_SBO))),
        )
        return prior.draw(policies, noise_SBPMA, IMPORTANCE[self.settings.importance])

    def _soft_maximum(self, obs_SBO: Tensor, actions: WeighedActions) -> Tensor:
        """T log E_{a ~ prior} exp(Q(s, a) / T), `[S, C, B]`."""
        num_actions = actions.action_SBNA.shape[2]
        obs_SBNO = obs_SBO.unsqueeze(2).expand(-1, -1, num_actions, -1)
        q = self.networks.q(obs_SBNO.flatten(1, 2), actions.action_SBNA.flatten(1, 2))
        return soft_maximum(
            q.unflatten(-1, (-1, num_actions)),
            actions.log_weight_SBN[:, None],
            actions.log_total_SB[:, None],
            self.settings.temperature,
        )

    def _update_beta(self, gap_S: Tensor, q_data_SCB: Tensor) -> Tensor:
        """One step of max_{beta >= 0} beta (gap - threshold) on log-beta; returns the threshold.

        The threshold is in units of the data's own spread of Q, so that it scales with the
        rewards. That spread is capped, so that a diverging Q cannot raise its own threshold.
        """
        settings = self.settings
        std_S = q_data_SCB.std(dim=-1, unbiased=False).mean(dim=-1)
        rate = torch.where(self.steps == 0, 1.0, Q_STD_RATE)
        self.q_std_S.lerp_(std_S, rate)
        threshold_S = settings.beta_threshold * self.q_std_S.clamp(max=self.max_q)
        if settings.beta == "learned":
            excess_S = torch.where(
                self.steps < settings.beta_warmup_steps, 0.0, gap_S - threshold_S
            )
            apply_gradient(self.beta_optimizer, -self.log_beta_S.exp() * excess_S)
            with torch.no_grad():
                self.log_beta_S.clamp_(math.log(settings.beta_min), math.log(settings.beta_max))
        self.steps += 1
        return threshold_S

    def state_dict(self) -> State:
        previous = self.previous_actor.state_dict()
        return {
            **super().state_dict(),
            **{f"previous_actor/{k}": v for k, v in previous.items()},
            **optimizer_state(self.beta_optimizer, "optimizers/beta/"),
            "log_beta": self.log_beta_S.detach(),
            "q_std": self.q_std_S,
            "steps": self.steps,
        }

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.previous_actor.load_state_dict(below(state, "previous_actor/"))
        load_optimizer_state(self.beta_optimizer, below(state, "optimizers/beta/"))
        with torch.no_grad():
            self.log_beta_S.copy_(state["log_beta"])
        self.q_std_S.copy_(state["q_std"])
        self.steps.copy_(state["steps"])


def _for_samples(policy: TanhGaussian) -> TanhGaussian:
    return TanhGaussian(policy.mean.unsqueeze(2), policy.log_std.unsqueeze(2))
