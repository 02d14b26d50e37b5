"""What follows Tune's trials, told of results as Tune tells them."""

import math
from types import SimpleNamespace

import pytest
from orchestrator.tuning import job_config
from rich.console import Console

from algorithms.storage import Storage
from orchestrator.callbacks import DivergenceCallback, ProgressCallback, ResultCallback
from orchestrator.plan import make_plan
from orchestrator.progress import StageProgress
from orchestrator.results import ResultStore


class Told:
    """A tracker that keeps the tags of the trials it is told of."""

    def __init__(self):
        self.tags = []

    def start_trial(self, record):
        self.tags.append(record["tags"])

    def run_id(self, cell_key):
        return f"run of {cell_key}"


@pytest.fixture
def tracker():
    return Told()


@pytest.fixture
def tune_trial(comparison, load, expand, storage):
    """A trial as Tune would hold it: two seeds of an algorithm, from the start."""

    def tune_trial(algorithm="mopo"):
        content = comparison | {"algorithm": algorithm}
        (job,) = make_plan(load(content), expand(content), Storage(storage)).jobs
        return SimpleNamespace(trial_id="1", config={"job": job_config(job, storage)}, job=job)

    return tune_trial


def a_result(epoch, *seeds, done=False):
    return {
        "epoch": epoch,
        "done": done,
        "seed": {str(seed): {"diverged": 0.0, **metrics} for seed, metrics in enumerate(seeds)},
        "behaviour_score": 7.5,
        "minutes": 3.0,
    }


@pytest.fixture
def checkpointed(tune_trial, storage, tracker):
    """Checkpoint a trial after a result; the results of its seeds that are then in the storage."""

    def checkpointed(result, algorithm="mopo"):
        trial = tune_trial(algorithm)
        trial.last_result = result
        checkpoint = SimpleNamespace(path=str(storage / "trials" / "checkpoint_1"))
        store = ResultStore(Storage(storage))
        ResultCallback(store, tracker).on_checkpoint(1, [trial], trial, checkpoint)
        return [store.get(trial.job.cell.result_key(seed)) for seed in (0, 1)]

    return checkpointed


def test_a_checkpoint_is_pointed_at_by_the_result_of_each_seed(checkpointed, storage):
    first, second = checkpointed(a_result(3, {"run_score": 1.0}, {"run_score": 2.0}))
    assert (first.epochs, first.run_score, first.position, first.status) == (3, 1.0, 0, "running")
    assert (second.seed, second.run_score, second.position) == (1, 2.0, 1)
    assert first.checkpoint == str(storage / "trials" / "checkpoint_1")
    assert first.ensemble_key != second.ensemble_key
    assert first.finished_scores == {}


def test_a_training_that_reached_its_goal_keeps_its_score(checkpointed):
    first, _ = checkpointed(a_result(9, {"run_score": 1.0}, {"run_score": 2.0}, done=True))
    assert (first.status, first.finished_scores) == ("finished", {9: 1.0})


def test_a_seed_has_diverged_if_the_training_says_so(checkpointed):
    sound = {"run_score": 1.0, "model_return": math.inf, "penalty": math.nan}
    frozen = {"run_score": 50.0, "diverged": 1.0}
    first, second = checkpointed(a_result(3, sound, frozen, done=True))
    assert (first.status, first.run_score) == ("finished", 1.0)
    assert (second.status, second.run_score, second.finished_scores) == ("diverged", None, {})
    assert second.done(1000)  # there is nothing left to train


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_not_a_number_is_none(checkpointed, score):
    first, _ = checkpointed(a_result(3, {"run_score": score}, {"run_score": 2.0}, done=True))
    assert (first.status, first.run_score, first.finished_scores) == ("finished", None, {})


def test_a_seed_without_an_evaluation_has_no_score_yet(checkpointed):
    first, _ = checkpointed(a_result(1, {}, {}))
    assert (first.status, first.run_score) == ("running", None)


def test_a_seed_that_trains_without_a_model_has_no_ensemble(checkpointed):
    first, _ = checkpointed(a_result(3, {"run_score": 1.0}, {"run_score": 2.0}), "sac")
    assert first.ensemble_key is None


def test_the_run_of_a_cell_is_tagged_with_its_diverged_seeds(tune_trial, tracker):
    trial, callback = tune_trial(), DivergenceCallback(tracker)
    for epoch, seeds in enumerate([[0.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 1.0]]):
        result = a_result(epoch, *({"diverged": value} for value in seeds))
        callback.on_trial_result(epoch, [trial], trial, result)
    variant = {"variant": "default"}
    assert tracker.tags == [
        variant | {"diverged.seed_1": "true"},
        variant | {"diverged.seed_0": "true", "diverged.seed_1": "true"},
    ]


def test_progress_counts_from_the_epoch_where_a_training_goes_on(
    comparison, expand, finish, tune_trial, capsys
):
    comparison["fixed"] = {"epochs": 20}
    for seed in (0, 1):
        finish(expand(comparison | {"algorithm": "mopo"})[0], seed, epochs=8, position=seed)
    trial = tune_trial()
    with StageProgress(Console(width=120)) as progress:
        callback = ProgressCallback(progress)
        callback.on_trial_start(0, [trial], trial)
        last = a_result(20, {}, {}, done=True) | {"mean": {"run_score": 12.34}}
        callback.on_trial_result(1, [trial], trial, last)
    start, end = capsys.readouterr().out.splitlines()
    assert start.endswith("seeds 0,1: 8/20 epochs starts")
    assert end.endswith("seeds 0,1: 20/20 epochs score 12.3")
