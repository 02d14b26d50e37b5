"""Small tasks and trainings that the tests of the maths share."""

import pytest
import torch

from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.offline import NETWORK_STREAM, OfflineTraining
from algorithms.randomness import seed_generators
from algorithms.sac import SACNetworks
from algorithms.settings import EnsembleSettings, MOPOSettings
from algorithms.transitions import Transition

OBS_DIM, ACTION_DIM = 3, 2


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def linear_data():
    """`n` transitions of a linear-Gaussian system with known noise stds."""

    def make(n, seed=0, delta_std=0.1, reward_std=0.05):
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

    return make


@pytest.fixture
def mopo_settings():
    """MOPO in miniature; 4 epochs are 100 gradient steps, and the ring buffer wraps."""

    def make(**changes):
        values = {
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
        return MOPOSettings(**{**values, **changes})

    return make


@pytest.fixture
def offline_training(linear_data, mopo_settings):
    """An `OfflineTraining` of the given seeds on an untrained ensemble of the same seeds."""

    def make(seeds, **changes):
        settings = mopo_settings(**changes)
        ensemble = DynamicsEnsemble(
            OBS_DIM, ACTION_DIM, settings.part(EnsembleSettings), seed_generators(0xE5, seeds)
        )
        networks = SACNetworks(
            OBS_DIM, ACTION_DIM, settings, seed_generators(NETWORK_STREAM, seeds)
        )
        return OfflineTraining(
            networks,
            linear_data(200),
            ensemble,
            settings,
            seeds,
            termination_fn=lambda next_obs: next_obs[..., 0].abs() > 1.5,
        )

    return make
