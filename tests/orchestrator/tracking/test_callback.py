"""Tracking as a callback of Ray Tune, against a real MLflow server."""

import logging
from types import SimpleNamespace

import cloudpickle
import pytest
from mlflow_runs import a_cell, a_tracker, an_epoch, curve, runs_of, the_run, wait_for

from orchestrator.callbacks import TrackingCallback
from orchestrator.tracking.mlflow.tracker import CELL, SWEEP
from orchestrator.tracking.records import JobRecord


def a_job(**changes):
    """What a trial's config has of a job, as a dictionary."""
    cell = a_cell(**changes)
    seeds = len(cell.seeds)
    record = JobRecord(
        cell=cell,
        epochs=5,
        epochs_done=0,
        result_keys=("key",) * seeds,
        ensemble_of_seed=(None,) * seeds,
    )
    return {"record": record.model_dump(mode="json")}


def a_trial(job, trial_id="t1"):
    return SimpleNamespace(trial_id=trial_id, config={"job": job}, last_result=None)


def a_result(epoch, *seeds):
    """A result of Tune's in which seed k's score is 10 epoch + k."""
    told = an_epoch(epoch, *seeds)
    return {
        "training_iteration": epoch,
        "minutes": told.minutes,
        "mean": told.mean,
        "seed": {str(seed): {"diverged": 0.0, **metrics} for seed, metrics in told.seeds.items()},
    }


def test_the_callback_maps_a_tune_trial_to_its_run(mlflow_server, client, sweep):
    tracker = a_tracker(mlflow_server, sweep)
    callback = TrackingCallback(tracker)
    trial = a_trial(a_job())
    callback.setup()
    callback.on_trial_start(0, [trial], trial)
    callback.on_trial_result(1, [trial], trial, a_result(1))
    trial.last_result = a_result(2)
    callback.on_trial_result(2, [trial], trial, trial.last_result)
    callback.on_trial_complete(2, [trial], trial)
    callback.on_experiment_end([trial])
    tracker.close()
    child = the_run(client, sweep, CELL)
    assert child.info.status == "FINISHED"
    assert curve(client, child, "run_score") == [(1, 10.5), (2, 20.5)]
    assert child.data.tags["orchestrator.mean_over_seeds"] == "0,1"
    parent = the_run(client, sweep, SWEEP)
    assert parent.data.metrics == {"run_score/penalty-max_std__hopper-medium": 20.5}


def test_a_failed_trial_and_an_interrupted_one(mlflow_server, client, sweep):
    tracker = a_tracker(mlflow_server, sweep)
    callback = TrackingCallback(tracker)
    failed = a_trial(a_job(key="failed"), "t1")
    interrupted = a_trial(a_job(key="interrupted"), "t2")
    for trial in (failed, interrupted):
        callback.on_trial_start(0, [], trial)
    callback.on_trial_error(1, [], failed)
    callback.on_experiment_end([])
    tracker.close()
    states = {run.data.tags.get(CELL): run.info.status for run in runs_of(client, sweep)}
    assert states == {None: "FAILED", "failed": "FAILED", "interrupted": "KILLED"}


def test_trials_of_one_cell_share_its_run_until_the_last_ends(mlflow_server, client, sweep):
    """After `seeds: 2 -> 3`: two seeds continue together, the third starts."""
    tracker = a_tracker(mlflow_server, sweep)
    callback = TrackingCallback(tracker)
    pair = a_trial(a_job(seeds=(0, 1), cell_seeds=(0, 1, 2)), "t1")
    third = a_trial(a_job(seeds=(2,), cell_seeds=(0, 1, 2)), "t2")
    for trial in (pair, third):
        callback.on_trial_start(0, [], trial)
    callback.on_trial_result(0, [], pair, a_result(6, 0, 1))
    pair.last_result = a_result(6, 0, 1)
    callback.on_trial_complete(0, [], pair)
    callback.on_trial_result(0, [], third, a_result(1, 2))
    wait_for(lambda: "seed_2/run_score" in cell_metrics(client, sweep))
    assert the_run(client, sweep, CELL).info.status == "RUNNING"
    callback.on_trial_complete(0, [], third)
    tracker.close()
    run = the_run(client, sweep, CELL)
    assert run.info.status == "FINISHED"
    assert {name for name in run.data.metrics if "diverged" not in name} == {
        f"seed_{seed}/run_score" for seed in range(3)
    }
    assert the_run(client, sweep, SWEEP).data.metrics == {}


def cell_metrics(client, sweep):
    return [name for run in runs_of(client, sweep) for name in run.data.metrics]


def test_the_callback_survives_pickling_while_it_works(mlflow_server, client, sweep):
    tracker = a_tracker(mlflow_server, sweep)
    callback = TrackingCallback(tracker)
    trial = a_trial(a_job())
    callback.on_trial_start(0, [trial], trial)
    copy = cloudpickle.loads(cloudpickle.dumps(callback))
    copy.on_trial_result(1, [trial], trial, a_result(1))  # in a run that it never opened
    copy._tracker.start_cell(a_cell())
    copy._tracker.log_epoch("c0ffee", an_epoch(2))
    copy._tracker.close()
    tracker.close()
    assert [step for step, _ in curve(client, the_run(client, sweep, CELL), "run_score")] == [2]


@pytest.mark.ray
@pytest.mark.slow
def test_in_a_real_tuner(mlflow_server, client, sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    import ray
    from ray import tune

    def train(config):
        for epoch in (1, 2):
            tune.report(
                {
                    "mean": {"run_score": 10.0 * epoch},
                    "seed": {"0": {"run_score": 10.0 * epoch, "diverged": 0.0}},
                    "minutes": 0.1,
                }
            )
        if config["job"]["record"]["cell"]["key"] == "bad":
            raise RuntimeError("diverged")

    ray.init(num_cpus=1, include_dashboard=False, logging_level=logging.ERROR)
    try:
        jobs = [a_job(key=key, seeds=(0,), cell_seeds=(0,), name=key) for key in ("good", "bad")]
        with a_tracker(mlflow_server, sweep) as tracker:
            tune.Tuner(
                train,
                param_space={"job": tune.grid_search(jobs)},
                run_config=tune.RunConfig(
                    storage_path=str(tmp_path),
                    callbacks=[TrackingCallback(tracker)],
                    verbose=0,
                ),
            ).fit()
    finally:
        ray.shutdown()
    runs = {run.data.tags.get(CELL): run for run in runs_of(client, sweep)}
    assert {key: run.info.status for key, run in runs.items()} == {
        None: "FAILED",
        "good": "FINISHED",
        "bad": "FAILED",
    }
    assert curve(client, runs["good"], "seed_0/run_score") == [(1, 10.0), (2, 20.0)]
    assert runs[None].data.metrics == {"run_score/good": 20.0}
