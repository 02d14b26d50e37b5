"""The table of environments, and that light modules stay light."""

import subprocess
import sys
import warnings

import pytest

from algorithms.environments.table import ENVIRONMENTS, make_env, normalized_score


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_sizes_are_those_of_the_simulator_and_making_it_warns_of_nothing(env_id):
    if env_id.startswith("Adroit"):
        pytest.importorskip("gymnasium_robotics")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = make_env(env_id)
    assert [str(w.message) for w in caught if "out of date" in str(w.message)] == []
    assert env.observation_space.shape == (ENVIRONMENTS[env_id].obs_dim,)
    assert env.action_space.shape == (ENVIRONMENTS[env_id].action_dim,)
    limits = {"AdroitHandPen-v1": 100, "AdroitHandHammer-v1": 200, "AdroitHandDoor-v1": 200}
    limits["AdroitHandRelocate-v1"] = 200
    assert env.spec.max_episode_steps == limits.get(env_id, 1000)


def test_scores_are_0_for_random_and_100_for_expert_and_linear_between():
    env = ENVIRONMENTS["Hopper-v4"]
    assert normalized_score("Hopper-v4", env.random_return) == 0
    assert normalized_score("Hopper-v4", env.expert_return) == 100
    half_way = (env.random_return + env.expert_return) / 2
    assert normalized_score("Hopper-v4", half_way) == pytest.approx(50)


def test_data_sets_are_resolved_and_loaded_without_torch():
    code = (
        "import sys, algorithms.data.source as s; "
        "s.resolve('bundled/hopper-medium'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
