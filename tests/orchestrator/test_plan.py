import json
import shutil
import sys

import pytest
from rich.console import Console

from algorithms.data import d4rl
from algorithms.data.bundled import source
from algorithms.errors import UserError
from algorithms.storage import Storage
from orchestrator.plan import Resume, make_plan
from orchestrator.sweep.cell import cells_of


@pytest.fixture
def plan(load, storage):
    """A mapping -> its plan against the storage."""

    def plan(content):
        sweep = load(content)
        return make_plan(sweep, cells_of(sweep), Storage(storage))

    return plan


@pytest.fixture
def publish(storage):
    """Make an ensemble look published."""

    def publish(spec):
        folder = storage / "ensembles" / spec.key
        folder.mkdir(parents=True)
        (folder / "ensemble.json").write_text("{}")

    return publish


def test_of_an_empty_storage_everything_is_to_do(quickstart, plan, storage):
    planned = plan(quickstart)
    assert [(job.seeds, job.resume) for job in planned.jobs] == [((0, 1), None)] * 2
    assert [(e.spec.seed, e.cached, e.to_train) for e in planned.ensembles] == [(0, False, True)]
    assert [dataset.id for dataset in planned.datasets_to_generate] == quickstart["datasets"]
    assert planned.gradient_steps == 2 * 2 * 5 * 1000
    assert not storage.exists()


def test_per_seed_dynamics_need_an_ensemble_per_seed(quickstart, plan):
    planned = plan(quickstart | {"dynamics_seeds": "per_seed", "seeds": [4, 7]})
    assert [spec.seed for spec in planned.ensembles_to_train] == [4, 7]


def test_six_penalties_on_two_data_sets_need_two_ensembles(quickstart, plan):
    penalties = ["none", "max_std", "member_std", "combined", "mixture_std", "ensemble_variance"]
    quickstart["grid"]["penalty"] = penalties
    quickstart["datasets"].append("bundled/hopper-medium")
    planned = plan(quickstart)
    assert (len(planned.cells), len(planned.ensembles)) == (12, 2)


def test_when_all_is_done_nothing_is_to_run(quickstart, expand, plan, finish):
    for trial in expand(quickstart):
        finish(trial, 0)
        finish(trial, 1, position=1)
    planned = plan(quickstart)
    assert planned.jobs == ()
    assert [cell.done for cell in planned.cells] == [(0, 1)] * 2
    assert planned.ensembles_to_train == ()  # although it is not in the storage any more
    assert planned.datasets_to_generate == ()
    assert planned.summary().startswith("nothing to run")


def test_one_more_seed_trains_that_seed_alone(quickstart, expand, plan, finish):
    for trial in expand(quickstart):
        finish(trial, 0)
        finish(trial, 1, position=1)
    planned = plan(quickstart | {"seeds": 3})
    assert [(job.seeds, job.resume) for job in planned.jobs] == [((2,), None)] * 2


def test_another_penalty_is_one_trial_and_no_ensemble(quickstart, expand, plan, finish, publish):
    cells = expand(quickstart)
    publish(cells[0].ensemble(0))
    for trial in cells:
        finish(trial, 0)
        finish(trial, 1, position=1)
    quickstart["grid"]["penalty"] = ["none", "combined", "max_std"]
    planned = plan(quickstart)
    assert [(job.cell.variant, job.seeds) for job in planned.jobs] == [("penalty=combined", (0, 1))]
    assert [e.cached for e in planned.ensembles] == [True]
    assert planned.ensembles_to_train == ()


def test_more_epochs_continue_from_the_checkpoint(quickstart, expand, plan, finish):
    for trial in expand(quickstart):
        checkpoint = finish(trial, 0).checkpoint
        finish(trial, 1, position=1)
    quickstart["fixed"]["epochs"] = 8
    planned = plan(quickstart)
    assert planned.jobs[1].seeds == (0, 1)
    assert planned.jobs[1].resume == Resume(checkpoint, positions=(0, 1), epochs=5)
    assert planned.jobs[1].epochs_left == 3
    assert planned.gradient_steps == 2 * 2 * 3 * 1000


def test_fewer_epochs_than_are_trained_run_nothing(quickstart, expand, plan, finish):
    for trial in expand(quickstart):
        finish(trial, 0)
        finish(trial, 1)
    quickstart["fixed"]["epochs"] = 2
    assert plan(quickstart).jobs == ()


def test_seeds_continue_together_only_from_one_epoch_of_one_checkpoint(
    quickstart, expand, plan, finish
):
    quickstart |= {"seeds": [0, 1, 2, 3, 4, 5], "grid": {"penalty": ["none"]}}
    (trial,) = expand(quickstart)
    first = finish(trial, 0, epochs=2, checkpoint="a", position=1).checkpoint
    finish(trial, 3, epochs=2, checkpoint="a", position=0)
    finish(trial, 1, epochs=1, checkpoint="a", position=2)
    second = finish(trial, 2, epochs=2, checkpoint="b").checkpoint
    finish(trial, 4, epochs=5)
    (cell,) = plan(quickstart).cells
    assert [(job.seeds, job.resume) for job in cell.jobs] == [
        ((0, 3), Resume(first, (1, 0), 2)),
        ((1,), Resume(first, (2,), 1)),
        ((2,), Resume(second, (0,), 2)),
        ((5,), None),
    ]
    assert cell.done == (4,)
    assert cell.new == (5,)


def test_a_seed_whose_checkpoint_is_gone_starts_anew_unless_it_is_done(
    quickstart, expand, plan, finish
):
    quickstart["grid"]["penalty"] = ["none"]
    (trial,) = expand(quickstart)
    shutil.rmtree(finish(trial, 0, epochs=5, checkpoint="finished").checkpoint)
    shutil.rmtree(finish(trial, 1, epochs=2, checkpoint="started").checkpoint)
    (cell,) = plan(quickstart).cells
    assert cell.done == (0,)
    assert [(job.seeds, job.resume) for job in cell.jobs] == [((1,), None)]


def test_a_diverged_seed_is_not_tried_again(quickstart, expand, plan, finish):
    quickstart["grid"]["penalty"] = ["none"]
    (trial,) = expand(quickstart)
    finish(trial, 0, epochs=1, status="diverged")
    finish(trial, 1, epochs=2, position=1)
    (cell,) = plan(quickstart).cells
    assert cell.done == (0,)
    assert [job.seeds for job in cell.jobs] == [(1,)]


def test_generated_data_is_not_generated_again(quickstart, expand, plan, storage):
    path = storage / source.cache_name(expand(quickstart)[0].dataset)
    path.parent.mkdir(parents=True)
    path.touch()
    assert plan(quickstart).datasets_to_generate == ()


def test_a_file_is_never_to_be_generated(quickstart, plan, hopper_file):
    quickstart["datasets"] = [{"id": f"file:{hopper_file()}", "env": "Hopper-v4"}]
    assert plan(quickstart).datasets_to_generate == ()


def test_a_file_of_d4rls_that_is_not_there_is_downloaded_until_nothing_needs_it(
    quickstart, expand, plan, finish, storage
):
    quickstart |= {"datasets": ["hopper-medium-replay-v2", "bundled/hopper-medium"]}
    planned = plan(quickstart)
    assert planned.missing_data == ()
    assert "1 data set to generate, 1 data set to download (75.9 MB);" in planned.summary()
    assert planned.to_json()["datasets_to_download"] == [
        {"id": "d4rl/hopper-medium-replay-v2", "bytes": 75_854_457}
    ]
    for trial in expand(quickstart):
        finish(trial, 0)
        finish(trial, 1, position=1)
    assert "download" not in plan(quickstart).summary()


def test_a_file_of_d4rls_that_is_not_there_is_missing_offline_until_nothing_needs_it(
    quickstart, expand, plan, finish, storage, monkeypatch
):
    monkeypatch.setenv("ORCHESTRATOR_OFFLINE", "1")
    quickstart |= {"datasets": ["d4rl/hopper-medium-v2", "bundled/hopper-medium"]}
    assert plan(quickstart).datasets_to_download == {}
    (sentence,) = plan(quickstart).missing_data
    assert "hopper_medium-v2.hdf5" in sentence
    assert str(storage) in sentence
    for trial in expand(quickstart):
        finish(trial, 0)
        finish(trial, 1, position=1)
    assert plan(quickstart).missing_data == ()


def test_a_package_that_is_missing_is_told_before_a_download(quickstart, plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    monkeypatch.setattr(d4rl, "fetch", None)
    quickstart["datasets"] = ["door-human-v1"]
    with pytest.raises(UserError, match=r"datasets\[0\]: .* needs the package gymnasium-robotics"):
        plan(quickstart)


def test_missing_data_the_preset_and_equal_rows_are_shown(quickstart, plan, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_OFFLINE", "1")
    quickstart |= {
        "datasets": ["d4rl/walker2d-medium-v2"],
        "preset": "offlinerlkit_v2",
        "variants": {"MBPO": {"algorithm": "mbpo"}, "cql": {"algorithm": "cql"}},
        "fixed": {"epochs": 5},
    }
    planned = plan(quickstart)
    told = json.loads(json.dumps(planned.to_json()))
    none, _, mbpo, cql = told["cells"]
    assert (told["preset"], cql["algorithm"], cql["settings"]["beta"]) == (
        "offlinerlkit_v2",
        "cql",
        2.5,
    )
    assert (mbpo["same_as"], mbpo["new"]) == (none["name"], [])
    assert told["missing_data"] == list(planned.missing_data)
    console = Console(width=150)
    with console.capture() as capture:
        console.print(planned.render())
    text = capture.get()
    for words in (
        "as penalty=none",
        "actor_lr_schedule=cosine",
        "OfflineRL-Kit",
        "penalty_coef=0.5",
        "beta=2.5",
        "walker2d_medium-v2.hdf5",
    ):
        assert words in text


def test_json_and_tables_tell_the_same(quickstart, expand, plan, finish):
    trial, other = expand(quickstart)
    finish(trial, 0)
    finish(trial, 1, epochs=2)
    planned = plan(quickstart)
    told = json.loads(json.dumps(planned.to_json()))
    assert told["cells"][0] == {
        "name": trial.name,
        "variant": "penalty=none",
        "algorithm": "mopo",
        "dataset": "bundled/hopper-medium-replay",
        "settings": trial.settings.model_dump(mode="json"),
        "same_as": None,
        "seeds": [0, 1],
        "done": [0],
        "continuing": [{"seeds": [1], "epochs": 2}],
        "new": [],
    }
    assert told["cells"][1]["new"] == [0, 1]
    assert told["ensembles"] == [
        {
            "key": other.ensemble(0).key,
            "dataset": "bundled/hopper-medium-replay",
            "seed": 0,
            "cached": False,
            "to_train": True,
        }
    ]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(planned.render())
    text = capture.get()
    for word in ("penalty=max_std", "1 from epoch 2", other.ensemble(0).key, "to train"):
        assert word in text
    assert "to run: 3 seeds in 2 cells" in text
    assert "13,000 gradient steps" in text


def test_a_seed_that_starts_anew_because_its_checkpoint_is_gone_is_announced(
    quickstart, expand, plan, finish
):
    trial, _ = expand(quickstart)
    shutil.rmtree(finish(trial, 0, epochs=2).checkpoint)
    planned = plan(quickstart)
    assert planned.cells[0].lost == (0,)
    assert "1 seed of these start anew" in planned.summary()
