"""The scale of a plugin's penalty on the data, by which a coefficient is matched."""

import pytest
import torch

from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.dynamics.penalties import PENALTIES, Penalty
from algorithms.dynamics.penalty_scale import (
    check_penalty_of_plugin,
    known_or_measured,
    own_member,
    predict_sample,
)
from algorithms.dynamics.training import EnsembleTraining
from algorithms.errors import UserError
from algorithms.mopo.agent import penalty_coefficients
from algorithms.mopo.settings import MOPOSettings
from algorithms.registry import Origin, registering

pytestmark = pytest.mark.usefixtures("no_plugins")

SETTINGS = MOPOSettings(
    dynamics_hidden=(16,),
    dynamics_weight_decay=(0.0, 0.0),
    dynamics_max_epochs=5,
    penalty_coef_mode="matched",
    penalty="combined",
)


@pytest.fixture(scope="module")
def trained(linear_data_of):
    """(ensemble of two seeds, what their descriptions have, the data)."""
    from algorithms.settings import EnsembleSettings

    data = linear_data_of(6000)
    training = EnsembleTraining(data, SETTINGS.part(EnsembleSettings), seeds=[0, 1])
    while not training.finished:
        training.train_epoch()
    ensemble, metrics = training.result()
    return ensemble, [m["penalty_mean"] for m in metrics], data


@pytest.fixture(scope="module")
def linear_data_of():
    import small_tasks

    return small_tasks.linear_data


@pytest.fixture
def enter():
    """Enter a formula as a plugin's penalty `mine`."""

    def enter(formula, *, own_member_only=False):
        with registering(Origin("my_ideas.py", "0" * 64)):
            PENALTIES.add("mine", Penalty(formula, "Mine", None, own_member_only))

    return enter


@pytest.mark.parametrize("name", [name for name in PENALTIES.built_in if name != "none"])
def test_what_is_known_of_the_projects_own_is_not_measured_again(trained, name):
    ensemble, known, data = trained
    assert known_or_measured(name, known, ensemble, data) is known


@pytest.mark.parametrize("name", ["combined", "member_std", "mixture_std", "ensemble_variance"])
def test_a_formula_is_matched_alike_under_a_plugins_name(trained, enter, name):
    """The data's rows instead of the holdout: the ratios agree within a few per cent."""
    ensemble, known, data = trained
    enter(PENALTIES[name].formula, own_member_only=PENALTIES[name].own_member_only)
    settings = SETTINGS.model_copy(update={"penalty": name})
    mine = SETTINGS.model_copy(update={"penalty": "mine"})
    stored = penalty_coefficients(settings, known, 2)
    measured = known_or_measured("mine", known, ensemble, data)
    assert penalty_coefficients(mine, measured, 2) == pytest.approx(stored, rel=0.05)


def test_max_std_by_another_name_has_the_coefficient_as_it_was_set(trained, enter):
    ensemble, known, data = trained
    enter(PENALTIES["max_std"].formula)
    measured = known_or_measured("mine", known, ensemble, data)
    mine = SETTINGS.model_copy(update={"penalty": "mine"})
    assert penalty_coefficients(mine, measured, 2) == [2.5, 2.5]


def test_the_measure_is_the_same_again_and_takes_no_random_numbers(trained, enter):
    ensemble, known, data = trained
    enter(PENALTIES["combined"].formula)
    torch.manual_seed(4)
    before = torch.get_rng_state()
    first = known_or_measured("mine", known, ensemble, data)
    assert known_or_measured("mine", known, ensemble, data) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_an_own_member_is_what_a_rollout_predicts_of_it_alone(trained):
    ensemble, _, data = trained
    prediction = predict_sample(ensemble, data)
    assert isinstance(ensemble, DynamicsEnsemble)
    alone = own_member(prediction)
    assert alone.mean.shape[1] == 1
    for s in (0, 1):
        for row in (0, 7):
            member = prediction.member[s, row]
            assert torch.equal(alone.mean[s, 0, row], prediction.mean[s, member, row])
            assert torch.equal(alone.std[s, 0, row], prediction.std[s, member, row])
    name = PENALTIES["member_std"]
    torch.testing.assert_close(name(alone), name(prediction))


def test_a_penalty_that_is_nan_on_the_data_is_told_and_none_of_the_projects_own_is_called(
    trained, enter
):
    ensemble, _, data = trained
    enter(lambda p: (p.mean.sum(-1).sum(-2) - 1e3).log())
    with pytest.raises(UserError, match=r"test_penalty_scale.py, line \d+: penalty 'mine' is NaN"):
        check_penalty_of_plugin("mine", ensemble, data)
    check_penalty_of_plugin("combined", None, None)
