"""What makes two results the same: their keys, whatever the sweep that asks for them."""

import pickle

import pytest

from algorithms.storage import Storage
from orchestrator.plan import make_plan
from orchestrator.sweep.cell import cells_of


def test_result_keys_do_not_depend_on_epochs_or_the_order_of_keys(quickstart, expand):
    before = expand(quickstart)
    quickstart["fixed"] = {"epochs": 50, "penalty_coef": 2.5}
    after = expand(dict(reversed(quickstart.items())))
    for old, new in zip(before, after, strict=True):
        assert [old.result_key(s) for s in (0, 1)] == [new.result_key(s) for s in (0, 1)]
        assert old.cell_key == new.cell_key


def test_result_keys_do_not_depend_on_the_rest_of_the_sweep(quickstart, expand):
    (_, before) = expand(quickstart)
    quickstart |= {"name": "other", "question": "?", "seeds": [1], "device": "cpu"}
    quickstart |= {"compile": False, "gpus_per_trial": 0.5, "cpus_per_trial": 2}
    quickstart |= {"parallel_evaluation": True}
    quickstart["grid"]["penalty"] = ["max_std"]
    (after,) = expand(quickstart)
    assert before.result_key(1) == after.result_key(1)
    assert before.cell_key == after.cell_key


@pytest.mark.parametrize(
    "changes",
    [
        {"penalty_coef": 1.0},
        {"rollout_length": 1},
        {"gamma": 0.9},
        {"num_ensemble": 6},
        {"dynamics_lr": 1e-4},
        {"evaluation_episodes": 3},
        {"matmul_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_result_keys_depend_on_every_other_setting(quickstart, expand, changes):
    quickstart["grid"] = {"penalty": ["max_std", "combined"]}
    before = expand(quickstart)
    quickstart["fixed"] |= changes
    after = expand(quickstart)
    for old, new in zip(before, after, strict=True):
        assert old.result_key(0) != new.result_key(0)
        assert old.cell_key != new.cell_key


def test_results_from_before_there_was_a_choice_of_dtype_keep_their_keys(quickstart, expand):
    settings = expand(quickstart)[0]._identity["settings"]
    assert "gamma" in settings
    assert "matmul_dtype" not in settings


def test_ensembles_are_shared_between_variants(quickstart, expand):
    quickstart["grid"] = {"penalty": ["none", "max_std"], "penalty_coef": [1, 2], "tau": [0.1, 0.2]}
    quickstart["fixed"] = {}
    assert len({cell.ensemble(0).key for cell in expand(quickstart)}) == 1


def test_dynamics_seeds_decide_which_ensemble_a_seed_trains_on(quickstart, expand):
    shared, *_ = expand(quickstart)
    per_seed, *_ = expand(quickstart | {"dynamics_seeds": "per_seed"})
    assert [shared.ensemble(seed).seed for seed in (0, 1)] == [0, 0]
    assert [per_seed.ensemble(seed).seed for seed in (0, 1)] == [0, 1]
    assert shared.result_key(0) == per_seed.result_key(0)  # trained on the same ensemble
    assert shared.result_key(1) != per_seed.result_key(1)
    assert shared.cell_key != per_seed.cell_key


def test_the_environment_of_a_file_is_part_of_the_result(quickstart, expand, hopper_file):
    path = hopper_file()
    quickstart["datasets"] = [{"id": f"file:{path}", "env": "Hopper-v4"}]
    cell, *_ = expand(quickstart)
    copied = hopper_file("elsewhere/data.hdf5")
    quickstart["datasets"] = [{"id": f"file:{copied}", "env": "Hopper-v4"}]
    same, *_ = expand(quickstart)
    assert cell.result_key(0) == same.result_key(0)  # files count by their content
    other = cell.dataset.model_copy(update={"env_id": "HalfCheetah-v4"})
    moved = pickle.loads(pickle.dumps(cell)).__class__(**vars(cell) | {"dataset": other})
    assert cell.result_key(0) != moved.result_key(0)


def test_mbpo_and_mopo_without_penalty_are_one_result(comparison, expand):
    mbpo, mopo, sac, real = expand(
        comparison
        | {
            "algorithm": "mopo",
            "variants": {
                "mbpo": {"algorithm": "mbpo"},
                "mopo": {"penalty": "none", "penalty_coef_mode": "matched"},
                "sac": {"algorithm": "sac"},
                "real": {"real_ratio": 1.0, "penalty": "combined", "penalty_coef": 9.0},
            },
        }
    )
    for one, other in [(mbpo, mopo), (sac, real)]:
        assert one.result_key(1) == other.result_key(1)
        assert one.cell_key == other.cell_key
    assert mbpo.cell_key != sac.cell_key
    assert mbpo.name != mopo.name


@pytest.mark.parametrize(
    ("algorithm", "first", "second"),
    [
        ("mopo", {"penalty": "max_std"}, {"penalty": "max_std", "penalty_coef_mode": "matched"}),
        ("combo", {"beta_lr": 1e-2, "beta_init": 2.0}, {}),
        (
            "combo",
            {"prior": "previous_policy", "importance": "balanced"},
            {"prior": "previous_policy"},
        ),
        ("cql", {"rollout_length": 1, "num_ensemble": 9}, {}),
        ("mobile", {"alpha": 0.2, "alpha_max": 0.5}, {"alpha": 0.2}),
        ("mobile", {"penalty_coef": 0.0, "num_next_samples": 3}, {"penalty_coef": 0.0}),
    ],
)
def test_settings_without_effect_are_no_part_of_a_result(
    comparison, expand, algorithm, first, second
):
    variants = {"a": first, "b": second}
    a, b = expand(comparison | {"algorithm": algorithm, "variants": variants})
    assert a.result_key(0) == b.result_key(0)
    assert a.cell_key == b.cell_key


def test_settings_that_a_learned_beta_uses_are_part_of_its_result(comparison, expand):
    variants = {"a": {"beta": "learned"}, "b": {"beta": "learned", "beta_lr": 1e-2}}
    a, b = expand(comparison | {"algorithm": "combo", "variants": variants})
    assert a.result_key(0) != b.result_key(0)


def test_more_epochs_of_a_cosine_are_another_training(comparison, expand):
    keys = {
        (schedule, epochs): expand(
            comparison
            | {"algorithm": "mopo", "fixed": {"actor_lr_schedule": schedule, "epochs": epochs}}
        )[0].result_key(0)
        for schedule in ("constant", "cosine")
        for epochs in (10, 20)
    }
    assert keys["constant", 10] == keys["constant", 20]
    assert keys["cosine", 10] != keys["cosine", 20]


def test_without_a_model_no_ensemble_is_planned_and_none_is_part_of_the_result(
    comparison, load, storage
):
    comparison["grid"] = {"algorithm": ["sac", "cql"]}
    sweep = load(comparison)
    planned = make_plan(sweep, cells_of(sweep), Storage(storage))
    assert planned.ensembles == ()
    assert [len(job.seeds) for job in planned.jobs] == [2, 2]
    for job in planned.jobs:
        assert job.ensembles == (None, None)
        assert job.ensemble_keys == set()
    (shared, _) = planned.cells
    per_seed = cells_of(load(comparison | {"dynamics_seeds": "shared"}))[0]
    assert shared.cell.result_key(1) == per_seed.result_key(1)
    assert shared.cell.cell_key == per_seed.cell_key
