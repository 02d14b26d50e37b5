"""Termination functions against the simulators whose rules they restate."""

import numpy as np
import pytest
import torch

from algorithms.environments.table import ENVIRONMENTS, make_env

ROBOTS = ["Hopper-v4", "Walker2d-v4", "HalfCheetah-v4"]


def healthy(env_id: str) -> torch.Tensor:
    obs = torch.zeros(ENVIRONMENTS[env_id].obs_dim)
    obs[0] = 1.25
    if env_id == "AdroitHandPen-v1":
        obs[26] = 0.2
    if env_id == "InvertedDoublePendulum-v4":
        obs[3:5] = 1.0  # cosines of upright poles
    return obs


@pytest.mark.parametrize("env_id", ROBOTS)
def test_agrees_with_the_simulator_around_the_limits(env_id):
    env, rng = make_env(env_id).unwrapped, np.random.default_rng(0)
    env.action_space.seed(0)
    observed, terminated = [], []
    for _ in range(400):
        env.reset(seed=int(rng.integers(2**31)))
        qpos, qvel = env.data.qpos.copy(), env.data.qvel.copy()
        if env_id != "HalfCheetah-v4":
            limit = {"Hopper-v4": 0.2, "Walker2d-v4": 1.0}[env_id]
            qpos[1] = rng.uniform(0.6, 2.2)  # height; the limits are 0.7, or 0.8 and 2.0
            qpos[2] = rng.uniform(-1.5, 1.5) * limit  # angle of the torso
        env.set_state(qpos, qvel)
        for _ in range(3):
            obs, _, done, _, _ = env.step(env.action_space.sample())
            observed.append(obs)
            terminated.append(done)
    predicted = ENVIRONMENTS[env_id].termination(torch.from_numpy(np.stack(observed)))
    assert predicted.tolist() == terminated
    assert set(terminated) == ({False} if env_id == "HalfCheetah-v4" else {False, True})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("env_id", ["Hopper-v4", "Walker2d-v4"])
def test_a_value_that_is_not_finite_ends_the_episode_wherever_it_is(env_id, value):
    dims = ENVIRONMENTS[env_id].obs_dim
    obs = healthy(env_id).repeat(dims, 1)
    assert not ENVIRONMENTS[env_id].termination(obs).any()
    obs.diagonal().fill_(value)
    assert ENVIRONMENTS[env_id].termination(obs).all()


@pytest.mark.parametrize("value", [100.0, -100.0, 1e6, -1e6])
def test_hopper_ends_on_either_side_of_the_range_of_states(value):
    obs = healthy("Hopper-v4").repeat(10, 1)
    obs[:, 1:].diagonal().fill_(value)
    assert ENVIRONMENTS["Hopper-v4"].termination(obs).all()


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_leading_axes_are_kept(env_id):
    done = ENVIRONMENTS[env_id].termination(healthy(env_id).expand(2, 3, 4, -1))
    assert done.shape == (2, 3, 4)
    assert done.dtype == torch.bool
    assert not done.any()
