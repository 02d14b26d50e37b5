"""MOBILE's targets: their penalty in closed form, where it applies, and how alpha is bounded."""

import math

import pytest
import torch
from small_tasks import (
    OBS_DIM,
    offline_training,
    random_batch,
    small_agent,
    small_ensemble,
    small_settings,
    step_noise,
)

from algorithms.mobile.agent import CriticGradients, inconsistency
from algorithms.stack import chunks

REAL = 8  # rows of 32
SEEDS = 2


def agent(**changes):
    settings = small_settings("mobile", **changes)
    return small_agent("mobile", settings, ensemble=small_ensemble(settings))


def step(mobile, batch=None, noise=None):
    """One step's statistics per seed."""
    batch = random_batch() if batch is None else batch
    return mobile.gradient_step(batch, step_noise(mobile) if noise is None else noise).means


@torch.no_grad()
def predict(ensemble, change_SED, std):
    """Every member predicts a change of its own, whatever the state, and every std is `std`."""
    ensemble.network.weights[-1].zero_()
    ensemble.network.biases[-1].zero_()
    ensemble.network.biases[-1][..., 0, : change_SED.shape[-1]] = change_SED
    # The clamp is soft: bounds that meet leave their middle, less log 2.
    log_var = 2 * math.log(std)
    ensemble.min_log_var_SD.fill_(log_var - 1e3)
    ensemble.max_log_var_SD.fill_(log_var + math.log(2.0))
    ensemble.network.biases[-1][..., 0, change_SED.shape[-1] :] = log_var + math.log(2.0)


def value_linearly(networks, weight_O, offsets=(0.0, 0.0)):
    """Target critic c becomes weight . s + offsets[c]."""
    offset_C = torch.tensor(offsets)

    def target_q(obs, action):
        return (obs @ weight_O)[:, None] + offset_C[:, None]

    networks.target_q = target_q


@torch.no_grad()
def zero_targets(mobile):
    for parameter in mobile.networks.target_critic.parameters():
        parameter.zero_()


# --- u in closed form


def test_certain_members_and_linear_critics_give_the_spread_of_their_predictions():
    mobile = agent(num_ensemble=4, num_elites=3, num_next_samples=2)
    mobile.ensemble.elites_SK.copy_(torch.tensor([[2, 0, 3], [1, 3, 2]]))
    change = torch.randn(SEEDS, 4, OBS_DIM + 1, generator=torch.Generator().manual_seed(1))
    predict(mobile.ensemble, change, std=1e-12)
    weight = torch.tensor([1.0, -2.0, 0.5])
    value_linearly(mobile.networks, weight, offsets=(3.0, -1.0))
    seen = mobile._inconsistency(random_batch(), step_noise(mobile)[2])
    assert seen.shape == (SEEDS, 32 - REAL)
    for s, elites in enumerate(([2, 0, 3], [1, 3, 2])):
        expected = (change[s, elites, :OBS_DIM] @ weight).std()  # unbiased, of the elites alone
        assert abs(expected - (change[s, :, :OBS_DIM] @ weight).std()) > 0.05
        torch.testing.assert_close(seen[s], expected.expand(32 - REAL), rtol=1e-4, atol=1e-4)


def test_members_that_are_one_differ_by_the_noise_of_their_means_alone():
    """M means of K samples each: E[std] = c4(M) |weight . std| / sqrt(K)."""
    elites, samples, std = 5, 4, 0.3
    mobile = agent(
        num_ensemble=elites, num_elites=elites, num_next_samples=samples, batch_size=8000
    )
    predict(mobile.ensemble, torch.ones(SEEDS, elites, OBS_DIM + 1), std)
    weight = torch.tensor([1.0, -2.0, 0.5])
    value_linearly(mobile.networks, weight)
    seen = mobile._inconsistency(random_batch(rows=8000), step_noise(mobile)[2])
    c4 = math.sqrt(2 / (elites - 1)) * math.gamma(elites / 2) / math.gamma((elites - 1) / 2)
    expected = c4 * std * float(weight.norm()) / math.sqrt(samples)
    assert seen.mean(dim=1).tolist() == pytest.approx([expected] * SEEDS, rel=0.02)


def test_members_that_are_one_with_the_same_noise_agree():
    mobile = agent()
    noise = step_noise(mobile)[2]
    same = noise[:, :, :1].expand_as(noise)
    with torch.no_grad():
        for parameter in mobile.ensemble.network.parameters():
            parameter.copy_(parameter[:, :1].expand_as(parameter))
    assert (mobile._inconsistency(random_batch(), noise) > 1e-4).all()
    seen = mobile._inconsistency(random_batch(), same)
    torch.testing.assert_close(seen, torch.zeros_like(seen), rtol=0, atol=1e-6)


def test_inconsistency_is_positive_and_scales_with_q_but_not_with_its_level():
    mobile = agent()
    batch, noise = random_batch(), step_noise(mobile)[2]
    seen = mobile._inconsistency(batch, noise)
    assert (seen > 0).all()
    assert not seen.requires_grad
    with torch.no_grad():
        mobile.networks.target_critic.biases[-1].add_(7.0)
        torch.testing.assert_close(mobile._inconsistency(batch, noise), seen, rtol=1e-4, atol=1e-5)
        mobile.networks.target_critic.weights[-1].mul_(3.0)
        mobile.networks.target_critic.biases[-1].mul_(3.0)
    torch.testing.assert_close(mobile._inconsistency(batch, noise), 3 * seen, rtol=1e-4, atol=1e-5)


def test_chunks_of_rows_give_what_all_rows_at_once_give(monkeypatch):
    mobile = agent()
    batch, noise = random_batch(), step_noise(mobile)[2]
    model = slice(REAL, None)
    whole = inconsistency(
        mobile.networks, mobile.ensemble, batch.obs[:, model], batch.action[:, model], noise
    )
    monkeypatch.setattr(chunks, "CPU_CHUNK", 10)
    monkeypatch.setattr(chunks, "MIN_CPU_CHUNK", 1)
    calls = []

    def counted(function, *args):
        calls.append(function)
        return function(*args)

    mobile.call = counted
    torch.testing.assert_close(mobile._inconsistency(batch, noise), whole)
    assert len(calls) == 5  # 24 rows, 5 at once


# --- the target


def critic_result(mobile, batch):
    """What the critics' part of one step computes."""
    results = []

    def recorded(function, *args):
        results.append(function(*args))
        return results[-1]

    mobile.call = recorded
    means = step(mobile, batch)
    return next(r for r in results if isinstance(r, CriticGradients)), means


def test_rows_of_the_data_are_not_penalised_and_the_models_are_by_the_coefficient():
    coef = 40.0
    mobile = agent(penalty_coef=coef, clamp_target=False)
    batch = random_batch()
    u = mobile._inconsistency(batch, step_noise(mobile)[2])
    result, means = critic_result(mobile, batch)
    assert torch.equal(result.penalty_SB[:, :REAL], torch.zeros(SEEDS, REAL))
    torch.testing.assert_close(result.penalty_SB[:, REAL:], coef * u, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(means["inconsistency"], u.mean(dim=1))
    torch.testing.assert_close(means["target_penalty"], coef * u.mean(dim=1), rtol=1e-4, atol=1e-5)


def test_targets_below_0_become_0_where_the_clamp_is_on():
    batch = random_batch()
    assert (batch.reward < -0.5).any()
    for clamp in (True, False):
        mobile = agent(clamp_target=clamp)
        zero_targets(mobile)  # a Q of 0 is worth the same in all models
        with torch.no_grad():
            q = mobile.networks.q(batch.obs, batch.action)
        y = batch.reward.clamp(min=0.0) if clamp else batch.reward
        expected = (q - y[:, None]).square().mean(dim=-1).sum(dim=-1)
        torch.testing.assert_close(step(mobile, batch)["critic_loss"], expected)


def test_what_the_clamp_leaves_of_a_penalty_is_reported():
    batch = random_batch()
    batch = batch._replace(reward=torch.full_like(batch.reward, 0.3), terminal=batch.terminal + 1)
    batch = batch._replace(terminal=batch.terminal.clamp(max=1.0))  # y is the reward alone
    means = step(agent(penalty_coef=1e4), batch)
    assert (means["inconsistency"] * 1e4 > 1.0).all()
    torch.testing.assert_close(means["target_penalty"], torch.full((SEEDS,), 0.3))


def test_backups_differ_by_the_entropy_term():
    batch = random_batch()
    losses = {}
    for backup in ("deterministic", "soft"):
        mobile = agent(backup=backup, gamma=0.9, alpha=0.2, clamp_target=False)
        zero_targets(mobile)
        noise = step_noise(mobile)
        with torch.no_grad():
            q = mobile.networks.q(batch.obs, batch.action)
            _, log_prob = mobile.networks.policy(batch.next_obs).sample(noise[0])
        y = batch.reward
        if backup == "soft":
            y = y - 0.9 * (1 - batch.terminal) * 0.2 * log_prob
        losses[backup] = step(mobile, batch, noise)["critic_loss"]
        torch.testing.assert_close(
            losses[backup], (q - y[:, None]).square().mean(dim=-1).sum(dim=-1)
        )
    assert ((losses["soft"] - losses["deterministic"]).abs() > 1e-3).all()


def test_rewards_in_the_model_buffer_are_the_models_own():
    mobile, mbpo = (offline_training((3, 8), a) for a in ("mobile", "mbpo"))
    for training in (mobile, mbpo):
        training._extend_buffer()
    assert torch.equal(mobile.buffer.size_S, mbpo.buffer.size_S)
    assert torch.equal(mobile.buffer.rows_SNW, mbpo.buffer.rows_SNW)


# --- alpha


def alphas(mobile, steps=6):
    seen = [step(mobile, random_batch(seed=n))["alpha"] for n in range(steps)]
    return torch.stack([*seen, mobile.networks.log_alpha_S.detach().exp()])


@pytest.mark.parametrize("target_entropy", [50.0, -50.0])
def test_an_alpha_that_is_a_number_stays_that_number(target_entropy):
    seen = alphas(agent(alpha=0.2, alpha_lr=0.5, target_entropy=target_entropy))
    torch.testing.assert_close(seen, torch.full_like(seen, 0.2))


@pytest.mark.parametrize("maximum", [1.0, 1.5, 0.4])
def test_a_learned_alpha_rises_to_its_maximum_and_falls_freely(maximum):
    options = {"alpha_max": maximum, "alpha_lr": 0.3}
    rising = alphas(agent(target_entropy=50.0, **options))
    assert (rising <= maximum + 1e-6).all()
    torch.testing.assert_close(rising[-1], torch.full((SEEDS,), maximum))
    falling = alphas(agent(target_entropy=-50.0, **options))
    assert (falling.diff(dim=0) < 0).all()
    assert (falling[-1] < 0.3 * maximum).all()


# --- without a penalty


@pytest.mark.parametrize("changes", [{"penalty_coef": 0.0}, {"real_ratio": 1.0}])
def test_what_has_no_penalty_samples_nothing_for_it(changes):
    """And so the number of samples, which is then no part of the result, changes nothing."""
    few, many = (offline_training((3, 8), "mobile", num_next_samples=n, **changes) for n in (1, 9))
    statistics, others = few.train_epoch(), many.train_epoch()
    assert not {"inconsistency", "target_penalty"} & statistics.keys()
    assert not statistics["diverged"].any()
    for name, value in statistics.items():
        assert torch.equal(others[name], value)


def test_the_penalty_lowers_q_on_model_rows():
    trainings = {
        coef: offline_training(
            (3, 8), "mobile", penalty_coef=coef, critic_lr=3e-3, clamp_target=False
        )
        for coef in (0.1, 5.0)
    }
    for _ in range(3):
        seen = {coef: training.train_epoch()["q_model"] for coef, training in trainings.items()}
    assert (seen[5.0] < seen[0.1] - 0.02).all()
