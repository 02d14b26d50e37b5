"""What surrounds the trials of a run; the runs themselves are in tests/integration."""

import subprocess
import sys

import pytest
import torch
from rich.console import Console

from algorithms import ALGORITHMS
from algorithms.errors import UserError
from algorithms.rllib import MOPOConfig, OfflineConfig, config_class
from algorithms.stack.compilation import can_compile
from algorithms.storage import Storage
from orchestrator import run, tune
from orchestrator.deployment import Deployment
from orchestrator.plan import make_plan
from orchestrator.results import ResultStore
from orchestrator.sweep.cell import cells_of
from orchestrator.tracking.records import JobRecord


@pytest.fixture
def held(load, storage):
    """Hold the cells that a sweep has to train."""

    def held(content):
        sweep = load(content)
        plan = make_plan(sweep, cells_of(sweep), Storage(storage))
        return run._held(plan.jobs, Storage(storage))

    return held


def test_a_cell_is_trained_by_one_run_at_a_time(quickstart, held):
    overlapping = quickstart | {"grid": {"penalty": ["max_std", "combined"]}}
    apart = quickstart | {"grid": {"penalty": ["combined"]}}
    with held(quickstart):
        with pytest.raises(UserError, match="another run is training penalty-max_std__"):
            held(overlapping).__enter__()
        with held(apart):
            pass
    with held(overlapping):
        pass


def test_a_cell_of_two_names_is_held_once(quickstart, held):
    with held(quickstart | {"variants": {"MBPO": {"algorithm": "mbpo"}}}):
        pass


class Recorder:
    """Stands in for the tracker."""

    def start_cell(self, cell):
        self.cell = cell

    def log_epoch(self, cell_key, epoch):
        assert cell_key == self.cell.key
        self.epoch = epoch

    def end_cell(self, cell_key):
        assert cell_key == self.cell.key


@pytest.mark.parametrize(
    ("epochs", "scores", "diverged"),
    [(10, {0: 30.0, 1: 31.0}, ()), (20, {0: 50.0}, (1,))],
)
def test_what_mlflow_is_told_of_a_trained_cell_is_what_the_table_says(
    quickstart, expand, finish, storage, epochs, scores, diverged
):
    """Seed 0 went on from 10 to 20 epochs, seed 1 diverged on the way."""
    quickstart["fixed"]["epochs"] = epochs
    cell = expand(quickstart)[0]
    at_10 = {seed: {10: 30.0 + seed} for seed in (0, 1)}
    finish(cell, 0, epochs=20, run_score=50.0, finished_scores=at_10[0] | {20: 50.0})
    diverged_at_15 = {"epochs": 15, "run_score": None, "status": "diverged"}
    finish(cell, 1, **diverged_at_15, finished_scores=at_10[1])
    told = Recorder()
    tune.record_trained(told, cell, ResultStore(Storage(storage)))
    assert told.epoch.epoch == epochs
    assert told.epoch.seeds == {seed: {"run_score": score} for seed, score in scores.items()}
    assert not told.epoch.mean
    assert told.cell.diverged == diverged


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_job_is_what_the_algorithms_config_takes(comparison, expand, load, storage, algorithm):
    comparison["algorithm"] = algorithm
    plan = make_plan(load(comparison), expand(comparison), Storage(storage))
    (job,) = plan.jobs
    for config in (OfflineConfig(), config_class(algorithm)()):
        config.job = tune.job_config(job, plan, Storage(storage))
        assert config.settings == job.cell.settings
        assert config.dataset == job.cell.dataset
        keys = [spec.key for spec in config.ensemble_specs()]
        assert keys == [spec.key for spec in job.ensembles if spec]
        record = JobRecord.model_validate(config.job["record"])
        assert tuple(sorted(keys)) == record.cell.ensemble_keys


@pytest.fixture
def configured(monkeypatch, load, storage):
    """A sweep and the GPUs at hand -> the config and resources of each trial that Tune is given."""

    def configured(content, gpus):
        trained = []

        class Tuner:
            def __init__(self, trainable, *, param_space, **_):
                for job in param_space["job"]["grid_search"]:
                    space = {**param_space, "job": job}
                    config = trainable.get_default_config().update_from_dict(space)
                    resources = trainable.default_resource_request(space).required_resources
                    trained.append((config, resources))

            def fit(self):
                return []

        monkeypatch.setattr(tune.tune, "Tuner", Tuner)
        monkeypatch.setattr(tune.ray, "cluster_resources", lambda: {"CPU": 4, "GPU": gpus})
        deployment = Deployment(Storage(storage), "sqlite://", None)
        sweep = load(content)
        plan = make_plan(sweep, cells_of(sweep), Storage(storage))
        share = tune.share_of(sweep, deployment)
        assert tune.run_jobs(plan, plan.jobs, deployment, None, share, Console()) == {}
        return trained

    return configured


@pytest.mark.parametrize(("told", "epochs"), [(True, 1), (False, 1000)])  # not as `auto` would
def test_whether_to_compile_reaches_every_algorithm(comparison, configured, told, epochs):
    comparison |= {"compile": told, "fixed": {"epochs": epochs}}
    trained = configured(comparison | {"grid": {"algorithm": ["mopo", "combo"]}}, gpus=0)
    assert [config.compiles(torch.device("cpu")) for config, _ in trained] == [told] * 2


@pytest.mark.parametrize(
    ("steps", "expected"), [(9_999, False), (10_000, can_compile("cpu"))], ids=["short", "long"]
)
def test_long_trainings_are_compiled_if_nothing_is_told(steps, expected):
    config = MOPOConfig().training(epochs=steps, gradient_steps_per_epoch=1)
    assert config.compiles(torch.device("cpu")) == expected
    assert not config.offline(compile=False).compiles(torch.device("cpu"))


@pytest.mark.parametrize(
    ("keys", "gpus", "expected"),
    [
        ({}, 2, {"CPU": 2, "GPU": 1}),
        ({"parallel_evaluation": False}, 2, {"CPU": 1, "GPU": 1}),
        ({"cpus_per_trial": 2}, 2, {"CPU": 2, "GPU": 1}),
        ({"gpus_per_trial": 0.25}, 2, {"CPU": 1, "GPU": 0.25}),
        ({"gpus_per_trial": 0.5, "parallel_evaluation": True}, 2, {"CPU": 2, "GPU": 0.5}),
        (
            {"gpus_per_trial": 0.25, "device": "cuda", "cpus_per_trial": 3},
            2,
            {"CPU": 3, "GPU": 0.25},
        ),
        ({"gpus_per_trial": 0.25, "device": "cpu"}, 2, {"CPU": 1}),
        ({"gpus_per_trial": 0.25}, 0, {"CPU": 1}),
        ({"parallel_evaluation": True, "cpus_per_trial": 2}, 0, {"CPU": 3}),
    ],
    ids=[
        "default",
        "evaluated in turns",
        "a CPU each for two GPUs' evaluation is not left",
        "share",
        "evaluated beside, though not every GPU's share finds CPUs",
        "share and CPUs",
        "on CPUs",
        "no GPU",
        "evaluated beside on CPUs",
    ],
)
def test_a_trial_asks_for_its_share_of_a_gpu(comparison, configured, keys, gpus, expected):
    comparison["algorithm"] = "mopo"
    ((_, resources),) = configured(comparison | keys, gpus)
    assert {name: n for name, n in resources.items() if n} == expected


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"cpus_per_trial": 5}, "cpus_per_trial: 5, but there are 4"),
        (
            {"cpus_per_trial": 4, "parallel_evaluation": True},
            "cpus_per_trial: 4, and one for parallel_evaluation, but there are 4",
        ),
        ({"device": "cuda"}, "device: cuda, but this machine has no GPU: use auto or cpu"),
    ],
)
def test_more_than_this_machine_has_is_refused(comparison, configured, keys, sentence):
    with pytest.raises(UserError) as error:
        configured(comparison | {"algorithm": "mopo"} | keys, gpus=0)
    assert str(error.value) == sentence


def test_a_run_that_was_killed_holds_nothing(quickstart, held, storage):
    quickstart["grid"]["penalty"] = ["max_std"]
    with held(quickstart):
        (lock,) = (storage / "locks").iterdir()
    program = """
import sys, time
from algorithms.storage import Storage
with Storage(sys.argv[1]).lease(sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", program, str(storage), lock.stem]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another run"), held(quickstart):
        pass
    holder.kill()
    holder.wait()
    with held(quickstart):
        pass


def test_only_checkpoints_without_a_result_are_deleted(quickstart, expand, finish, storage):
    first, second = expand(quickstart)
    needed = storage / "trials" / "needed"
    finish(first, 0, checkpoint="needed")
    stale = storage / "trials" / "stale"
    finish(second, 0, checkpoint="stale")
    finish(second, 0, checkpoint="newer", epochs=9)
    tune.prune([needed, stale], ResultStore(Storage(storage)), Storage(storage))
    assert needed.is_dir()
    assert not stale.exists()


def test_a_trials_folder_has_a_name_that_file_systems_take():
    names = {tune._name("t" * 200, range(first, first + 300)) for first in (0, 1)}
    assert len(names) == 2
    assert all(len(name) < 255 for name in names)
    assert tune._name("t", [0, 1]) == "t__seeds-0-1"
