"""A linear-Gaussian task and trainings in miniature, which tests and golden values share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from algorithms import ALGORITHMS
from algorithms.combo.settings import COMBOSettings
from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.dynamics.penalties import Prediction
from algorithms.sac.agent import SAC, Context, RewardScale
from algorithms.sac.networks import SACNetworks
from algorithms.settings import EnsembleSettings, OfflineSettings
from algorithms.stack.randomness import seed_generators
from algorithms.stack.transitions import Transition
from algorithms.training.loop import NETWORK_STREAM, OfflineTraining

OBS_DIM, ACTION_DIM = 3, 2
REWARD_SCALE = RewardScale(rms=0.7, max_q=100.0)  # where there is no data
SIZES = {
    "hidden": (16, 16),
    "dynamics_hidden": (8,),
    "dynamics_weight_decay": (1e-5, 1e-5),
    "num_ensemble": 3,
    "num_elites": 2,
    "batch_size": 32,
    "real_ratio": 0.25,
    "rollout_batch_size": 20,
    "rollout_length": 3,
    "rollout_retain_epochs": 2,
    "gradient_steps_per_epoch": 25,
}
# As COMBO needs 30 actions per state, it takes fewer of each; beta starts to learn at once.
COMBO_SIZES = SIZES | {
    "num_action_samples": 3,
    "beta_lr": 1e-2,
    "beta_warmup_steps": 0,
    "beta_threshold": 0.25,
}

# MOBILE's variants, by the settings that make them.
MOBILE_VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "soft_backup": {"backup": "soft"},
    "no_clamp": {"clamp_target": False},
    "fixed_alpha": {"alpha": 0.2},
}

# COMBO's variants of the report, and ours, by the settings that make them.
COMBO_VARIANTS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "learned": {"beta": "learned"},
    "previous_policy": {"prior": "previous_policy"},
    "learned_previous_policy": {"beta": "learned", "prior": "previous_policy"},
    "no_dataset_q": {"maximize_dataset_q": False},
    "balanced": {"importance": "balanced"},
    "model_states_soft_backup": {"rho_states": "model", "backup": "soft", "temperature": 0.5},
}


def linear_data(
    n: int, seed: int = 0, delta_std: float = 0.1, reward_std: float = 0.05
) -> Transition:
    """`n` transitions of a linear-Gaussian system with known noise stds."""
    g = torch.Generator().manual_seed(seed)
    obs = torch.randn(n, OBS_DIM, generator=g)
    action = torch.rand(n, ACTION_DIM, generator=g) * 2 - 1
    drift = torch.randn(OBS_DIM + ACTION_DIM, OBS_DIM + 1, generator=g) * 0.5
    outcome = torch.cat([obs, action], dim=1) @ drift
    noise = torch.randn(n, OBS_DIM + 1, generator=g)
    stds = torch.tensor([delta_std] * OBS_DIM + [reward_std])
    outcome = outcome + noise * stds
    terminal = (torch.rand(n, generator=g) < 0.1).float()
    return Transition(obs, action, outcome[:, -1], obs + outcome[:, :-1], terminal)


def small_settings(algorithm: str = "mopo", **changes: Any) -> OfflineSettings:
    """An algorithm in miniature; 4 epochs are 100 gradient steps, and the ring buffer wraps."""
    entry = ALGORITHMS[algorithm]
    sizes = COMBO_SIZES if issubclass(entry.settings, COMBOSettings) else SIZES
    return entry.settings(**(sizes | dict(entry.pinned) | changes))


def small_agent(
    algorithm: str,
    settings: OfflineSettings,
    seeds: Sequence[int] = (3, 8),
    reward_scale: RewardScale = REWARD_SCALE,
    **context: Any,
) -> SAC:
    """The algorithm's agent on new networks."""
    networks = SACNetworks(OBS_DIM, ACTION_DIM, settings, seed_generators(NETWORK_STREAM, seeds))
    return ALGORITHMS[algorithm].agent_class()(Context(networks, settings, reward_scale, **context))


def small_ensemble(settings: OfflineSettings, seeds: Sequence[int] = (3, 8)) -> DynamicsEnsemble:
    """Untrained."""
    part = settings.part(EnsembleSettings)
    return DynamicsEnsemble(OBS_DIM, ACTION_DIM, part, seed_generators(0xE5, seeds))


def random_batch(num_seeds: int = 2, rows: int = 32, seed: int = 0) -> Transition:
    """`[S, B]` transitions in no relation to each other; about one in six is terminal."""
    g = torch.Generator().manual_seed(seed)
    lead = (num_seeds, rows)
    return Transition(
        torch.randn(*lead, OBS_DIM, generator=g),
        torch.rand(*lead, ACTION_DIM, generator=g) * 2 - 1,
        torch.randn(*lead, generator=g),
        torch.randn(*lead, OBS_DIM, generator=g),
        (torch.rand(*lead, generator=g) < 1 / 6).to(torch.get_default_dtype()),
    )


def step_noise(agent: SAC, seed: int = 0) -> tuple[Tensor, ...]:
    """The noise of one gradient step."""
    seeds = range(seed, seed + agent.networks.log_alpha_S.shape[0])
    return tuple(x[:, 0] for x in agent.draw_noise(seed_generators(0x57E9, seeds), 1))


def descend_plainly(agent: SAC) -> None:
    """Replace Adam by plain gradient descent, whose steps show the gradients."""
    settings = agent.settings
    lrs = {"actor": settings.actor_lr, "critic": settings.critic_lr, "alpha": settings.alpha_lr}
    groups = {name: getattr(agent.optimizers, name).param_groups[0] for name in lrs}
    agent.optimizers = agent.optimizers._replace(
        **{name: torch.optim.SGD(groups[name]["params"], lr) for name, lr in lrs.items()}
    )


def offline_training(
    seeds: Sequence[int],
    algorithm: str = "mopo",
    *,
    data: Transition | None = None,
    penalty_mean: Sequence[dict[str, float]] = (),
    **changes: Any,
) -> OfflineTraining:
    """An `OfflineTraining` of the given seeds on an untrained ensemble of the same seeds."""
    settings = small_settings(algorithm, **changes)
    data = linear_data(200) if data is None else data
    ensemble = small_ensemble(settings, seeds) if settings.uses_model else None
    agent = small_agent(
        algorithm,
        settings,
        seeds,
        RewardScale.of(data.reward, settings.gamma),
        ensemble=ensemble,
        penalty_mean=penalty_mean,
    )
    return OfflineTraining(
        agent, data, seeds, termination_fn=lambda next_obs: next_obs[..., 0].abs() > 1.5
    )


def predict_the_action(ensemble: DynamicsEnsemble) -> None:
    """Every member predicts the action as the change of the state, and half of it as reward."""

    def predict(obs: Tensor, action: Tensor, member: Tensor) -> Prediction:
        change = torch.cat([action, action[..., :1]], dim=-1)
        mean = torch.cat([change, 0.5 * obs[..., :1]], dim=-1)[:, None].expand(-1, 3, -1, -1)
        return Prediction(mean, torch.zeros_like(mean), member)

    ensemble.predict = predict
