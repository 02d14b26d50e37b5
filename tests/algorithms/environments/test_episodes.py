"""Evaluation plays exactly N whole episodes per policy, and a run's score is an honest mean."""

import numpy as np
import pytest
import torch

from algorithms.environments.episodes import EVALUATION_STREAM, Evaluator
from algorithms.environments.table import make_env, normalized_score
from algorithms.stack.randomness import stream_seed

ENV, SEEDS, EPISODES = "Hopper-v4", 3, 4


@pytest.fixture(scope="module")
def weights():
    """Three linear policies whose episodes last differently long."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(SEEDS, 11, 3, generator=generator)
        * torch.tensor([0.0, 0.5, 2.0])[:, None, None]
    )


@pytest.fixture(scope="module")
def evaluator():
    with Evaluator(ENV, SEEDS, EPISODES) as evaluator:
        yield evaluator


def act(weights):
    def policy(obs):
        assert obs.shape == (SEEDS, EPISODES, 11)
        return torch.tanh(obs @ weights)

    return policy


def plain_episode(weight, reset_seed):
    env = make_env(ENV)
    obs, _ = env.reset(seed=reset_seed)
    total, steps, done = 0.0, 0, False
    while not done:
        action = torch.tanh(torch.from_numpy(obs.astype(np.float32)) @ weight)
        obs, reward, terminated, truncated, _ = env.step(action.numpy())
        total, steps, done = total + reward, steps + 1, terminated or truncated
    return total, steps


def test_returns_are_those_of_a_plain_loop_over_whole_episodes(evaluator, weights):
    returns = evaluator.returns(act(weights), evaluation=5)
    plain = [
        [plain_episode(w, stream_seed(EVALUATION_STREAM, 5, b)) for b in range(EPISODES)]
        for w in weights
    ]
    lengths = {steps for episodes in plain for _, steps in episodes}
    assert len(lengths) > 3  # short episodes wait for long ones, and are not played again
    np.testing.assert_allclose(
        returns, [[total for total, _ in episodes] for episodes in plain], rtol=1e-4
    )


def first_observations(evaluator, evaluation):
    seen = []

    def policy(obs):
        seen.append(obs.clone())
        return torch.ones(SEEDS, EPISODES, 3)

    evaluator.returns(policy, evaluation)
    return seen[0]


def test_initial_states_depend_on_the_evaluations_index_alone(evaluator):
    first, again, other = (first_observations(evaluator, k) for k in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, first[:1].expand_as(first))  # the same for every policy
    states = torch.cat([first[0], other[0]])
    assert len(states.unique(dim=0)) == 2 * EPISODES


@pytest.mark.parametrize(
    ("env_id", "random", "expert"),
    [
        ("Hopper-v4", -20.272305, 3234.3),
        ("Walker2d-v4", 1.629008, 4592.3),
        ("HalfCheetah-v4", -280.178953, 12135.0),
    ],
)
def test_normalised_scores_are_d4rls(env_id, random, expert):
    returns = np.array([random, expert, 1000.0])
    expected = [0, 100, 100 * (1000 - random) / (expert - random)]
    np.testing.assert_allclose(normalized_score(env_id, returns), expected, atol=1e-12)


def test_a_runs_score_is_the_mean_of_its_last_ten_evaluations_never_the_best(offline_training):
    training = offline_training((0, 1))
    assert training.run_score().isnan().all()
    scores = [[float(n), 100.0 if n == 2 else 1.0] for n in range(13)]
    for count, score in enumerate(scores, start=1):
        training.record_scores(torch.tensor(score, dtype=torch.float64))
        np.testing.assert_allclose(
            training.run_score(), np.mean(scores[max(0, count - 10) : count], axis=0), rtol=1e-6
        )
    # The best evaluation of the second seed has left the window.
    assert training.run_score().tolist() == [7.5, 1.0]


def test_a_run_that_turned_nan_has_no_score_and_its_sibling_keeps_its_own(offline_training):
    training = offline_training((0, 1))
    for score in ([50.0, 1.0], [60.0, 2.0], [torch.nan, 3.0]):
        training.record_scores(torch.tensor(score))
    assert training.run_score()[0].isnan()
    assert float(training.run_score()[1]) == 2.0


def test_a_policy_that_is_nan_has_nan_returns_and_disturbs_no_other(
    evaluator, weights, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    healthy = evaluator.returns(act(weights), evaluation=3)
    broken = weights.clone()
    broken[1] = torch.nan
    returns = evaluator.returns(act(broken), evaluation=3)
    assert np.isnan(returns[1]).all()
    np.testing.assert_array_equal(returns[[0, 2]], healthy[[0, 2]])
    assert not list(tmp_path.iterdir())  # MuJoCo logs unstable simulations to a file
