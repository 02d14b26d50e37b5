"""What surrounds the trials of a run; the runs themselves are in tests/integration."""

import subprocess
import sys

import pytest
import torch
from rich.console import Console

from algorithms import ALGORITHMS
from algorithms.errors import UserError
from algorithms.rllib import MOPOConfig, config_class
from algorithms.stack.compilation import can_compile
from algorithms.storage import Storage
from orchestrator import tuning
from orchestrator.deployment import Settings
from orchestrator.plan import make_plan
from orchestrator.results import ResultStore
from orchestrator.sweep.cell import cells_of


def test_a_cell_is_trained_by_one_run_at_a_time(quickstart, expand, storage):
    cells = expand(quickstart)
    quickstart["grid"]["penalty"] = ["max_std", "combined"]
    overlapping = expand(quickstart)
    quickstart["grid"]["penalty"] = ["combined"]
    apart = expand(quickstart)
    with tuning._locked(cells, storage):
        again = tuning._locked(overlapping, storage)
        with pytest.raises(UserError, match="another run is training penalty-max_std__"), again:
            pass
        with tuning._locked(apart, storage):
            pass
    with tuning._locked(overlapping, storage):
        pass


def test_a_cell_of_two_names_is_held_once(quickstart, expand, storage):
    quickstart["variants"] = {"MBPO": {"algorithm": "mbpo"}}
    with tuning._locked(expand(quickstart), storage):
        pass


def test_one_tuner_trains_what_has_one_trainable(comparison, expand, load, storage):
    comparison["grid"] = {"algorithm": ["cql", "mopo", "sac", "combo", "mbpo"]}
    planned = make_plan(load(comparison), expand(comparison), Storage(storage))
    groups = tuning.by_base_algorithm(planned.jobs)
    algorithms = {base: [job.cell.algorithm for job in jobs] for base, jobs in groups.items()}
    assert algorithms == {"combo": ["cql", "combo"], "mopo": ["mopo", "sac", "mbpo"]}


class Recorder:
    """Stands in for the tracker."""

    def start_trial(self, record):
        self.tags = record["tags"]

    def log_result(self, cell_key, result, *, means):
        self.step, self.seeds = result["training_iteration"], result["seed"]

    def end_trial(self, cell_key):
        pass


@pytest.mark.parametrize(
    ("epochs", "scores", "diverged"),
    [(10, {"0": 30.0, "1": 31.0}, []), (20, {"0": 50.0, "1": None}, ["1"])],
)
def test_what_mlflow_is_told_of_a_trained_cell_is_what_the_table_says(
    quickstart, expand, finish, storage, epochs, scores, diverged
):
    """Seed 0 went on from 10 to 20 epochs, seed 1 diverged on the way."""
    quickstart["fixed"]["epochs"] = epochs
    trial = expand(quickstart)[0]
    at_10 = {seed: {10: 30.0 + seed} for seed in (0, 1)}
    finish(trial, 0, epochs=20, run_score=50.0, finished_scores=at_10[0] | {20: 50.0})
    diverged_at_15 = {"epochs": 15, "run_score": None, "status": "diverged"}
    finish(trial, 1, **diverged_at_15, finished_scores=at_10[1])
    told = Recorder()
    tuning._record_trained(told, trial, ResultStore(Storage(storage)))
    assert told.step == epochs
    assert told.seeds == {seed: {"run_score": score} for seed, score in scores.items()}
    assert [tag for tag in told.tags if tag.startswith("diverged")] == [
        f"diverged.seed_{seed}" for seed in diverged
    ]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_job_is_what_the_algorithms_config_takes(comparison, expand, load, storage, algorithm):
    comparison["algorithm"] = algorithm
    (job,) = make_plan(load(comparison), expand(comparison), Storage(storage)).jobs
    config = config_class(algorithm)()
    config.job = tuning.job_config(job, storage)
    assert config.settings == job.cell.settings
    assert config.dataset == job.cell.dataset
    keys = [spec.key for spec in config.ensemble_specs()]
    assert keys == [spec.key for spec in job.ensembles if spec]
    assert sorted(keys) == config.job["record"]["ensemble_keys"]


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

        monkeypatch.setattr(tuning.tune, "Tuner", Tuner)
        monkeypatch.setattr(tuning.ray, "cluster_resources", lambda: {"CPU": 4, "GPU": gpus})
        settings, sweep = Settings(storage, "sqlite://", None), load(content)
        jobs = make_plan(sweep, cells_of(sweep), Storage(storage)).jobs
        share = tuning._share(sweep, settings)
        assert tuning._tune(sweep, jobs, settings, None, share, Console()) == {}
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


def test_a_run_that_was_killed_holds_nothing(quickstart, expand, storage):
    (cell, _) = expand(quickstart)
    (storage / "locks").mkdir(parents=True)
    program = """
import sys, time, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""
    lock = storage / "locks" / f"{cell.cell_key}.lock"
    command = [sys.executable, "-c", program, str(lock)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another run"), tuning._locked([cell], storage):
        pass
    holder.kill()
    holder.wait()
    with tuning._locked([cell], storage):
        pass


def test_only_checkpoints_without_a_result_are_deleted(quickstart, expand, finish, storage):
    first, second = expand(quickstart)
    needed = storage / "trials" / "needed"
    finish(first, 0, checkpoint="needed")
    stale = storage / "trials" / "stale"
    finish(second, 0, checkpoint="stale")
    finish(second, 0, checkpoint="newer", epochs=9)
    tuning._prune([needed, stale], ResultStore(Storage(storage)))
    assert needed.is_dir()
    assert not stale.exists()


def test_a_trials_folder_has_a_name_that_file_systems_take():
    names = {tuning._name("t" * 200, range(first, first + 300)) for first in (0, 1)}
    assert len(names) == 2
    assert all(len(name) < 255 for name in names)
    assert tuning._name("t", [0, 1]) == "t__seeds-0-1"
