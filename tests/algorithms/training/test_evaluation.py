"""What an evaluation tells of a policy, in the environment and in the model."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from small_tasks import predict_the_action

from algorithms.environments.episodes import Evaluator
from algorithms.environments.table import normalized_score
from algorithms.sac.networks import SACNetworks
from algorithms.settings import SACSettings
from algorithms.stack.randomness import seed_generators
from algorithms.training.evaluation import PolicyEvaluation

ENV = "Hopper-v4"


@pytest.fixture
def evaluation_of():
    """A training's evaluation, whose episodes in the model begin in given states."""
    opened = []

    def evaluation_of(training, start_obs):
        opened.append(
            PolicyEvaluation(
                deepcopy(training.networks.actor),
                ENV,
                training.seeds,
                len(start_obs),
                training.ensemble,
                start_obs,
                training.termination_fn,
            )
        )
        return opened[-1]

    yield evaluation_of
    for evaluation in opened:
        evaluation.close()


def weights_of(training):
    return training.networks.actor.state_dict()


@pytest.mark.parametrize("epoch", [1, 7])
def test_an_evaluation_in_the_environment_is_the_evaluators(epoch):
    networks = SACNetworks(11, 3, SACSettings(hidden=(8,)), seed_generators(0, range(2)))
    evaluation = PolicyEvaluation(
        deepcopy(networks.actor), ENV, (0, 1), 3, None, torch.empty(0, 11)
    )
    networks.actor.weights[-1].data *= 30  # episodes of different lengths
    scores = evaluation.evaluate(networks.actor.state_dict(), epoch)
    evaluation.close()
    with Evaluator(ENV, 2, 3) as evaluator:
        returns_SB = evaluator.returns(lambda obs: networks.policy(obs).mode(), epoch)
    assert scores.keys() == {"episode_return", "normalized_score"}  # no model, no return in it
    np.testing.assert_array_equal(scores["episode_return"], returns_SB.mean(axis=1))
    assert scores["episode_return"].unique().shape == (2,)
    expected = normalized_score(ENV, returns_SB).mean(axis=1)
    np.testing.assert_allclose(scores["normalized_score"], expected)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)  # two would slow every test that follows


def test_it_computes_on_one_thread_and_gives_back_the_others(
    offline_training, evaluation_of, two_threads
):
    training, threads = offline_training((3, 8)), []

    def never(next_obs):
        threads.append(torch.get_num_threads())
        return torch.zeros(next_obs.shape[:-1], dtype=torch.bool)

    training.termination_fn = never
    evaluation_of(training, torch.zeros(1, 3)).model_return(weights_of(training), 0, length=1)
    assert (threads, torch.get_num_threads()) == ([1], 2)


@torch.no_grad()
def test_the_models_return_is_that_of_whole_episodes_of_the_deterministic_policy(
    offline_training, evaluation_of
):
    training = offline_training((3, 8), penalty_coef=100.0)  # no penalty enters a return
    predict_the_action(training.ensemble)  # r = s_0 / 2, s' = s + (a, a_0)
    for parameter in training.networks.actor.parameters():
        parameter.zero_()
    training.networks.actor.biases[-1][:, 0, 0] = torch.tensor([0.5, -0.3])  # tanh of it per step
    start = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.2, 0.5, 0.5]])
    end, length = 1.3, 5
    training.termination_fn = lambda next_obs: next_obs[..., 0] > end

    expected = []
    for change in (math.tanh(0.5), math.tanh(-0.3)):
        returns = []
        for x in start[:, 0].tolist():
            state, total = x, 0.0
            for _ in range(length):
                total += 0.5 * state
                state += change
                if state > end:  # the reward of the step that ends it counts
                    break
            returns.append(total)
        expected.append(sum(returns) / len(returns))
    model_return_S = evaluation_of(training, start).model_return(weights_of(training), 0, length)
    torch.testing.assert_close(model_return_S, torch.tensor(expected))


def test_asking_for_the_models_return_changes_nothing(offline_training, evaluation_of):
    start = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    asked, unasked, alone = (offline_training(seeds) for seeds in ((3, 8), (3, 8), (8,)))
    evaluation, evaluation_alone = (evaluation_of(training, start) for training in (asked, alone))
    returns = []
    for epoch in range(2):
        returns.append(evaluation.model_return(weights_of(asked), epoch, length=4))
        assert torch.equal(evaluation.model_return(weights_of(asked), epoch, length=4), returns[-1])
        own = evaluation_alone.model_return(weights_of(alone), epoch, length=4)
        torch.testing.assert_close(own, returns[-1][1:], rtol=1e-5, atol=1e-5)
        for training in (asked, unasked, alone):
            training.train_epoch()
    assert not torch.equal(*returns)
    for name, value in asked.state_dict().items():
        torch.testing.assert_close(
            value, unasked.state_dict()[name], rtol=0, atol=0, equal_nan=True
        )
