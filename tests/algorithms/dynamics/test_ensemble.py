"""The dynamics ensemble: loss, bounds, splits, stopping, elites, calibration."""

import numpy as np
import pytest
import reference
import torch

from algorithms.dynamics import training as training_module
from algorithms.dynamics.ensemble import (
    DynamicsEnsemble,
    Gaussian,
    calibration,
    ensemble_loss,
    holdout_mse,
    sample_member,
)
from algorithms.dynamics.penalties import PENALTIES, Prediction
from algorithms.dynamics.training import EnsembleTraining
from algorithms.settings import EnsembleSettings
from algorithms.stack.transitions import Transition


def small(**changes):
    values = {
        "num_ensemble": 3,
        "num_elites": 2,
        "dynamics_hidden": (4,),
        "dynamics_weight_decay": (0.01, 0.02),
        "dynamics_batch_size": 16,
    }
    return EnsembleSettings(**{**values, **changes})


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# --- the loss


def test_loss_and_its_gradient_agree_with_numpy():
    settings = small(num_ensemble=2)
    ensemble = DynamicsEnsemble(1, 1, settings, generators(0, 1)).double()
    with torch.no_grad():  # away from the first values, so that bounds and likelihood matter
        ensemble.min_log_var_SD += torch.tensor([[9.0, 9.5], [8.0, 9.0]])
        ensemble.input_mean_SI.copy_(torch.tensor([[0.5, -1.0], [0.0, 2.0]]))
        ensemble.input_std_SI.copy_(torch.tensor([[2.0, 0.5], [1.0, 3.0]]))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 2, 5, 2)), rng.normal(size=(2, 2, 5, 2))
    names = [name for name, _ in ensemble.named_parameters()]
    assert names == [
        "min_log_var_SD",
        "max_log_var_SD",
        "network.weights.0",
        "network.weights.1",
        "network.biases.0",
        "network.biases.1",
    ]
    loss_S = ensemble_loss(
        ensemble,
        ensemble(torch.from_numpy(x)),
        torch.from_numpy(y),
        settings.dynamics_weight_decay,
    )
    loss_S.sum().backward()
    for s in range(2):
        parameters = [p.detach()[s].numpy().copy() for p in ensemble.parameters()]
        inputs = (x[s] - ensemble.input_mean_SI[s].numpy()) / ensemble.input_std_SI[s].numpy()

        def loss(parameters=parameters, inputs=inputs, targets=y[s]):
            return reference.ensemble_loss(
                parameters, inputs, targets, settings.dynamics_weight_decay
            )

        assert float(loss_S[s].detach()) == pytest.approx(loss(), rel=1e-12)
        for parameter, values in zip(ensemble.parameters(), parameters, strict=True):
            gradient = parameter.grad[s].numpy()
            for index in np.ndindex(values.shape):
                value, h = values[index], 1e-6
                values[index] = value + h
                above = loss()
                values[index] = value - h
                below = loss()
                values[index] = value
                assert gradient[index] == pytest.approx((above - below) / (2 * h), abs=1e-7)


class Ramp(torch.nn.Module):
    """A network whose means are 0 and whose raw log-variances rise with the row."""

    raw = torch.linspace(-60, 60, 241)

    def forward(self, inputs):
        return torch.stack([torch.zeros(241), self.raw], dim=-1).expand(1, 3, 241, 2)


def test_log_variance_stays_within_its_bounds_and_is_the_networks_between_them():
    ensemble = DynamicsEnsemble(1, 1, small(), generators(0))
    ensemble.network = Ramp()
    low, high = -10.0, 0.5
    assert ensemble.min_log_var_SD.unique().tolist() == [low]
    assert ensemble.max_log_var_SD.unique().tolist() == [high]
    ensemble.min_log_var_SD = torch.nn.Parameter(torch.full((1, 1), low))
    ensemble.max_log_var_SD = torch.nn.Parameter(torch.full((1, 1), high))
    with torch.no_grad():
        log_var = ensemble(torch.zeros(1, 1, 241, 2)).log_var_SEBD[0, 0, :, 0]
    assert log_var.min() >= low
    assert log_var.max() <= high + 1e-4  # the two clamps together overshoot by exp(low - high)
    assert float(log_var[0]) == pytest.approx(low, abs=1e-4)
    assert float(log_var[-1]) == pytest.approx(high, abs=1e-4)
    assert (log_var.diff() >= 0).all()
    middle = (Ramp.raw - (low + high) / 2).abs() < 1
    torch.testing.assert_close(log_var[middle], Ramp.raw[middle], rtol=0, atol=0.02)


# --- prediction


def test_a_prediction_holds_all_members_and_samples_come_from_the_rows_own():
    ensemble = DynamicsEnsemble(2, 1, small(), generators(0, 1))
    obs, action = torch.randn(2, 6, 2), torch.randn(2, 6, 1)
    member = torch.tensor([[0, 1, 2, 0, 1, 2], [2, 2, 1, 1, 0, 0]])
    noise = torch.randn(2, 6, 3)
    with torch.no_grad():
        p = ensemble.predict(obs, action, member)
        gaussian = ensemble(torch.cat([obs, action], dim=-1)[:, None])
        sample = sample_member(p, noise)
    assert p.mean.shape == p.std.shape == (2, 3, 6, 3)
    torch.testing.assert_close(p.std.square().log(), gaussian.log_var_SEBD, rtol=1e-4, atol=1e-4)
    for s in range(2):
        for b in range(6):
            m = member[s, b]
            expected = p.mean[s, m, b] + p.std[s, m, b] * noise[s, b]
            torch.testing.assert_close(sample[s, b], expected)


# --- splits and statistics


def test_holdout_is_random_disjoint_from_what_members_train_on_and_of_the_stated_size(
    linear_data,
):
    data = linear_data(100)
    for fraction, maximum, size in ((0.2, 1000, 20), (0.2, 7, 7), (0.55, 1000, 55)):
        settings = small(holdout_fraction=fraction, holdout_max=maximum)
        training = EnsembleTraining(data, settings, (0, 1))
        assert training.holdout_SN.shape == (2, size)
        assert training.rows_SEN.shape == (2, 3, 100 - size)
        for s in range(2):
            holdout = set(training.holdout_SN[s].tolist())
            assert len(holdout) == size
            assert max(holdout) - min(holdout) > size  # not one block of consecutive rows
            assert not holdout & set(training.rows_SEN[s].flatten().tolist())
        assert set(training.holdout_SN[0].tolist()) != set(training.holdout_SN[1].tolist())
        again = EnsembleTraining(data, settings, (1,))
        assert torch.equal(again.holdout_SN[0], training.holdout_SN[1])


def test_every_member_has_a_bootstrap_of_its_own_with_replacement(linear_data):
    training = EnsembleTraining(linear_data(1000), small(), (0,))
    sets = [set(rows.tolist()) for rows in training.rows_SEN[0]]
    for own in sets:  # 1 - 1 / e of the rows
        assert len(own) / 800 == pytest.approx(0.632, abs=0.05)
    assert sets[0] != sets[1] != sets[2]
    assert len(set.union(*sets)) > 700


def test_inputs_are_standardised_by_the_train_split_and_a_constant_stays_finite(linear_data):
    data = linear_data(200)
    data.obs[:, 1] = 0.1  # not representable: its float32 mean may differ from it
    data.next_obs[:, 1] = 0.1
    training = EnsembleTraining(data, small(), (0, 1))
    inputs = torch.cat([data.obs, data.action], dim=-1).double()
    for s in range(2):
        train = [n for n in range(200) if n not in set(training.holdout_SN[s].tolist())]
        mean, std = inputs[train].mean(dim=0), inputs[train].std(dim=0, unbiased=False)
        std[1] = 1
        ensemble = training.ensemble
        torch.testing.assert_close(ensemble.input_mean_SI[s].double(), mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(ensemble.input_std_SI[s].double(), std, rtol=1e-5, atol=0)
    assert training.ensemble(inputs[None, None].float().expand(2, 1, -1, -1))[0].isfinite().all()


def test_targets_are_the_change_of_the_observation_then_the_reward():
    n = 50
    data = Transition(
        torch.full((n, 2), 1.0),
        torch.zeros(n, 1),
        torch.full((n,), 7.0),
        torch.full((n, 2), 4.0),
        torch.zeros(n),
    )
    training = EnsembleTraining(data, small(), (0,))
    assert training.targets_ND.unique(dim=0).tolist() == [[3.0, 3.0, 7.0]]


def test_data_too_small_to_hold_out_is_refused(linear_data):
    with pytest.raises(ValueError, match="too few"):
        EnsembleTraining(linear_data(4), small(), (0,))


# --- stopping, snapshots, elites


def test_members_best_weights_are_kept_and_training_stops_when_none_improves(
    monkeypatch, linear_data
):
    errors = [
        [1.0, 2.0, 3.0],  # all are first bests
        [0.995, 1.0, 3.1],  # member 0 improves by less than 1 %: not at all
        [0.98, 1.5, 2.0],  # by 2 % of its best, 1.0
        [0.975, 0.995, 1.99],
        [0.972, 2.0, 2.5],  # 2 epochs without improvement
    ]
    best_epochs, best = [2, 1, 2], [0.98, 1.0, 2.0]
    script = iter([*errors, [0.5, 0.4, 0.3]])
    monkeypatch.setattr(training_module, "holdout_mse", lambda *_: torch.tensor([next(script)]))
    settings = small(dynamics_patience=2)
    training = EnsembleTraining(linear_data(100), settings, (0,))
    weights = []
    for epoch in range(5):
        assert not training.finished
        training.train_epoch()
        weights.append([p.detach().clone() for p in training.ensemble.parameters()])
        assert training.epoch == epoch + 1
    assert training.finished
    assert training.best_mse_SE.tolist() == [pytest.approx(best)]

    ensemble, metrics = training.result()
    assert metrics[0]["elites"] == ensemble.elites_SK[0].tolist() == [0, 1]
    for k, (name, parameter) in enumerate(ensemble.named_parameters()):
        if "log_var" in name:  # shared by the members: of the last epoch in which any improved
            assert torch.equal(parameter, weights[2][k])
            continue
        for member, epoch in enumerate(best_epochs):
            assert torch.equal(parameter[0, member], weights[epoch][k][0, member])
            assert not torch.equal(parameter[0, member], weights[4][k][0, member])


def test_any_member_that_improves_keeps_the_ensemble_training_up_to_the_maximum(
    monkeypatch, linear_data
):
    script = iter([[2.0**-n, 1.0, 1.0] for n in range(9)])
    monkeypatch.setattr(training_module, "holdout_mse", lambda *_: torch.tensor([next(script)]))
    settings = small(dynamics_patience=1, dynamics_max_epochs=6)
    training = EnsembleTraining(linear_data(100), settings, (0,))
    while not training.finished:
        training.train_epoch()
    assert training.epoch == 6


def test_elites_have_the_lowest_errors_on_the_holdout(linear_data):
    training = EnsembleTraining(linear_data(300), small(num_ensemble=5), (0, 1))
    for _ in range(3):
        training.train_epoch()
    ensemble, metrics = training.result()
    data = linear_data(300)
    inputs = torch.cat([data.obs, data.action], dim=-1)
    targets = torch.cat([data.next_obs - data.obs, data.reward[:, None]], dim=-1)
    for s in range(2):
        rows = training.holdout_SN[s]
        with torch.no_grad():
            mean = ensemble(inputs[rows].expand(2, 1, -1, -1)).mean_SEBD[s]
        mse = (mean - targets[rows]).square().mean(dim=(1, 2))
        assert metrics[s]["holdout_mse"] == pytest.approx(mse.tolist(), rel=1e-4)
        assert metrics[s]["elites"] == mse.argsort()[:2].tolist()
        assert metrics[s]["elite_holdout_mse"] == pytest.approx(
            float(mse.sort().values[:2].mean()), rel=1e-4
        )
        assert metrics[s]["holdout_rows"] == 60
        assert metrics[s]["penalty_mean"].keys() == PENALTIES.keys()
        with torch.no_grad():
            p = ensemble.predict(
                data.obs[rows].expand(2, -1, -1),
                data.action[rows].expand(2, -1, -1),
                torch.zeros(2, len(rows), dtype=torch.long),
            )
        assert metrics[s]["penalty_mean"]["max_std"] == pytest.approx(
            float(PENALTIES["max_std"](Prediction(*p))[s].mean()), rel=1e-4
        )


# --- what is learned


def test_calibration_of_a_known_gaussian_is_that_of_the_normal_distribution():
    g = generators(0)[0]
    mean, log_var = (torch.randn(1, 3, 20_000, 2, generator=g) for _ in range(2))
    mean[:, 1:] = mean[:, :1]
    log_var[:, 1:] = log_var[:, :1]
    noise = torch.randn(1, 20_000, 2, generator=g)
    target = mean[:, 0] + (0.5 * log_var[:, 0]).exp() * noise
    mean[:, 1] += 1e3  # no elite: does not count
    for stds, share in ((1.0, 0.6827), (2.0, 0.9545)):
        result = calibration(Gaussian(mean, log_var), target, torch.tensor([[2, 0]]), stds)
        assert float(result) == pytest.approx(share, abs=0.01)
        half = calibration(Gaussian(mean, log_var), target, torch.tensor([[2, 1]]), stds)
        assert float(half) == pytest.approx(share / 2, abs=0.01)


def test_a_linear_gaussian_system_is_learned_with_its_noise(linear_data):
    settings = small(
        dynamics_hidden=(32, 32),
        dynamics_weight_decay=(1e-6, 1e-6, 1e-6),
        dynamics_lr=3e-3,
        dynamics_batch_size=128,
        dynamics_max_epochs=12,
    )
    training = EnsembleTraining(linear_data(4000, delta_std=0.3, reward_std=0.1), settings, (0,))
    while not training.finished:
        training.train_epoch()
    ensemble, (metrics,) = training.result()
    noise_variance = (3 * 0.3**2 + 0.1**2) / 4
    assert metrics["target_variance"] > 3 * noise_variance
    assert metrics["elite_holdout_mse"] == pytest.approx(noise_variance, rel=0.15)
    assert metrics["within_1_std"] == pytest.approx(0.683, abs=0.04)
    assert metrics["within_2_std"] == pytest.approx(0.954, abs=0.03)
    data = linear_data(500)
    with torch.no_grad():
        p = ensemble.predict(
            data.obs[None], data.action[None], torch.zeros(1, 500, dtype=torch.long)
        )
    for d, std in enumerate((0.3, 0.3, 0.3, 0.1)):
        assert float(p.std[..., d].median()) == pytest.approx(std, rel=0.15)


def test_holdout_mse_is_the_mean_over_rows_and_outputs():
    mean, target = torch.randn(2, 3, 5, 4), torch.randn(2, 5, 4)
    mse = holdout_mse(Gaussian(mean, mean), target)
    for s in range(2):
        for e in range(3):
            expected = np.mean((mean[s, e].numpy() - target[s].numpy()) ** 2)
            assert float(mse[s, e]) == pytest.approx(float(expected), rel=1e-5)
