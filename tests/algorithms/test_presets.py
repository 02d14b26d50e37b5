import pytest

from algorithms import ALGORITHMS
from algorithms.data.catalog import TASKS
from algorithms.errors import UserError
from algorithms.presets import PRESETS, preset_settings

# Of the papers and their code, by hand: (preset, algorithm, task) -> some of its values.
KNOWN = {
    ("offlinerlkit_v2", "mopo", "hopper-medium-replay"): {"penalty_coef": 2.5, "rollout_length": 5},
    ("offlinerlkit_v2", "mopo", "walker2d-medium"): {"penalty_coef": 0.5, "rollout_length": 5},
    ("offlinerlkit_v2", "mopo", "halfcheetah-medium-expert"): {"penalty_coef": 2.5},
    ("offlinerlkit_v2", "combo", "hopper-medium-replay"): {"beta": 0.25, "rollout_length": 5},
    ("offlinerlkit_v2", "combo", "walker2d-medium"): {"beta": 2.5, "rollout_length": 1},
    ("offlinerlkit_v2", "combo", "halfcheetah-medium"): {"beta": 0.25, "actor_lr": 1e-4},
    ("offlinerlkit_v2", "mobile", "hopper-medium"): {"penalty_coef": 1.5, "alpha": 0.2},
    ("offlinerlkit_v2", "mobile", "hopper-medium-replay"): {"penalty_coef": 0.1, "alpha": "auto"},
    ("offlinerlkit_v2", "mobile", "walker2d-medium-replay"): {
        "penalty_coef": 0.5,
        "rollout_length": 1,
        "actor_lr_schedule": "cosine",
    },
    ("offlinerlkit_v2", "mobile", "halfcheetah-medium-expert"): {
        "penalty_coef": 2.0,
        "rollout_length": 5,
    },
    ("mopo_v0", "mopo", "walker2d-medium-expert"): {"penalty_coef": 2.0, "rollout_length": 1},
    ("mopo_v0", "mopo", "halfcheetah-medium-expert"): {"penalty_coef": 5.0, "rollout_length": 5},
    ("mopo_v0", "mopo", "hopper-medium"): {"actor_lr": 3e-4, "actor_lr_schedule": "constant"},
}

NINE = {
    f"{robot}-{level}"
    for robot in ("hopper", "walker2d", "halfcheetah")
    for level in ("medium", "medium-replay", "medium-expert")
}


@pytest.mark.parametrize(("preset", "algorithm", "task"), KNOWN)
def test_known_values(preset, algorithm, task):
    expected = KNOWN[preset, algorithm, task]
    values = preset_settings(preset, algorithm, task)
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_every_table_has_the_nine_tasks_of_the_papers_and_settings_that_its_algorithm_accepts(
    preset,
):
    tables = {
        name: row.presets[preset]
        for name, row in ALGORITHMS.items()
        if row.base == name and preset in (row.presets or {})
    }
    assert "mopo" in tables
    for algorithm, table in tables.items():
        assert table.keys() == NINE <= TASKS.keys()
        for task in table:
            values = preset_settings(preset, algorithm, task)
            settings = ALGORITHMS[algorithm].settings(**values)
            assert {key: getattr(settings, key) for key in values} == values


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("baseline", ["mbpo", "sac", "cql"])
def test_a_baseline_takes_the_settings_that_it_has(preset, baseline):
    entry = ALGORITHMS[baseline]
    if preset in ALGORITHMS[entry.base].presets:
        values = preset_settings(preset, baseline, "walker2d-medium")
        entry.settings(**values, **entry.pinned)
        of_base = preset_settings(preset, entry.base, "walker2d-medium")
        assert values.items() <= of_base.items()


def test_sac_needs_no_task_because_nothing_of_it_is_tuned_by_task():
    values = preset_settings("offlinerlkit_v2", "sac", None)
    assert values["actor_lr_schedule"] == "cosine"
    assert not {"penalty_coef", "rollout_length"} & values.keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mopo_v0", "combo", "hopper-medium"), ["no values for combo", "offlinerlkit_v2"]),
        (("mopo_v0", "cql", "hopper-medium"), ["no values for cql", "offlinerlkit_v2"]),
        (("mopo_v0", "mobile", "hopper-medium"), ["no values for mobile", "offlinerlkit_v2"]),
        (("mopo_v0", "mopo", None), ["give task, one of", "walker2d-medium-replay"]),
        (("mopo_v0", "mopo", "ant-medium"), ["unknown task 'ant-medium'", "hopper-medium"]),
    ],
)
def test_what_is_not_in_the_table_is_told_with_what_is(arguments, words):
    with pytest.raises(UserError) as error:
        preset_settings(*arguments)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
