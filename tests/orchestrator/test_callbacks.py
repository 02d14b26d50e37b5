"""What follows Tune's trials, told of results as Tune tells them."""

import math
from types import SimpleNamespace

import pytest
from rich.console import Console

from algorithms.progress import StageProgress
from algorithms.storage import Storage
from orchestrator.callbacks import ProgressCallback, ResultCallback, TrackingCallback
from orchestrator.plan import make_plan
from orchestrator.results import ResultStore
from orchestrator.tune import job_config


class Told:
    """A tracker that keeps the diverged seeds of the cells it is told of."""

    def __init__(self):
        self.diverged = []

    def start_cell(self, cell):
        self.diverged.append(cell.diverged)

    def log_epoch(self, cell_key, epoch):
        pass

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
        plan = make_plan(load(content), expand(content), Storage(storage))
        (job,) = plan.jobs
        config = {"job": job_config(job, plan, Storage(storage))}
        return SimpleNamespace(trial_id="1", config=config, job=job)

    return tune_trial


def a_result(epoch, *seeds, done=False):
    return {
        "epoch": epoch,
        "training_iteration": epoch,
        "mean": {},
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


def test_a_tracker_is_told_once_of_each_seed_that_diverges(tune_trial, tracker):
    trial, callback = tune_trial(), TrackingCallback(tracker)
    for epoch, seeds in enumerate([[0.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 1.0]]):
        result = a_result(epoch, *({"diverged": value} for value in seeds))
        callback.on_trial_result(epoch, [trial], trial, result)
    assert tracker.diverged == [(1,), (0, 1)]


def test_the_curve_of_a_seed_is_kept_up_to_its_last_checkpoint(tune_trial, tracker, storage):
    store, trial = ResultStore(Storage(storage)), tune_trial()
    keys = [trial.job.cell.result_key(seed) for seed in (0, 1)]
    checkpoint = SimpleNamespace(path=str(storage / "trials" / "checkpoint_1"))
    callback = ResultCallback(store, tracker)

    def train(callback, *epochs):
        for epoch in epochs:
            metrics = ({"run_score": 10.0 * epoch + seed} for seed in (0, 1))
            trial.last_result = a_result(epoch, *metrics)
            callback.on_trial_result(epoch, [trial], trial, trial.last_result)

    train(callback, 1, 2)
    assert store.get_curve(keys[0]).empty
    callback.on_checkpoint(2, [trial], trial, checkpoint)
    train(callback, 3)
    assert store.get_curve(keys[1])["run_score"].tolist() == [11.0, 21.0]
    # The driver is lost with epoch 3; another continues from the checkpoint, and replays one epoch.
    another = ResultCallback(store, tracker)
    train(another, 3, 4, 3, 4)
    another.on_checkpoint(4, [trial], trial, checkpoint)
    curve = store.get_curve(keys[1])
    assert curve["epoch"].tolist() == [1, 2, 3, 4]
    assert curve["run_score"].tolist() == [11.0, 21.0, 31.0, 41.0]


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
