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
from algorithms.randomness import randn
from algorithms.settings import OfflineSettings, SACSettings
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
        """Reparametrised action `[..., A]` and log-density `[...]`; `noise` is standard normal."""
        u = self.mean + self.log_std.exp() * noise
        return torch.tanh(u), self._log_prob(noise, u)

    def log_prob(self, u: Tensor) -> Tensor:
        """Log-density `[...]` of the action tanh(u); `u` tells actions apart that round to 1."""
        return self._log_prob((u - self.mean) * (-self.log_std).exp(), u)

    def _log_prob(self, noise: Tensor, u: Tensor) -> Tensor:
        # log(1 - tanh(u)^2) is written as 2 (log 2 - u - softplus(-2 u)), which does
        # not underflow (SAC, appendix C, eq. 26, in the stable form).
        log_prob = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        return (log_prob - 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))).sum(dim=-1)


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

    q_SB: Tensor  # mean over critics of Q at the batch's own actions
    means: dict[str, Tensor]  # one value per seed, `[S]`


def gradient_step(
    networks: SACNetworks,
    optimizers: SACOptimizers,
    settings: SACSettings,
    batch: Transition,
    noise: StepNoise,
) -> StepStatistics:
    """One step of critics, actor, temperature and targets on a batch `[S, B]`."""
    alpha_S = networks.log_alpha_S.detach().exp()
    target_SB = bellman_target(networks, batch, noise.next_action_SBA, alpha_S, settings.gamma)
    q_SCB = networks.q(batch.obs, batch.action)
    critic_loss_S = critic_loss(q_SCB, target_SB)
    apply_gradient(optimizers.critic, critic_loss_S)

    actor_loss_S, entropy_S = improve_policy(
        networks, optimizers, settings, batch.obs, noise.action_SBA
    )
    update_targets(networks, settings.tau)
    means = {
        "critic_loss": critic_loss_S.detach(),
        "actor_loss": actor_loss_S,
        "alpha": alpha_S,
        "entropy": entropy_S,
    }
    return StepStatistics(q_SCB.detach().mean(dim=1), means)


@torch.no_grad()
def bellman_target(
    networks: SACNetworks, batch: Transition, noise_SBA: Tensor, alpha_S: Tensor, gamma: float
) -> Tensor:
    """`td_target` of the target critics at one sampled next action, `[S, B]`."""
    next_action, next_log_prob = networks.policy(batch.next_obs).sample(noise_SBA)
    target_q = networks.target_q(batch.next_obs, next_action)
    return td_target(batch, target_q, next_log_prob, alpha_S, gamma)


def improve_policy(
    networks: SACNetworks,
    optimizers: SACOptimizers,
    settings: SACSettings,
    obs_SBO: Tensor,
    noise_SBA: Tensor,
) -> tuple[Tensor, Tensor]:
    """One step of the actor, then of the temperature; the actor's loss and the entropy, `[S]`."""
    alpha_S = networks.log_alpha_S.detach().exp()
    action, log_prob = networks.policy(obs_SBO).sample(noise_SBA)
    actor_loss_S = actor_loss(networks.q(obs_SBO, action), log_prob, alpha_S)
    apply_gradient(optimizers.actor, actor_loss_S)

    target_entropy = settings.target_entropy
    if target_entropy is None:
        target_entropy = -float(networks.action_dim)
    log_prob = log_prob.detach()
    alpha_loss_S = alpha_loss(networks.log_alpha_S, log_prob, target_entropy)
    apply_gradient(optimizers.alpha, alpha_loss_S)
    return actor_loss_S.detach(), -log_prob.mean(dim=-1)


def apply_gradient(optimizer: torch.optim.Optimizer, loss_S: Tensor) -> None:
    """Descend the sum over seeds of `loss_S`, for this optimizer's parameters alone.

    Asking autograd for these parameters only also spares the critics' weight
    gradients in the actor's step.
    """
    step_along(optimizer, torch.autograd.grad(loss_S.sum(), parameters_of(optimizer)))


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def step_along(optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor]) -> None:
    """One step with these gradients of the optimizer's parameters."""
    for parameter, gradient in zip(parameters_of(optimizer), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


@torch.no_grad()
def update_targets(networks: SACNetworks, tau: float) -> None:
    """Polyak averaging after every gradient step: target <- (1 - tau) target + tau critic."""
    torch._foreach_lerp_(
        list(networks.target_critic.parameters()), list(networks.critic.parameters()), tau
    )


State = dict[str, Tensor]


class SAC:
    """The networks of S seeds with their optimizers: what `OfflineTraining` trains.

    Args:
        networks: on the device where they train.
        settings: hyperparameters.
        max_q: the largest |Q| that the data's rewards allow, max |r| / (1 - gamma).
    """

    def __init__(self, networks: SACNetworks, settings: OfflineSettings, max_q: float) -> None:
        self.networks, self.settings, self.max_q = networks, settings, max_q
        self.optimizers = SACOptimizers.create(networks, settings)

    def begin_epoch(self, actor_lr: float) -> None:
        """What changes from epoch to epoch only."""
        for group in self.optimizers.actor.param_groups:
            group["lr"] = actor_lr

    def draw_noise(self, generators: Sequence[torch.Generator], steps: int) -> tuple[Tensor, ...]:
        """The random numbers of `steps` gradient steps, `[S, steps, ...]` each."""
        shape = (2, steps, self.settings.batch_size, self.networks.action_dim)
        return randn(generators, *shape).unbind(dim=1)

    def gradient_step(self, batch: Transition, noise: tuple[Tensor, ...]) -> StepStatistics:
        """One step on a batch `[S, B]`, real rows first, with one step's noise `[S, ...]`."""
        step_noise = StepNoise(*noise)
        return gradient_step(self.networks, self.optimizers, self.settings, batch, step_noise)

    def state_dict(self) -> State:
        """All that training changes, as flat tensors, the seed axis first."""
        state = {f"networks/{k}": v.detach() for k, v in self.networks.state_dict().items()}
        for name, optimizer in self.optimizers._asdict().items():
            state |= optimizer_state(optimizer, f"optimizers/{name}/")
        return state

    def load_state_dict(self, state: State) -> None:
        self.networks.load_state_dict(below(state, "networks/"))
        for name, optimizer in self.optimizers._asdict().items():
            load_optimizer_state(optimizer, below(state, f"optimizers/{name}/"))


def optimizer_state(optimizer: torch.optim.Optimizer, prefix: str) -> State:
    """An optimizer's moments and counters as flat tensors, named `<prefix><index>/<moment>`."""
    return {
        f"{prefix}{index}/{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: State) -> None:
    """The inverse of `optimizer_state`, its prefix removed."""
    values: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        index, name = key.split("/")
        values.setdefault(int(index), {})[name] = value.clone()
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": values, "param_groups": groups})


def below(state: State, prefix: str) -> State:
    """The entries whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
