"""What an epoch of MOPO trains on."""

import pytest
import torch


def as_set(rows):
    return set(map(tuple, rows.tolist()))


def test_batches_are_5_percent_real_rows_and_model_rows_of_the_same_seed(
    offline_training, monkeypatch
):
    training = offline_training((3, 8), batch_size=256, real_ratio=0.05)
    training.buffer.rows_SNW.fill_(torch.nan)  # what was never written must never be drawn
    batches, step = [], training._gradient_step

    def recorded_step(batch, noise):
        batches.append((batch, noise))
        return step(batch, noise)

    monkeypatch.setattr(training, "_gradient_step", recorded_step)
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
