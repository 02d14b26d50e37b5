"""The Adroit tasks against D4RL's rules, restated here from the simulator's own state."""

import sys

import numpy as np
import pytest
import torch

from algorithms.environments.table import ENVIRONMENTS, make_env
from algorithms.errors import UserError

ADROIT = [env_id for env_id in ENVIRONMENTS if env_id.startswith("Adroit")]


def d4rls_reward(env_id, env) -> float:
    """`d4rl/hand_manipulation_suite/*_v0.py`, `step`."""
    sites = {name: env.data.site(name).xpos for name in ("S_grasp",)}
    palm = sites["S_grasp"]
    if env_id == "AdroitHandDoor-v1":
        handle, hinge = env.data.site("S_handle").xpos, env.data.joint("door_hinge").qpos[0]
        reward = -0.1 * np.linalg.norm(palm - handle) - 0.1 * (hinge - 1.57) ** 2
        reward -= 1e-5 * np.sum(env.data.qvel**2)
        return reward + 2 * (hinge > 0.2) + 8 * (hinge > 1.0) + 10 * (hinge > 1.35)
    if env_id == "AdroitHandHammer-v1":
        hammer, tool = env.data.body("Object").xpos, env.data.site("tool").xpos
        nail, goal = env.data.site("S_target").xpos, env.data.site("nail_goal").xpos
        reward = -0.1 * np.linalg.norm(palm - hammer) - np.linalg.norm(tool - nail)
        reward -= 10 * np.linalg.norm(nail - goal) + 1e-2 * np.linalg.norm(env.data.qvel)
        left = np.linalg.norm(nail - goal)
        lifted = hammer[2] > 0.04 and tool[2] > 0.04
        return reward + 2 * lifted + 25 * (left < 0.02) + 75 * (left < 0.01)
    ball, goal = env.data.body("Object").xpos, env.data.site("target").xpos
    reward = -0.1 * np.linalg.norm(palm - ball)
    left = np.linalg.norm(ball - goal)
    if ball[2] > 0.04:
        reward += 1 - 0.5 * np.linalg.norm(palm - goal) - 0.5 * left
    return reward + 10 * (left < 0.1) + 20 * (left < 0.05)


@pytest.mark.parametrize("env_id", [name for name in ADROIT if "Pen" not in name])
def test_rewards_are_d4rls(env_id):
    """gymnasium-robotics' own reward the distance between the hand and what it should reach."""
    pytest.importorskip("gymnasium_robotics")
    env = make_env(env_id)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(100):
        _, reward, terminated, _, _ = env.step(env.action_space.sample())
        assert reward == pytest.approx(d4rls_reward(env_id, env.unwrapped), abs=1e-9)
        assert not terminated


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ADROIT)
def test_a_random_policy_has_about_d4rls_return_of_one(env_id):
    pytest.importorskip("gymnasium_robotics")
    env, returns = make_env(env_id), []
    env.action_space.seed(0)
    for seed in range(30):
        env.reset(seed=seed)
        returns.append(0.0)
        done = False
        while not done:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            returns[-1] += reward
            done = terminated or truncated
    error = np.std(returns) / np.sqrt(len(returns))
    assert abs(np.mean(returns) - ENVIRONMENTS[env_id].random_return) < 3 * error + 3


def test_a_pen_that_is_dropped_ends_the_episode_as_a_model_is_told():
    pytest.importorskip("gymnasium_robotics")
    env = make_env("AdroitHandPen-v1")
    env.action_space.seed(0)
    observed, ends = [], []
    for seed in range(20):
        env.reset(seed=seed)
        done = False
        while not done:
            obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
            assert terminated == (env.unwrapped.data.body("Object").xpos[2] < 0.075)
            observed.append(obs)
            ends.append(terminated)
            done = terminated or truncated
    assert set(ends) == {False, True}
    predicted = ENVIRONMENTS["AdroitHandPen-v1"].termination(torch.from_numpy(np.stack(observed)))
    assert predicted.tolist() == ends


@pytest.mark.parametrize("env_id", ADROIT)
def test_without_the_package_the_sentence_says_what_to_install(env_id, monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(UserError) as caught:
        make_env(env_id)
    assert str(caught.value) == (
        f"environment {env_id} needs the package gymnasium-robotics: "
        "pip install 'orchestrator-rl[adroit]'"
    )
