"""Which settings are possible, what they mean together, and which of them have no effect."""

import pytest

from algorithms import ALGORITHMS
from algorithms.combo.settings import COMBOSettings
from algorithms.dynamics.penalties import PENALTIES
from algorithms.errors import UserError
from algorithms.mobile.settings import MOBILESettings
from algorithms.mopo.agent import penalty_coefficients
from algorithms.mopo.settings import MOPOSettings
from algorithms.settings import OfflineSettings, validated


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (MOPOSettings, {"penalty": "std"}, "penalty: unknown penalty 'std': one of combined, .*"),
        (MOPOSettings, {"beta": 1.0}, "unknown setting 'beta': one of .*penalty_coef.*"),
        (MOPOSettings, {"penalty_coef_mode": "auto"}, "penalty_coef_mode: must be 'raw' or 'match"),
        (MOPOSettings, {"penalty_coef": -1.0}, "penalty_coef: must be greater than or equal to 0"),
        (MOPOSettings, {"real_ratio": 1.5}, "real_ratio: must be less than or equal to 1, got 1.5"),
        (MOPOSettings, {"epochs": "10"}, "epochs: must be a whole number, got '10'"),
        (MOPOSettings, {"actor_lr_schedule": "linear"}, "actor_lr_schedule: must be 'constant' or"),
        (
            MOPOSettings,
            {"epochs": 10, "evaluation_interval": 3},
            "evaluation_interval 3 does not divide epochs 10: the last epoch must be evaluated",
        ),
        (
            MOPOSettings,
            {"num_elites": 8},
            "num_elites 8 exceeds num_ensemble 7: at most 7",
        ),
        (
            COMBOSettings,
            {"dynamics_weight_decay": [0.0]},
            "dynamics_weight_decay has 1 values for 5 layers: give 5, output layer last",
        ),
        (MOBILESettings, {"alpha": "learned"}, "alpha: must be a number above 0, or auto, got 'le"),
        (MOBILESettings, {"alpha": 0.0}, "alpha: .*"),
        (MOBILESettings, {"alpha_max": 0.0}, "alpha_max: must be greater than 0, got 0.0"),
        (MOBILESettings, {"num_next_samples": 0}, "num_next_samples: must be greater than or"),
        (MOBILESettings, {"penalty_coef": -1.0}, "penalty_coef: must be greater than or equal to"),
        (MOBILESettings, {"penalty": "none"}, "unknown setting 'penalty': one of .*penalty_coef.*"),
        (
            MOBILESettings,
            {"num_elites": 1},
            "num_elites 1 leaves no members to disagree, .*: at least 2, or penalty_coef 0$",
        ),
        (COMBOSettings, {"beta": "auto"}, "beta: .*"),
        (COMBOSettings, {"beta": -1.0}, "beta: .*"),
        (
            COMBOSettings,
            {"prior": "normal"},
            "prior: unknown prior .*: one of previous_policy, uniform",
        ),
        (
            COMBOSettings,
            {"importance": "none"},
            "importance: unknown .*: one of balanced, own_density",
        ),
        (COMBOSettings, {"rho_states": "real"}, "rho_states: must be 'mix' or 'model', got 'real'"),
        (COMBOSettings, {"temperature": 0.0}, "temperature: must be greater than 0, got 0.0"),
        (COMBOSettings, {"num_action_samples": 0}, "num_action_samples: must be greater than or"),
        (COMBOSettings, {"backup": "entropic"}, "backup: must be 'deterministic' or 'soft', got"),
        (COMBOSettings, {"penalty": "none"}, "unknown setting 'penalty': one of .*beta.*"),
        (
            COMBOSettings,
            {"real_ratio": 0.0},
            "real_ratio 0.0 leaves no real rows in a batch, .*: give a larger real_ratio$",
        ),
        (COMBOSettings, {"real_ratio": 0.0, "maximize_dataset_q": False}, "real_ratio 0.0 leaves"),
        (COMBOSettings, {"real_ratio": 0.003}, "real_ratio 0.003 leaves no real rows .*"),
        (
            COMBOSettings,
            {"beta": "learned", "maximize_dataset_q": False},
            "beta: learned needs maximize_dataset_q: true, .*: give beta a number",
        ),
        (
            COMBOSettings,
            {"rho_states": "model", "real_ratio": 1.0},
            "rho_states: model needs model rows, but real_ratio 1 leaves none: use mix",
        ),
        (
            COMBOSettings,
            {"beta": "learned", "beta_init": 30.0},
            "beta_init 30.0 must lie between beta_min 0.01 and beta_max 20.0",
        ),
        (
            COMBOSettings,
            {"beta": "learned", "beta_min": 3.0, "beta_max": 2.0},
            "beta_init 1.0 must lie between beta_min 3.0 and beta_max 2.0",
        ),
    ],
)
def test_a_mistake_is_told_in_one_sentence(kind, values, sentence):
    with pytest.raises(UserError, match=f"^{sentence}") as error:
        validated(kind, values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (COMBOSettings, {"beta": 2, "maximize_dataset_q": False}),
        (COMBOSettings, {"beta": "learned", "prior": "previous_policy", "rho_states": "model"}),
        (MOPOSettings, {"real_ratio": 1, "penalty": "combined", "penalty_coef_mode": "matched"}),
        (MOBILESettings, {"num_elites": 1, "penalty_coef": 0}),
        (MOBILESettings, {"num_elites": 1, "real_ratio": 1}),
        (MOBILESettings, {"alpha": 2}),
    ],
)
def test_what_is_possible_is_not_refused(kind, values):
    validated(kind, values)


@pytest.mark.parametrize(
    ("real_ratio", "batch_size", "rows"),
    [(0.05, 256, 12), (0.5, 256, 128), (1.0, 256, 256), (0.0, 256, 0), (0.29, 100, 29)],
)
def test_the_real_rows_of_a_batch_and_whether_any_is_the_models(real_ratio, batch_size, rows):
    settings = MOPOSettings(real_ratio=real_ratio, batch_size=batch_size)
    assert settings.real_rows == rows
    assert settings.uses_model == (rows < batch_size)


def test_the_baselines_are_mopo_and_combo_without_penalty_or_model():
    made = {name: entry.settings(**entry.pinned) for name, entry in ALGORITHMS.items()}
    assert {name for name, s in made.items() if not s.uses_model} == {"sac", "cql"}
    assert {name for name, s in made.items() if isinstance(s, COMBOSettings)} == {"combo", "cql"}
    for name in ("mbpo", "sac"):
        assert (made[name].penalty, made[name].penalty_coef) == ("none", 0.0)
    assert made["mopo"].penalty_coef > 0
    assert made["cql"] == made["combo"].model_copy(update={"real_ratio": 1.0})


def test_defaults_are_the_papers():
    mopo, combo = MOPOSettings(), COMBOSettings()
    assert (mopo.hidden, mopo.real_ratio, mopo.real_rows) == ((256, 256), 0.05, 12)
    assert (combo.hidden, combo.real_ratio) == ((256, 256, 256), 0.5)
    assert (combo.prior, combo.importance, combo.rho_states) == ("uniform", "own_density", "mix")
    assert (combo.num_action_samples, combo.backup) == (10, "deterministic")
    assert (combo.temperature, combo.maximize_dataset_q) == (1.0, True)
    mobile = MOBILESettings()
    assert (mobile.hidden, mobile.real_ratio, mobile.num_critics) == ((256, 256), 0.05, 2)
    assert (mobile.num_next_samples, mobile.num_elites) == (10, 5)
    assert (mobile.backup, mobile.clamp_target) == ("deterministic", True)
    assert (mobile.alpha, mobile.alpha_max, mobile.dynamics_max_epochs) == ("auto", 1.0, 30)


# --- settings that change nothing are no part of a result's identity


MODEL_ONLY = {"rollout_length", "rollout_batch_size", "rollout_retain_epochs", "num_ensemble"}
ALPHA = {"alpha_lr", "alpha_max", "target_entropy"}
BETA = {name for name in COMBOSettings.model_fields if name.startswith("beta_")}


@pytest.mark.parametrize(
    ("settings", "unused", "used"),
    [
        (MOPOSettings(), {"penalty_coef_mode"}, {"penalty", "penalty_coef"} | MODEL_ONLY),
        (MOPOSettings(penalty="combined"), set(), {"penalty_coef_mode"}),
        (MOPOSettings(penalty="none"), {"penalty_coef_mode"}, MODEL_ONLY),
        (MOPOSettings(real_ratio=1.0), {"penalty", "penalty_coef"} | MODEL_ONLY, {"real_ratio"}),
        (COMBOSettings(), BETA, {"importance", "rho_states"} | MODEL_ONLY),
        (COMBOSettings(beta="learned"), set(), BETA | {"importance"}),
        (COMBOSettings(prior="previous_policy"), {"importance"}, {"prior"}),
        (COMBOSettings(real_ratio=1.0), MODEL_ONLY | BETA, {"prior", "importance"}),
        (MOBILESettings(), set(), {"penalty_coef", "num_next_samples"} | ALPHA | MODEL_ONLY),
        (MOBILESettings(alpha=0.2), ALPHA, {"alpha", "penalty_coef", "num_next_samples"}),
        (MOBILESettings(penalty_coef=0.0), {"num_next_samples"}, {"penalty_coef"} | MODEL_ONLY),
        (
            MOBILESettings(real_ratio=1.0),
            {"penalty_coef", "num_next_samples"} | MODEL_ONLY,
            {"backup", "clamp_target"} | ALPHA,
        ),
    ],
)
def test_settings_without_effect(settings, unused, used):
    assert unused <= settings.without_effect
    assert not used & settings.without_effect


# --- the coefficient of a penalty

MEANS = [
    {name: 0.0 if name == "none" else 0.5 * (k + 1) for k, name in enumerate(PENALTIES)},
    {name: 0.0 if name == "none" else 3.0 / (k + 1) for k, name in enumerate(PENALTIES)},
]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_matched_coefficient_means_to_every_penalty_what_it_means_to_max_std(penalty):
    settings = MOPOSettings(penalty=penalty, penalty_coef=2.0, penalty_coef_mode="matched")
    coefs = penalty_coefficients(settings, MEANS, 2)
    if penalty == "none":
        assert coefs == [0.0, 0.0]
        return
    for coef, mean in zip(coefs, MEANS, strict=True):
        assert coef * mean[penalty] == pytest.approx(2.0 * mean["max_std"])
    if penalty == "max_std":
        assert coefs == [2.0, 2.0]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_raw_coefficient_is_what_was_given(penalty):
    settings = MOPOSettings(penalty=penalty, penalty_coef=2.0)
    expected = 0.0 if penalty == "none" else 2.0
    assert penalty_coefficients(settings, [], 3) == [expected] * 3


def test_a_penalty_that_is_0_everywhere_cannot_be_matched():
    settings = MOPOSettings(penalty="max_pairwise_distance", penalty_coef_mode="matched")
    means = [MEANS[0], MEANS[1] | {"max_pairwise_distance": 0.0}]
    with pytest.raises(UserError, match=r"matched cannot scale max_pairwise_distance.*: use raw$"):
        penalty_coefficients(settings, means, 2)


def test_every_algorithms_settings_are_offline_settings():
    for entry in ALGORITHMS.values():
        assert issubclass(entry.settings, OfflineSettings)
        assert entry.pinned.keys() <= entry.settings.model_fields.keys()
