"""A seed that diverges is marked and frozen; the others train as they would alone."""

import pytest
import torch

from algorithms.sac.agent import RewardScale
from algorithms.stack.state import select_seeds
from algorithms.training.loop import DIVERGED_Q

SEEDS = (3, 8)
AGENTS = {
    "mopo": ("mopo", {}),
    "combo": ("combo", {"beta": "learned"}),
    "previous_policy": ("combo", {"prior": "previous_policy"}),
    "cql": ("cql", {}),
    "mobile": ("mobile", {"clamp_target": False}),  # the clamp makes 0 of a reward of -1e30
}


@pytest.fixture(params=AGENTS)
def make(request, offline_training):
    """`make(seeds)`, a short training of one kind of agent."""
    algorithm, changes = AGENTS[request.param]

    def make(seeds=SEEDS):
        return offline_training(seeds, algorithm, **changes, gradient_steps_per_epoch=8)

    return make


def poison_rewards(training, position, value, at_step=4):
    """From its next epoch's `at_step` on, one seed's rewards are `value`; returns the cure."""
    step, count = training.agent.gradient_step, 0

    def poisoned(batch, noise):
        nonlocal count
        count += 1
        if count > at_step:
            reward = batch.reward.clone()
            reward[position] = value
            batch = batch._replace(reward=reward)
        return step(batch, noise)

    training.agent.gradient_step = poisoned

    def cure():
        training.agent.gradient_step = step

    return cure


def networks(training, position):
    state = training.state_dict()
    frozen = {k: v.clone() for k, v in state.items() if k.startswith(("networks/", "log_beta"))}
    return select_seeds(frozen, [position])


def assert_identical(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1e30])
@pytest.mark.parametrize("position", [0, 1])
def test_a_seed_that_explodes_in_an_epoch_keeps_the_networks_it_had_before(make, position, value):
    training, alone = make(), make(SEEDS[1 - position : 2 - position])
    training.train_epoch()
    alone.train_epoch()
    before = networks(training, position)
    assert all(x.isfinite().all() for x in before.values())

    cure = poison_rewards(training, position, value)
    for epoch in range(3):
        statistics = training.train_epoch()
        expected = alone.train_epoch()
        marks = [float(s == position) for s in (0, 1)]
        assert statistics["diverged"].tolist() == training.diverged_S.float().tolist() == marks
        for name, numbers in statistics.items():
            if name != "diverged":
                assert numbers[position].isnan(), name
                # The sibling's numbers are those of a training without company.
                torch.testing.assert_close(
                    numbers[1 - position], expected[name][0], rtol=1e-5, atol=1e-6, msg=name
                )
        assert_identical(networks(training, position), before)
        if epoch == 0:
            cure()  # a mark is for good, whatever comes after
    for name, weights in networks(training, 1 - position).items():
        torch.testing.assert_close(weights, networks(alone, 0)[name], rtol=1e-4, atol=1e-6)
    assert not alone.diverged_S.any()


def test_all_seeds_may_diverge(make):
    training = make()
    before = [networks(training, position) for position in (0, 1)]
    for position in (0, 1):
        poison_rewards(training, position, torch.nan, at_step=0)
    for _ in range(2):
        statistics = training.train_epoch()
        assert training.diverged_S.all()
        assert statistics.pop("diverged").tolist() == [1, 1]
        assert all(value.isnan().all() for value in statistics.values())
        for position in (0, 1):
            assert_identical(networks(training, position), before[position])
    assert training.epoch == 2


def test_a_mark_survives_an_interruption(make):
    training = make()
    poison_rewards(training, 1, torch.nan)
    training.train_epoch()
    state = {name: value.clone() for name, value in training.state_dict().items()}
    resumed = make()
    resumed.load_state_dict(state)
    assert resumed.diverged_S.tolist() == [False, True]
    before = networks(resumed, 1)
    statistics = resumed.train_epoch()
    assert statistics["diverged"].tolist() == [0, 1]
    assert statistics["critic_loss"].isnan().tolist() == [False, True]
    assert_identical(networks(resumed, 1), before)


def test_a_diverged_seed_has_no_score_from_then_on(make):
    training = make()
    training.record_scores(torch.tensor([30.0, 40.0]))
    poison_rewards(training, 1, torch.nan)
    training.train_epoch()
    training.record_scores(torch.tensor([50.0, 60.0]))
    score = training.run_score()
    assert float(score[0]) == 40.0
    assert score[1].isnan()


# --- what counts as diverged


def test_the_largest_q_that_rewards_allow():
    rewards = torch.tensor([1.0, -3.0, 2.0])
    assert RewardScale.of(rewards, 0.9).max_q == pytest.approx(30)
    assert RewardScale.of(rewards, 0.0).max_q == pytest.approx(3)
    assert RewardScale.of(rewards, 1.0).max_q == torch.inf
    assert RewardScale.of(rewards, 0.9).rms == pytest.approx((14 / 3) ** 0.5)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("algorithm", "gamma"), [("mbpo", 0.99), ("combo", 0.9), ("sac", 0.99)])
def test_q_beyond_ten_times_what_rewards_allow_has_diverged(
    offline_training, algorithm, gamma, sign
):
    """Critics that learn next to nothing, with one Q everywhere."""
    assert DIVERGED_Q == 10
    training = offline_training(
        SEEDS, algorithm, gamma=gamma, critic_lr=1e-12, gradient_steps_per_epoch=3
    )
    bound = 10 * float(training.data_NW[:, 3 + 2].abs().max()) / (1 - gamma)
    with torch.no_grad():
        training.networks.critic.weights[-1].zero_()
        training.networks.critic.biases[-1][0] = sign * bound * 0.99
        training.networks.critic.biases[-1][1] = sign * bound * 1.01
    assert training.train_epoch()["diverged"].tolist() == [0, 1]


def test_penalised_rewards_allow_a_larger_q(offline_training):
    """Of two seeds with one penalty, the Q is once within what the penalty allows, once beyond."""
    settings = {"penalty_coef": 1e3, "critic_lr": 1e-12, "gradient_steps_per_epoch": 3}
    gamma = 0.99
    training = offline_training(SEEDS, "mopo", gamma=gamma, **settings)
    largest_reward = float(training.data_NW[:, 3 + 2].abs().max())
    penalty_S = offline_training(SEEDS, "mopo", gamma=gamma, **settings).train_epoch()[
        "penalty_q99"
    ]
    bound_S = 10 * (largest_reward + 1e3 * penalty_S) / (1 - gamma)
    assert (bound_S > 20 * largest_reward / (1 - gamma)).all()
    with torch.no_grad():
        training.networks.critic.weights[-1].zero_()
        training.networks.critic.biases[-1][0] = -0.99 * bound_S[0]
        training.networks.critic.biases[-1][1] = -1.01 * bound_S[1]
    assert training.train_epoch()["diverged"].tolist() == [0, 1]


def test_the_bound_is_on_the_batchs_mean_of_the_magnitude(offline_training):
    """Not on its mean, in which signs cancel, nor on single rows."""
    training = offline_training(
        SEEDS, "sac", critic_lr=1e-12, gradient_steps_per_epoch=3, hidden=(2,), batch_size=200
    )
    bound = 10 * float(training.data_NW[:, 3 + 2].abs().max()) / (1 - 0.99)
    with torch.no_grad():
        critic = training.networks.critic
        for parameter in critic.parameters():
            parameter.zero_()
        critic.weights[0][..., 0, :] = torch.tensor([1.0, -1.0])  # relu(o), relu(-o)
        # Q = scale * o, whose mean is about 0; |o| has mean 0.8, its largest is near 3.
        scale = bound / training.data_NW[:, 0].abs().mean() * torch.tensor([0.8, 1.3])
        critic.weights[1][..., 0, 0] = scale[:, None]
        critic.weights[1][..., 1, 0] = -scale[:, None]
    assert training.train_epoch()["diverged"].tolist() == [0, 1]


def test_without_a_discount_there_is_no_bound(offline_training):
    training = offline_training(SEEDS, gamma=1.0, gradient_steps_per_epoch=3)
    with torch.no_grad():
        training.networks.critic.biases[-1][:] = 1e6
    assert training.train_epoch()["diverged"].tolist() == [0, 0]


@pytest.mark.parametrize("algorithm", ["mopo", "combo"])
def test_a_seed_whose_model_buffer_stays_empty_has_diverged(offline_training, algorithm):
    training = offline_training(SEEDS, algorithm, gradient_steps_per_epoch=3)
    alone = offline_training(SEEDS[1:], algorithm, gradient_steps_per_epoch=3)
    with torch.no_grad():
        for parameter in training.ensemble.parameters():
            parameter[0] = torch.nan
    before = networks(training, 0)
    statistics, expected = training.train_epoch(), alone.train_epoch()
    assert training.buffer.size_S[0] == 0
    assert training.diverged_S.tolist() == [True, False]
    assert_identical(networks(training, 0), before)
    for name, value in expected.items():
        torch.testing.assert_close(statistics[name][1], value[0], rtol=1e-5, atol=1e-6, msg=name)


def test_rollouts_that_all_end_at_once_are_no_divergence(offline_training):
    training = offline_training(SEEDS, gradient_steps_per_epoch=3)
    training.termination_fn = lambda next_obs: torch.ones(next_obs.shape[:-1], dtype=torch.bool)
    statistics = training.train_epoch()
    assert statistics["rollout_terminated"].tolist() == [1, 1]
    assert statistics["diverged"].tolist() == [0, 0]
