"""Algorithms, named variants and presets in a sweep."""

from pathlib import Path

import pytest

from algorithms.errors import UserError
from algorithms.storage import Storage
from orchestrator.plan import make_plan
from orchestrator.sweep.cell import cells_of
from orchestrator.sweep.model import load_sweep

SWEEPS = sorted((Path(__file__).parents[3] / "sweeps").glob("*.yaml"))


def labels(cells):
    return [(cell.algorithm, cell.variant) for cell in cells]


# Algorithms


def test_the_algorithm_of_the_sweep_is_that_of_variants_which_choose_none(comparison, expand):
    comparison |= {
        "algorithm": "combo",
        "variants": {"plain": {}, "cql": {"algorithm": "cql"}},
    }
    assert labels(expand(comparison)) == [("combo", "plain"), ("cql", "cql")]


def test_the_algorithm_may_be_a_key_of_the_grid(comparison, expand):
    comparison["grid"] = {"algorithm": ["mopo", "combo"], "rollout_length": [1, 5]}
    assert labels(expand(comparison)) == [
        ("mopo", "algorithm=mopo, rollout_length=1"),
        ("mopo", "algorithm=mopo, rollout_length=5"),
        ("combo", "algorithm=combo, rollout_length=1"),
        ("combo", "algorithm=combo, rollout_length=5"),
    ]


def test_baselines_are_what_their_names_say(comparison, expand):
    comparison["grid"] = {"algorithm": ["mbpo", "sac", "cql"]}
    mbpo, sac, cql = expand(comparison)
    assert (mbpo.settings.penalty, mbpo.settings.uses_model) == ("none", True)
    assert (sac.settings.penalty, sac.settings.uses_model) == ("none", False)
    assert (cql.settings.beta, cql.settings.uses_model) == (2.5, False)


def test_combinations_that_differ_in_nothing_that_matters_are_one_row(comparison, expand):
    comparison["grid"] = {"algorithm": ["mbpo", "sac"], "rollout_length": [1, 5]}
    assert [cell.variant for cell in expand(comparison)] == [
        "algorithm=mbpo, rollout_length=1",
        "algorithm=mbpo, rollout_length=5",
        "algorithm=sac",
    ]


def test_fixed_settings_reach_the_variants_whose_algorithm_has_them(comparison, expand):
    comparison |= {
        "grid": {"algorithm": ["mopo", "combo"]},
        "fixed": {"penalty": "combined", "beta": 0.5, "tau": 0.01},
    }
    mopo, combo = (cell.settings for cell in expand(comparison))
    assert (mopo.penalty, mopo.tau) == ("combined", 0.01)
    assert (combo.beta, combo.tau) == (0.5, 0.01)


def test_a_baseline_may_be_told_what_it_is(comparison, expand):
    comparison |= {"algorithm": "sac", "fixed": {"real_ratio": 1, "penalty": "none"}}
    (cell,) = expand(comparison)
    assert not cell.settings.uses_model


# Variants


def test_cells_are_the_grid_and_then_the_named_variants(comparison, expand):
    comparison |= {
        "algorithm": "mopo",
        "grid": {"penalty": ["none", "max_std"]},
        "variants": {"long": {"rollout_length": 10}, "SAC offline": {"algorithm": "sac"}},
        "fixed": {"penalty_coef": 1.5},
    }
    comparison["datasets"].append("bundled/hopper-medium")
    cells = expand(comparison)
    assert [cell.variant for cell in cells[:4]] == [
        "penalty=none",
        "penalty=max_std",
        "long",
        "SAC offline",
    ]
    assert [cell.dataset.id for cell in cells[3:5]] == [
        "bundled/hopper-medium-replay",
        "bundled/hopper-medium",
    ]
    assert cells[2].choices == {"rollout_length": 10}
    assert cells[2].settings.penalty_coef == 1.5
    assert cells[3].name == "SAC-offline__bundled-hopper-medium-replay"
    assert len(cells) == 8


def test_named_variants_alone_bring_no_default(comparison, expand):
    comparison |= {"algorithm": "combo", "variants": {"learned": {"beta": "learned"}}}
    assert [cell.variant for cell in expand(comparison)] == ["learned"]


def test_a_variant_wins_over_fixed(comparison, expand):
    comparison |= {
        "algorithm": "combo",
        "variants": {"own": {"beta": 0.5}, "shared": {}},
        "fixed": {"beta": 3.0},
    }
    assert [cell.settings.beta for cell in expand(comparison)] == [0.5, 3.0]


def test_two_names_for_one_training_are_two_rows_that_train_once(comparison, load, storage, finish):
    comparison |= {
        "algorithm": "mopo",
        "grid": {"penalty": ["none", "max_std"]},
        "variants": {"MBPO": {"algorithm": "mbpo"}},
    }
    sweep = load(comparison)
    cells = cells_of(sweep)
    none, _, mbpo = make_plan(sweep, cells, Storage(storage)).cells
    assert [job.seeds for job in none.jobs] == [(0, 1)]
    assert (mbpo.jobs, mbpo.same_as) == ((), cells[0])
    for seed in (0, 1):
        finish(cells[0], seed)
    none, _, mbpo = make_plan(sweep, cells, Storage(storage)).cells
    assert (none.done, mbpo.done) == ((0, 1), (0, 1))


def test_grid_and_fixed_belong_to_the_variants_too(comparison, expand):
    comparison |= {
        "algorithm": "mopo",
        "grid": {"penalty": ["none"]},
        "variants": {"cql": {"algorithm": "cql"}},
        "fixed": {"epochs": 7, "beta": 1.0},
    }
    assert [cell.settings.epochs for cell in expand(comparison)] == [7, 7]


VARIANT_MISTAKES = {
    "no algorithm at all": (
        {},
        ["algorithm: this key is required", "combo, cql, mbpo, mobile, mopo, sac"],
    ),
    "a variant without algorithm": (
        {"variants": {"a": {"algorithm": "mopo"}, "b": {}}},
        ["variants.b.algorithm: this key is required, here or at the top level", "mopo"],
    ),
    "a grid without algorithm": (
        {"grid": {"tau": [0.1]}, "variants": {"a": {"algorithm": "mopo"}}},
        ["algorithm: this key is required, at the top level or in grid"],
    ),
    "unknown algorithm in grid": (
        {"grid": {"algorithm": ["mopo", "ppo"]}},
        ["grid.algorithm: unknown algorithm 'ppo'", "mbpo"],
    ),
    "unknown algorithm of a variant": (
        {"variants": {"a": {"algorithm": ["mopo"]}}},
        ["variants.a.algorithm: unknown algorithm ['mopo']", "mbpo"],
    ),
    "algorithm in fixed": (
        {"algorithm": "mopo", "fixed": {"algorithm": "combo"}},
        ["fixed.algorithm: belongs at the top level"],
    ),
    "a key of another algorithm in grid": (
        {"algorithm": "mopo", "grid": {"beta": [1.0]}},
        ["grid.beta: unknown key for mopo", "penalty_coef"],
    ),
    "a grid key that one of two algorithms lacks": (
        {"grid": {"algorithm": ["mopo", "combo"], "penalty": ["none"]}},
        ["grid.penalty: unknown key for combo", "beta"],
    ),
    "a misspelt key of a variant": (
        {"algorithm": "combo", "variants": {"a": {"priro": "uniform"}}},
        ["variants.a.priro: unknown key for combo (did you mean 'prior')"],
    ),
    "a fixed key that no algorithm has": (
        {"grid": {"algorithm": ["mopo", "combo"]}, "fixed": {"penalti": "none"}},
        ["fixed.penalti: unknown key (did you mean 'penalty')", "beta"],
    ),
    "a fixed key of an algorithm that is not in the sweep": (
        {"algorithm": "mopo", "fixed": {"beta": 1.0}},
        ["fixed.beta: unknown key", "penalty"],
    ),
    "a baseline with another setting, in a variant": (
        {"variants": {"a": {"algorithm": "mbpo", "penalty": "max_std"}}},
        ["variants.a.penalty: mbpo is mopo with penalty: none, got 'max_std'", "mopo alone"],
    ),
    "a baseline with another setting, in the grid": (
        {"algorithm": "cql", "grid": {"real_ratio": [1.0, 0.5]}},
        ["grid.real_ratio: cql is combo with real_ratio: 1, got 0.5", "combo alone"],
    ),
    "a baseline with another setting, in fixed": (
        {"grid": {"algorithm": ["mopo", "sac"]}, "fixed": {"real_ratio": 0.1}},
        ["fixed.real_ratio: sac is mopo with real_ratio: 1, got 0.1", "mopo alone"],
    ),
    "a boolean that equals 1": (
        {"algorithm": "sac", "fixed": {"real_ratio": True}},
        ["fixed.real_ratio: must be a number, got True"],
    ),
    "a value out of bounds": (
        {"algorithm": "combo", "variants": {"a": {"temperature": 0}}},
        ["variants.a.temperature: must be greater than 0, got 0"],
    ),
    "keys that clash across sections": (
        {
            "algorithm": "combo",
            "variants": {"a": {"beta": "learned"}},
            "fixed": {"maximize_dataset_q": False},
        },
        ["variants.a.beta, fixed.maximize_dataset_q: beta: learned needs maximize_dataset_q: true"],
    ),
    "epochs of a variant": (
        {"algorithm": "mopo", "variants": {"a": {"epochs": 5}}},
        ["variants.a.epochs: belongs in 'fixed'"],
    ),
    "a name that no table can show": (
        {"algorithm": "mopo", "variants": {"a=b": {}}},
        ["variants: the name 'a=b' must be 1 to 64 letters, digits"],
    ),
    "an empty name": ({"algorithm": "mopo", "variants": {"": {}}}, ["variants: the name ''"]),
    "names of one folder": (
        {"algorithm": "mopo", "variants": {"a b": {}, "a+b": {"tau": 0.1}}},
        ["variants.a+b: names a folder 'a-b', as variants.a b does"],
    ),
    "the name of a grid's folder": (
        {
            "algorithm": "mopo",
            "grid": {"penalty": ["none"]},
            "variants": {"penalty-none": {"penalty": "combined"}},
        },
        ["variants.penalty-none: names a folder 'penalty-none', as the grid does"],
    ),
    "a variant without a mapping": (
        {"algorithm": "mopo", "variants": {"a": None}},
        ["variants.a: must be a mapping of keys to values, got None"],
    ),
    "variants as a list": (
        {"algorithm": "mopo", "variants": [{"tau": 0.1}]},
        ["variants: must be a mapping"],
    ),
    "unknown preset": (
        {"algorithm": "mopo", "preset": "mopo"},
        ["preset: unknown preset 'mopo': one of mopo_v0, offlinerlkit_v2"],
    ),
    "a preset without values for an algorithm": (
        {"preset": "mopo_v0", "variants": {"a": {"algorithm": "cql"}}},
        ["datasets[0]: preset mopo_v0 has no values for cql", "offlinerlkit_v2"],
    ),
    "a task of data that has its own": (
        {
            "algorithm": "mopo",
            "datasets": [{"id": "d4rl/hopper-medium-v2", "task": "hopper-medium-replay"}],
        },
        ["datasets[0]: ", "task"],
    ),
}


@pytest.mark.parametrize("mistake", VARIANT_MISTAKES)
def test_a_mistake_is_told_in_one_sentence(comparison, expand, mistake):
    changes, words = VARIANT_MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        expand(comparison | changes)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert len(sentence) < 800
    for word in words:
        assert word in sentence


# Presets


def test_a_preset_is_resolved_per_data_set_and_algorithm(comparison, expand):
    comparison |= {
        "preset": "offlinerlkit_v2",
        "datasets": ["d4rl/walker2d-medium-v2", "d4rl/walker2d-medium-replay-v2"],
        "grid": {"algorithm": ["mopo", "combo", "mbpo", "sac", "cql"]},
    }
    cells = expand(comparison)
    mopo, combo, mbpo, sac, cql, mopo_replay, combo_replay, *_ = (c.settings for c in cells)
    assert (mopo.penalty_coef, mopo.rollout_length) == (0.5, 5)
    assert (mopo_replay.penalty_coef, mopo_replay.rollout_length) == (2.5, 1)
    assert (combo.beta, combo.rollout_length) == (2.5, 1)
    assert (combo_replay.beta, combo_replay.rollout_length) == (0.25, 1)
    assert (mbpo.penalty, mbpo.penalty_coef, mbpo.rollout_length) == ("none", 0.0, 5)
    assert (cql.beta, cql.real_ratio) == (2.5, 1.0)
    assert {cell.settings.actor_lr_schedule for cell in cells} == {"cosine"}
    assert sac.rollout_length == 5  # the default: no row of the table is of it
    assert cells[0].result_key(0) != cells[5].result_key(0)


def test_the_presets_values_are_those_of_a_sweep_that_writes_them(comparison, expand):
    comparison |= {"algorithm": "mopo", "datasets": ["d4rl/walker2d-medium-v2"]}
    (preset,) = expand(comparison | {"preset": "offlinerlkit_v2"})
    written = {"penalty_coef": 0.5, "rollout_length": 5, "actor_lr_schedule": "cosine"}
    (explicit,) = expand(comparison | {"fixed": written})
    assert preset.settings == explicit.settings
    assert preset.result_key(0) == explicit.result_key(0)


def test_fixed_wins_over_the_preset_and_a_choice_over_both(comparison, expand):
    comparison |= {
        "algorithm": "combo",
        "preset": "offlinerlkit_v2",
        "variants": {"preset": {}, "own": {"beta": 7.0, "critic_lr": 1e-3}},
        "fixed": {"rollout_length": 2, "critic_lr": 2e-3},
    }
    preset, own = expand(comparison)
    assert (preset.settings.beta, preset.settings.rollout_length) == (0.25, 2)
    assert (preset.settings.critic_lr, preset.settings.alpha_lr) == (2e-3, 1e-4)
    assert (own.settings.beta, own.settings.critic_lr) == (7.0, 1e-3)
    assert preset.preset.keys() == {"beta", "actor_lr", "alpha_lr", "actor_lr_schedule"}
    assert own.preset.keys() == {"actor_lr", "alpha_lr", "actor_lr_schedule"}


def test_a_file_tells_its_task(comparison, expand, hopper_file):
    entry = {"id": f"file:{hopper_file()}", "env": "Hopper-v4"}
    comparison |= {"algorithm": "mopo", "preset": "mopo_v0"}
    with pytest.raises(UserError, match=r"datasets\[0\]: preset mopo_v0 needs .* give task"):
        expand(comparison | {"datasets": [entry]})
    (cell,) = expand(comparison | {"datasets": [entry | {"task": "hopper-medium"}]})
    assert cell.settings.penalty_coef == 5.0
    del comparison["preset"]
    (plain,) = expand(comparison | {"datasets": [entry]})
    (told,) = expand(comparison | {"datasets": [entry | {"task": "hopper-medium"}]})
    assert plain.result_key(0) == told.result_key(0)  # a task is no part of the data


# The sweeps of this project


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_of_the_project_can_be_planned(path, storage):
    sweep = load_sweep(path)
    assert sweep.name == path.stem
    assert sweep.question
    planned = make_plan(sweep, cells_of(sweep), Storage(storage))
    assert planned.jobs
    assert not storage.exists()


@pytest.mark.parametrize(
    ("name", "rows"), [("mopo_penalties", 6), ("mopo_penalties_matched", 6), ("combo_variants", 5)]
)
def test_the_papers_tables_have_their_cells(name, rows, storage):
    sweep = load_sweep(next(path for path in SWEEPS if path.stem == name))
    cells = cells_of(sweep)
    planned = make_plan(sweep, cells, Storage(storage))
    assert len(cells) == rows * 6
    assert len({cell.variant for cell in cells}) == rows
    assert all(len(cell.seeds) == 5 for cell in cells)
    assert (
        len({seed_result for c in cells for seed_result in map(c.result_key, c.seeds)}) == rows * 30
    )
    assert len(planned.ensembles_to_train) == 6 * 5  # whatever the variants
    assert len(planned.datasets_to_download) == 6
    assert planned.missing_data == ()
