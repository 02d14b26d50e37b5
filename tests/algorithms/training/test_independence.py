"""A seed learns alike alone and in company, whatever becomes of the others."""

import pytest
import torch

from algorithms.dynamics.training import EnsembleTraining
from algorithms.settings import EnsembleSettings
from algorithms.stack.state import select_seeds

TOLERANCE = {"rtol": 0.0, "atol": 1e-4, "equal_nan": True}


def run(training, epochs=4):
    statistics = [training.train_epoch() for _ in range(epochs)]
    return training.state_dict(), statistics[-1]


def assert_seed_equal(company, position, alone):
    """The seed at `position` of one state is the only seed of another."""
    (one, one_statistics), (other, other_statistics) = company, alone
    one = select_seeds(one, [position])
    assert one.keys() == other.keys()
    size = int(other["buffer/size"])
    assert int(one["buffer/size"]) == size
    assert torch.equal(one["generators"], other["generators"])
    for name, value in other.items():
        rows = slice(None, size) if name == "buffer/rows" else slice(None)
        at = (slice(None), rows) if name == "buffer/rows" else ...
        torch.testing.assert_close(one[name][at], value[at], **TOLERANCE, msg=name)
    for name, value in other_statistics.items():
        torch.testing.assert_close(one_statistics[name][position], value[0], **TOLERANCE, msg=name)


LEARNED = {"beta": "learned", "beta_threshold": 0.1}
VARIANTS = {
    "max_std": ("mopo", {"penalty": "max_std"}),
    "none": ("mopo", {"penalty": "none"}),
    "combo": ("combo", LEARNED),
    "previous_policy": ("combo", LEARNED | {"prior": "previous_policy", "rho_states": "model"}),
    "cql": ("cql", {"importance": "balanced"}),
    "mobile": ("mobile", {}),
    "mobile_fixed_alpha": ("mobile", {"alpha": 0.2, "backup": "soft"}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_policies_of_100_steps_together_and_alone(offline_training, variant):
    algorithm, changes = VARIANTS[variant]
    together = run(offline_training((3, 8), algorithm, **changes))
    alone = [run(offline_training((seed,), algorithm, **changes)) for seed in (3, 8)]
    swapped = run(offline_training((8, 3), algorithm, **changes))
    start = offline_training((3,), algorithm, **changes).state_dict()
    for k in (0, 1):
        assert_seed_equal(together, k, alone[k])
        assert_seed_equal(swapped, 1 - k, alone[k])
    # The agreement means something: training moved the weights, and seeds differ.
    name = "networks/actor.weights.0"
    assert (alone[0][0][name] - start[name]).abs().max() > 2e-3
    assert (alone[0][0][name] - alone[1][0][name]).abs().max() > 0.1
    if changes.get("beta") == "learned":
        betas = [float(state["log_beta"]) for state, _ in alone]
        assert min(map(abs, betas)) > 0.01
        assert abs(betas[0] - betas[1]) > 1e-3


@pytest.mark.parametrize("what", ["networks", "ensemble"])
def test_a_sibling_that_is_nan_from_the_start_changes_nothing(offline_training, what):
    together = offline_training((3, 8))
    with torch.no_grad():
        for parameter in getattr(together, what).parameters():
            parameter[0] = torch.nan
    company = run(together)
    assert_seed_equal(company, 1, run(offline_training((8,))))
    assert company[1]["critic_loss"][1].isfinite()
    if what == "networks":
        assert company[1]["critic_loss"][0].isnan()


ENSEMBLE = EnsembleSettings(
    num_ensemble=3,
    num_elites=2,
    dynamics_hidden=(8, 8),
    dynamics_weight_decay=(1e-5, 1e-5, 1e-5),
    dynamics_lr=1e-2,
    dynamics_batch_size=32,
    dynamics_patience=1,
    dynamics_max_epochs=60,
)


def finished(data, seeds, poison=None):
    training = EnsembleTraining(data, ENSEMBLE, seeds)
    if poison is not None:
        with torch.no_grad():
            for parameter in training.ensemble.parameters():
                parameter[poison] = torch.nan
    while not training.finished:
        training.train_epoch()
    return training.epoch, *training.result()


def assert_same_ensemble(company, position, alone):
    _, ensemble, metrics = company
    _, single, single_metrics = alone
    for (name, value), expected in zip(
        ensemble.state_dict().items(), single.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value[position], expected[0], **TOLERANCE, msg=name)
    assert metrics[position]["elites"] == single_metrics[0]["elites"]
    assert metrics[position]["elite_holdout_mse"] == pytest.approx(
        single_metrics[0]["elite_holdout_mse"], rel=1e-3
    )


def test_ensembles_that_stop_at_different_epochs_together_and_alone(linear_data):
    data = linear_data(300)
    alone = [finished(data, (seed,)) for seed in (0, 1)]
    epochs = [result[0] for result in alone]
    assert epochs[0] != epochs[1]
    together, swapped = finished(data, (0, 1)), finished(data, (1, 0))
    assert together[0] == max(epochs)
    for k in (0, 1):
        assert_same_ensemble(together, k, alone[k])
        assert_same_ensemble(swapped, 1 - k, alone[k])


def test_an_ensemble_whose_sibling_is_nan(linear_data):
    data = linear_data(300)
    assert_same_ensemble(finished(data, (0, 1), poison=0), 1, finished(data, (1,)))
