"""Soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905), and what an agent is.

An agent is made from one `Context` and asked at fixed points: what a rollout's rewards lose,
what happens before an epoch's steps, one gradient step on a batch, what it carries in a
checkpoint, what to report. `SAC` answers plainly; MOPO, MOBILE and COMBO change an answer or two.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.dynamics.penalties import PENALTIES, Penalty
from algorithms.dynamics.rollout import Rollout
from algorithms.sac.losses import actor_gradients, alpha_gradient, critic_gradients
from algorithms.sac.networks import SACNetworks
from algorithms.settings import OfflineSettings, SACSettings
from algorithms.stack.compilation import Call, call_eagerly
from algorithms.stack.optimizers import adam, load_optimizer_state, optimizer_state, step_along
from algorithms.stack.randomness import randn
from algorithms.stack.state import State, below
from algorithms.stack.transitions import Transition


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
    call: Call = call_eagerly,
) -> StepStatistics:
    """One step of critics, actor, temperature and targets on a batch `[S, B]`.

    Args:
        networks: changed in place.
        optimizers: of these networks.
        settings: hyperparameters.
        batch: transitions.
        noise: this step's.
        call: calls the two functions that hold the arithmetic, compiled or not.
    """
    critic = call(critic_gradients, networks, batch, noise.next_action_SBA, settings.gamma)
    step_along(optimizers.critic, critic.gradients)
    actor = improve_policy(networks, optimizers, settings, batch.obs, noise.action_SBA, call)
    update_targets(networks, settings.tau)
    return StepStatistics(critic.q_SB, {"critic_loss": critic.loss_S, **actor.means})


def improve_policy(
    networks: SACNetworks,
    optimizers: SACOptimizers,
    settings: SACSettings,
    obs_SBO: Tensor,
    noise_SBA: Tensor,
    call: Call = call_eagerly,
) -> StepStatistics:
    """One step of the actor, then of the temperature; Q is at the policy's own actions."""
    alpha_S = networks.log_alpha_S.detach().exp()
    actor = call(actor_gradients, networks, obs_SBO, noise_SBA)
    step_along(optimizers.actor, actor.gradients)
    target_entropy = settings.target_entropy
    if target_entropy is None:
        target_entropy = -float(networks.action_dim)
    step_along(optimizers.alpha, [alpha_gradient(actor.log_prob_S, target_entropy)])
    means = {"actor_loss": actor.loss_S, "alpha": alpha_S, "entropy": -actor.log_prob_S}
    return StepStatistics(actor.q_SB, means)


@torch.no_grad()
def update_targets(networks: SACNetworks, tau: float) -> None:
    """Polyak averaging after every gradient step: target <- (1 - tau) target + tau critic."""
    torch._foreach_lerp_(
        list(networks.target_critic.parameters()), list(networks.critic.parameters()), tau
    )


class RewardScale(NamedTuple):
    """What the data's rewards say of the size of Q."""

    rms: float  # root mean square of r
    max_q: float  # max |r| / (1 - gamma): no policy's |Q| on these rewards is larger

    @classmethod
    def of(cls, reward_N: Tensor, gamma: float) -> RewardScale:
        largest = float(reward_N.abs().max())
        max_q = largest / (1.0 - gamma) if gamma < 1.0 else math.inf
        return cls(float(reward_N.square().mean().sqrt()), max_q)


@dataclass(frozen=True)
class Context:
    """All that an agent is made from.

    Attributes:
        networks: of S seeds, on the device where they train.
        settings: hyperparameters.
        reward_scale: of the data.
        ensemble: trained dynamics of the same S seeds; None where no row is the model's.
        penalty_mean: of every seed's ensemble, penalties' means over the holdout, by name.
        call: calls the functions that hold the arithmetic, compiled or not.
    """

    networks: SACNetworks
    settings: OfflineSettings
    reward_scale: RewardScale
    ensemble: DynamicsEnsemble | None = None
    penalty_mean: Sequence[Mapping[str, float]] = ()
    call: Call = call_eagerly

    @property
    def device(self) -> torch.device:
        return self.networks.log_alpha_S.device

    @property
    def num_seeds(self) -> int:
        return self.networks.log_alpha_S.shape[0]


class SAC:
    """Soft actor-critic: what every agent is where it does not say otherwise.

    Attributes:
        steps_per_draw: gradient steps whose random numbers are drawn at once. More are fewer
            calls, and more memory: COMBO's 1000 steps would take 90 MB per seed.
    """

    steps_per_draw: ClassVar[int] = 100

    def __init__(self, context: Context) -> None:
        self.networks, self.settings, self.call = context.networks, context.settings, context.call
        self.reward_scale = context.reward_scale
        self.ensemble = context.ensemble
        if self.ensemble is not None:
            self.ensemble.to(context.device).requires_grad_(requires_grad=False)
        self.optimizers = SACOptimizers.create(self.networks, self.settings)
        # What the rewards of model rollouts lose: a coefficient per seed, times the penalty.
        self.penalty: Penalty = PENALTIES["none"]
        self.penalty_coef_S = torch.zeros(context.num_seeds, device=context.device)
        self.steps = 0  # gradient steps taken; whoever takes them counts

    @property
    def phase(self) -> Hashable:
        """What the Python of `gradient_step` branches on at `steps`: a CUDA graph is of one."""
        return None

    def begin_epoch(self, actor_lr: float) -> None:
        """Before an epoch's rollouts and steps."""
        for group in self.optimizers.actor.param_groups:
            group["lr"] = actor_lr

    def draw_noise(self, generators: Sequence[torch.Generator], steps: int) -> tuple[Tensor, ...]:
        """The random numbers of `steps` gradient steps, `[S, steps, ...]` each."""
        shape = (2, steps, self.settings.batch_size, self.networks.action_dim)
        return randn(generators, *shape).unbind(dim=1)

    def gradient_step(self, batch: Transition, noise: tuple[Tensor, ...]) -> StepStatistics:
        """One step on a batch `[S, B]`, real rows first, with one step's noise `[S, ...]`."""
        return gradient_step(
            self.networks, self.optimizers, self.settings, batch, StepNoise(*noise), self.call
        )

    def describe_rollout(self, model: Rollout) -> dict[str, Tensor]:
        """What to report of an epoch's rollouts, `[S]` each, beside what all agents report."""
        del model
        return {}

    def largest_q(self, statistics: Mapping[str, Tensor]) -> Tensor:
        """The largest |Q| that the rewards it learns from allow, `[S]`, on the CPU.

        Args:
            statistics: those that an epoch reports.
        """
        del statistics
        return torch.full((len(self.penalty_coef_S),), max(self.reward_scale.max_q, 1.0))

    def state_dict(self) -> State:
        """All that training changes, as flat tensors, the seed axis first."""
        state = {f"networks/{k}": v.detach() for k, v in self.networks.state_dict().items()}
        for name, optimizer in self.optimizers._asdict().items():
            state |= optimizer_state(optimizer, f"optimizers/{name}/")
        return state | {"steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: State) -> None:
        self.networks.load_state_dict(below(state, "networks/"))
        for name, optimizer in self.optimizers._asdict().items():
            load_optimizer_state(optimizer, below(state, f"optimizers/{name}/"))
        # Once COMBO alone had it, the only one that branches on it.
        self.steps = int(state.get("steps", 0))
