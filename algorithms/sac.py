"""Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905) for a stack of seeds.

The losses are plain functions of tensors with the seed axis first; each returns
one value per seed, `[S]`. `gradient_step` sums them over seeds: seeds share no
parameter, so each receives exactly the gradient it would receive alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.settings import OfflineSettings, SACSettings
from algorithms.stack.compilation import Run, run_eagerly
from algorithms.stack.mlp import StackedMLP
from algorithms.stack.randomness import randn
from algorithms.stack.transitions import Transition

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


def alpha_gradient(log_prob_S: Tensor, target_entropy: float) -> Tensor:
    """Gradient by log-alpha of -log_alpha (log pi(a|s) + target entropy), SAC eq. 18, `[S]`.

    `log_prob_S` is the mean of log pi(a|s) over the batch.
    """
    return -(log_prob_S + target_entropy)


class SACOptimizers(NamedTuple):
    """Adam for each group of parameters; elementwise, hence independent across seeds."""

    actor: torch.optim.Optimizer
    critic: torch.optim.Optimizer
    alpha: torch.optim.Optimizer

    @classmethod
    def create(cls, networks: SACNetworks, settings: SACSettings) -> SACOptimizers:
        return cls(
            actor=adam(networks.actor.parameters(), settings.actor_lr),
            critic=adam(networks.critic.parameters(), settings.critic_lr),
            alpha=adam([networks.log_alpha_S], settings.alpha_lr),
        )


def adam(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """Adam in one kernel, which on a GPU may be part of a CUDA graph."""
    parameters = list(parameters)
    # The first steps of an epoch, which no graph captures, are meant.
    warnings.filterwarnings("ignore", message=".*constructed with capturable=True")
    return torch.optim.Adam(parameters, lr, fused=True, capturable=parameters[0].is_cuda)


class StepNoise(NamedTuple):
    """Standard-normal noise of one gradient step."""

    next_action_SBA: Tensor
    action_SBA: Tensor


class StepStatistics(NamedTuple):
    """What one gradient step saw; detached, still on the device."""

    q_SB: Tensor  # mean over critics, at the batch's own actions if not said otherwise
    means: dict[str, Tensor]  # one value per seed, `[S]`


def gradient_step(
    networks: SACNetworks,
    optimizers: SACOptimizers,
    settings: SACSettings,
    batch: Transition,
    noise: StepNoise,
    run: Run = run_eagerly,
) -> StepStatistics:
    """One step of critics, actor, temperature and targets on a batch `[S, B]`.

    Args:
        networks: changed in place.
        optimizers: of these networks.
        settings: hyperparameters.
        batch: transitions.
        noise: this step's.
        run: calls the two functions that hold the arithmetic, compiled or not.
    """
    critic = run(critic_gradients, networks, batch, noise.next_action_SBA, settings.gamma)
    step_along(optimizers.critic, critic.gradients)
    actor = improve_policy(networks, optimizers, settings, batch.obs, noise.action_SBA, run)
    update_targets(networks, settings.tau)
    return StepStatistics(critic.q_SB, {"critic_loss": critic.loss_S, **actor.means})


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


def improve_policy(
    networks: SACNetworks,
    optimizers: SACOptimizers,
    settings: SACSettings,
    obs_SBO: Tensor,
    noise_SBA: Tensor,
    run: Run = run_eagerly,
) -> StepStatistics:
    """One step of the actor, then of the temperature; Q is at the policy's own actions."""
    alpha_S = networks.log_alpha_S.detach().exp()
    actor = run(actor_gradients, networks, obs_SBO, noise_SBA)
    step_along(optimizers.actor, actor.gradients)
    target_entropy = settings.target_entropy
    if target_entropy is None:
        target_entropy = -float(networks.action_dim)
    step_along(optimizers.alpha, [alpha_gradient(actor.log_prob_S, target_entropy)])
    means = {"actor_loss": actor.loss_S, "alpha": alpha_S, "entropy": -actor.log_prob_S}
    return StepStatistics(actor.q_SB, means)


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


class RewardScale(NamedTuple):
    """What the data's rewards say of the size of Q."""

    rms: float  # root mean square of r
    max_q: float  # max |r| / (1 - gamma): no policy's |Q| on these rewards is larger

    @classmethod
    def of(cls, reward_N: Tensor, gamma: float) -> RewardScale:
        largest = float(reward_N.abs().max())
        max_q = largest / (1.0 - gamma) if gamma < 1.0 else math.inf
        return cls(float(reward_N.square().mean().sqrt()), max_q)


class SAC:
    """The networks of S seeds with their optimizers: what `OfflineTraining` trains.

    Args:
        networks: on the device where they train.
        settings: hyperparameters.
        reward_scale: of the data.
        run: calls functions of the gradient step, compiled or not.
    """

    def __init__(
        self,
        networks: SACNetworks,
        settings: OfflineSettings,
        reward_scale: RewardScale,
        run: Run = run_eagerly,
    ) -> None:
        self.networks, self.settings, self.run = networks, settings, run
        self.reward_scale = reward_scale
        self.optimizers = SACOptimizers.create(networks, settings)

    @property
    def branch(self) -> Hashable:
        """What the Python of `gradient_step` branches on, beside what is fixed in an epoch."""
        return None

    def count_step(self) -> None:
        """A gradient step was taken, if without its Python."""

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
        return gradient_step(
            self.networks, self.optimizers, self.settings, batch, StepNoise(*noise), self.run
        )

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
