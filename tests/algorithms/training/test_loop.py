"""What an epoch trains on, and what it reports."""

import math

import pytest
import torch
from small_tasks import predict_the_action

from algorithms.dynamics.penalties import PENALTIES


def as_set(rows):
    return set(map(tuple, rows.tolist()))


def test_batches_are_5_percent_real_rows_and_model_rows_of_the_same_seed(
    offline_training, monkeypatch
):
    training = offline_training((3, 8), batch_size=256, real_ratio=0.05)
    training.buffer.rows_SNW.fill_(torch.nan)  # what was never written must never be drawn
    batches, step = [], training.agent.gradient_step

    def recorded_step(batch, noise):
        batches.append((batch, noise))
        return step(batch, noise)

    monkeypatch.setattr(training.agent, "gradient_step", recorded_step)
    statistics = training.train_epoch()
    assert len(batches) == 25
    real = as_set(training.data_NW)
    rows = torch.stack([batch.pack() for batch, _ in batches], dim=1)
    assert rows.shape[:3] == (2, 25, 256)
    for s in range(2):
        model = as_set(training.buffer.rows_SNW[s, : training.buffer.size_S[s]])
        assert not real & model
        drawn_real, drawn_model = as_set(rows[s, :, :12].flatten(0, 1)), rows[s, :, 12:]
        assert drawn_real <= real
        assert len(drawn_real) > 100  # of 200, in 300 draws
        assert as_set(drawn_model.flatten(0, 1)) == model  # all of them, in 6100 draws
    noise = torch.stack([torch.stack(tuple(noise)) for _, noise in batches])
    assert len(noise.flatten(2).unique(dim=0)) == 25  # fresh in every step
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert all(value.isfinite().all() for value in statistics.values())


def test_model_rows_start_from_real_states_and_carry_the_penalty(offline_training):
    results = {}
    for coef in (0.0, 2.0):
        training = offline_training((3,), penalty_coef=coef, rollout_length=1)
        results[coef] = training._extend_buffer()
        obs = training.buffer.rows_SNW[0, : int(training.buffer.size_S), :3]
        assert as_set(obs) <= as_set(training.data_NW[:, :3])
    lowered = (results[0.0].rows_SNW - results[2.0].rows_SNW)[0]
    reward = 3 + 2  # column after obs and action
    assert float(lowered[:, reward].mean()) == pytest.approx(
        2 * float(results[2.0].penalty_S), rel=1e-4
    )
    lowered[:, reward] = 0
    assert not lowered.any()


def test_an_epoch_counts_once_and_trains_without_real_rows_too(offline_training):
    training = offline_training((3, 8), real_ratio=0.0)
    statistics = training.train_epoch()
    assert training.epoch == 1
    assert "q_data" not in statistics
    assert all(value.shape == (2,) for value in statistics.values())


@pytest.mark.parametrize("penalty", [n for n, row in PENALTIES.items() if row.own_member_only])
def test_an_epoch_on_the_rows_own_members_is_that_on_all_members(
    offline_training, monkeypatch, penalty
):
    """The same random numbers, hence the same rows, ends and statistics."""

    def first_epoch():
        training = offline_training((3, 8), penalty=penalty, gradient_steps_per_epoch=5)
        return training.train_epoch(), training

    statistics, own = first_epoch()
    seen_by_all = PENALTIES[penalty]._replace(own_member_only=False)
    monkeypatch.setitem(PENALTIES, penalty, seen_by_all)
    expected, everyone = first_epoch()
    assert torch.equal(own.buffer.size_S, everyone.buffer.size_S)
    assert (own.buffer.size_S < 60).all()  # some rollouts ended early
    for name, value in expected.items():
        torch.testing.assert_close(statistics[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for s, size in enumerate(own.buffer.size_S.tolist()):
        rows, others = (x.buffer.rows_SNW[s, :size] for x in (own, everyone))
        torch.testing.assert_close(rows, others, rtol=1e-4, atol=1e-5)


# --- the model's data: coefficient, learning rate, none at all


def test_a_matched_coefficient_is_used_seed_by_seed(offline_training):
    """As if each seed had been given its own product as a raw coefficient."""
    means = [{"max_std": 3.0, "combined": 2.0}, {"max_std": 1.0, "combined": 4.0}]
    matched = offline_training(
        (3, 8), penalty="combined", penalty_coef_mode="matched", penalty_mean=means
    )
    statistics = matched.train_epoch()
    raw = [
        offline_training((seed,), penalty="combined", penalty_coef=2.5 * ratio)
        for seed, ratio in ((3, 1.5), (8, 0.25))
    ]
    for s, alone in enumerate(raw):
        expected = alone.train_epoch()
        for name, value in expected.items():
            torch.testing.assert_close(statistics[name][s], value[0], rtol=1e-5, atol=1e-6)
        rows = alone.buffer.rows_SNW[0]
        torch.testing.assert_close(matched.buffer.rows_SNW[s], rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["mopo", "mobile", "combo"])
def test_the_actors_lr_falls_by_a_cosine_over_the_run(offline_training, algorithm):
    def lrs_of(training, epochs):
        lrs = []
        for _ in range(epochs):
            training.train_epoch()
            lrs += [group["lr"] for group in training.agent.optimizers.actor.param_groups]
        return lrs

    options = {"actor_lr": 0.01, "epochs": 8, "gradient_steps_per_epoch": 1}
    assert lrs_of(offline_training((3,), algorithm, **options), 3) == [0.01] * 3
    options["actor_lr_schedule"] = "cosine"
    training = offline_training((3,), algorithm, **options)
    lrs = lrs_of(training, 5)
    assert lrs[0] == 0.01
    expected = [0.005 * (1 + math.cos(math.pi * epoch / 8)) for epoch in range(8)]
    assert lrs == pytest.approx(expected[:5])
    resumed = offline_training((3,), algorithm, **options)
    resumed.load_state_dict(training.state_dict())
    assert lrs_of(resumed, 3) == pytest.approx(expected[5:])
    assert expected[-1] > 0  # the last epoch still learns


@pytest.mark.parametrize("algorithm", ["sac", "cql"])
def test_without_model_rows_there_is_neither_model_nor_buffer(offline_training, algorithm):
    training = offline_training((3, 8), algorithm)
    assert training.ensemble is None
    assert training.buffer.capacity == 0
    batches, step = [], training.agent.gradient_step

    def recorded_step(batch, noise):
        batches.append(batch.pack())
        return step(batch, noise)

    training.agent.gradient_step = recorded_step
    statistics = training.train_epoch()
    drawn = torch.stack(batches)
    assert drawn.shape[:3] == (25, 2, 32)
    assert as_set(drawn.flatten(0, 2)) == as_set(training.data_NW)  # all of 200, in 1600 draws
    assert {"critic_loss", "q_data", "diverged"} <= statistics.keys()
    assert not statistics.keys() & {"q_model", "model_reward", "penalty", "q_last_step"}
    assert training.diverged_S.tolist() == [False, False]


# --- statistics


def test_statistics_are_means_over_the_epochs_steps(offline_training):
    training = offline_training((3, 8), "combo")
    steps, step = [], training.agent.gradient_step

    def recorded_step(batch, noise):
        steps.append(step(batch, noise))
        return steps[-1]

    training.agent.gradient_step = recorded_step
    statistics = training.train_epoch()
    q_NSB = torch.stack([s.q_SB for s in steps])
    torch.testing.assert_close(statistics["q_data"], q_NSB[..., :8].mean(dim=(0, 2)))
    torch.testing.assert_close(statistics["q_model"], q_NSB[..., 8:].mean(dim=(0, 2)))
    for name in steps[0].means:
        mean = torch.stack([s.means[name] for s in steps]).mean(dim=0)
        torch.testing.assert_close(statistics[name], mean)


def test_q_at_the_last_step_of_rollouts_is_what_critics_think_of_it_after_the_epoch(
    offline_training,
):
    training = offline_training((3, 8))
    training.termination_fn = lambda next_obs: next_obs[..., 0] > 1.0
    start = training.train_epoch()["q_last_step"]
    for s in range(2):
        rows = training.buffer.rows_SNW[s, : training.buffer.size_S[s]]
        # A row is of the third step if the two before it lead there.
        follows = {tuple(row[6:9].tolist()): n for n, row in enumerate(rows)}
        before = [follows.get(tuple(row[:3].tolist())) for row in rows]
        last = [n for n, b in enumerate(before) if b is not None and before[b] is not None]
        assert 0 < len(last) < 20
        with torch.no_grad():
            q = training.networks.q(
                rows[last, :3].expand(2, -1, -1), rows[last, 3:5].expand(2, -1, -1)
            )
        assert float(start[s]) == pytest.approx(float(q[s].mean()), rel=1e-4, abs=1e-5)


def test_quantiles_of_the_penalty_are_those_of_the_kept_rows(offline_training, monkeypatch):
    """The penalty is here a function of the action, which the rows tell."""
    row = PENALTIES["max_std"]._replace(formula=action_penalty)
    monkeypatch.setitem(PENALTIES, "max_std", row)
    training = offline_training((3, 8), rollout_batch_size=500, penalty_coef=0.0)
    predict_the_action(training.ensemble)
    statistics = training.train_epoch()
    for s in range(2):
        rows = training.buffer.rows_SNW[s, : training.buffer.size_S[s]]
        assert 500 < len(rows) < 1500  # some ended early
        penalty = rows[:, 3].abs()
        assert float(statistics["penalty"][s]) == pytest.approx(float(penalty.mean()), rel=1e-4)
        for quantile, name in ((0.5, "q50"), (0.9, "q90"), (0.99, "q99")):
            expected = float(penalty.quantile(quantile))
            assert float(statistics[f"penalty_{name}"][s]) == pytest.approx(expected, rel=0.01)


def action_penalty(p):
    return p.mean[:, 0, :, 0].abs()


# --- products in bfloat16


def weights(training):
    return torch.cat([p.detach().flatten() for p in training.networks.parameters()])


@pytest.mark.parametrize("algorithm", ["mopo", "mobile", "combo"])
def test_bfloat16_products_train_what_float32_products_train(offline_training, algorithm):
    """Within an epoch the weights change by much more than the two trainings differ."""
    rates = dict.fromkeys(("actor_lr", "critic_lr", "alpha_lr"), 3e-3)
    full, fewer = (
        offline_training((3, 8), algorithm, matmul_dtype=dtype, **rates)
        for dtype in ("float32", "bfloat16")
    )
    before = weights(full)
    means, other_means = full.train_epoch(), fewer.train_epoch()
    assert {p.dtype for p in fewer.networks.parameters()} == {torch.float32}
    difference = (weights(fewer) - weights(full)).norm()
    assert 0 < difference < 0.1 * (weights(full) - before).norm()
    for name, value in means.items():
        torch.testing.assert_close(other_means[name], value, rtol=0.02, atol=0.01, msg=name)
