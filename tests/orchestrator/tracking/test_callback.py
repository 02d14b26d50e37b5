"""Tracking as a callback of Ray Tune, against a real MLflow server."""

import logging
from types import SimpleNamespace

import cloudpickle
import pytest
from mlflow_runs import a_job, an_epoch, curve, runs_of, the_run, wait_for

from orchestrator import tracking
from orchestrator.tracking import CELL, MLflowCallback, Tracker, job_of


def a_trial(job, trial_id="t1"):
    config = {"job": {"record": job}}
    return SimpleNamespace(trial_id=trial_id, config=config, last_result=None)


def test_the_callback_maps_a_tune_trial_to_its_run(mlflow_server, client, sweep):
    tracker = Tracker(mlflow_server.uri, sweep)
    callback = MLflowCallback(tracker)
    trial = a_trial(a_job())
    callback.setup()
    callback.on_trial_start(0, [trial], trial)
    callback.on_trial_result(1, [trial], trial, an_epoch(1))
    trial.last_result = an_epoch(2)
    callback.on_trial_result(2, [trial], trial, trial.last_result)
    callback.on_trial_complete(2, [trial], trial)
    callback.on_experiment_end([trial])
    tracker.close()
    child = the_run(client, sweep, CELL)
    assert child.info.status == "FINISHED"
    assert curve(client, child, "run_score") == [(1, 10.5), (2, 20.5)]
    assert child.data.tags["orchestrator.mean_over_seeds"] == "0,1"
    parent = the_run(client, sweep, tracking.SWEEP)
    assert parent.data.metrics == {"run_score/penalty-max_std__hopper-medium": 20.5}


def test_a_failed_trial_and_an_interrupted_one(mlflow_server, client, sweep):
    tracker = Tracker(mlflow_server.uri, sweep)
    callback = MLflowCallback(tracker)
    failed = a_trial(a_job(cell_key="failed"), "t1")
    interrupted = a_trial(a_job(cell_key="interrupted"), "t2")
    for trial in (failed, interrupted):
        callback.on_trial_start(0, [], trial)
    callback.on_trial_error(1, [], failed)
    callback.on_experiment_end([])
    tracker.close()
    states = {run.data.tags.get(CELL): run.info.status for run in runs_of(client, sweep)}
    assert states == {None: "FAILED", "failed": "FAILED", "interrupted": "KILLED"}


def test_trials_of_one_cell_share_its_run_until_the_last_ends(mlflow_server, client, sweep):
    """After `seeds: 2 -> 3`: two seeds continue together, the third starts."""
    tracker = Tracker(mlflow_server.uri, sweep)
    callback = MLflowCallback(tracker)
    pair = a_trial(a_job(seeds=[0, 1], cell_seeds=[0, 1, 2]), "t1")
    third = a_trial(a_job(seeds=[2], cell_seeds=[0, 1, 2]), "t2")
    for trial in (pair, third):
        callback.on_trial_start(0, [], trial)
    callback.on_trial_result(0, [], pair, an_epoch(6, 0, 1))
    pair.last_result = an_epoch(6, 0, 1)
    callback.on_trial_complete(0, [], pair)
    callback.on_trial_result(0, [], third, an_epoch(1, 2))
    wait_for(lambda: "seed_2/run_score" in cell_metrics(client, sweep))
    assert the_run(client, sweep, CELL).info.status == "RUNNING"
    callback.on_trial_complete(0, [], third)
    tracker.close()
    run = the_run(client, sweep, CELL)
    assert run.info.status == "FINISHED"
    assert set(run.data.metrics) == {"seed_0/run_score", "seed_1/run_score", "seed_2/run_score"}
    assert the_run(client, sweep, tracking.SWEEP).data.metrics == {}


def cell_metrics(client, sweep):
    return [name for run in runs_of(client, sweep) for name in run.data.metrics]


def test_the_callback_survives_pickling_while_it_works(mlflow_server, client, sweep):
    tracker = Tracker(mlflow_server.uri, sweep)
    callback = MLflowCallback(tracker)
    trial = a_trial(a_job())
    callback.on_trial_start(0, [trial], trial)
    copy = cloudpickle.loads(cloudpickle.dumps(callback))
    copy.on_trial_result(1, [trial], trial, an_epoch(1))  # in a run that it never opened
    copy._tracker.start_trial(a_job())
    copy._tracker.log_result("c0ffee", an_epoch(2))
    copy._tracker.close()
    tracker.close()
    assert [step for step, _ in curve(client, the_run(client, sweep, CELL), "run_score")] == [2]


def test_a_job_is_found_in_a_dict_and_in_a_config_object():
    job = a_job()
    assert job_of(SimpleNamespace(config={"job": {"record": job}})) == job
    assert job_of(SimpleNamespace(config=SimpleNamespace(job={"record": job}))) == job
    assert job_of(SimpleNamespace(config={"job": None})) is None
    assert job_of(SimpleNamespace(config={})) is None
    assert job_of(SimpleNamespace(config=None)) is None


def test_trials_of_somebody_else_are_none_of_its_business(mlflow_server, client, sweep):
    tracker = Tracker(mlflow_server.uri, sweep)
    callback = MLflowCallback(tracker)
    stranger = SimpleNamespace(trial_id="x", config={"lr": 1}, last_result={})
    callback.on_trial_start(0, [], stranger)
    callback.on_trial_result(0, [], stranger, {"training_iteration": 1})
    callback.on_trial_complete(0, [], stranger)
    callback.on_trial_error(0, [], stranger)
    tracker.start()
    tracker.close()
    assert len(runs_of(client, sweep)) == 1


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
                    "seed": {"0": {"run_score": 10.0 * epoch}},
                    "minutes": 0.1,
                }
            )
        if config["job"]["record"]["cell_key"] == "bad":
            raise RuntimeError("diverged")

    ray.init(num_cpus=1, include_dashboard=False, logging_level=logging.ERROR)
    try:
        jobs = [{"record": a_job(cell_key=key, seeds=[0], name=key)} for key in ("good", "bad")]
        with Tracker(mlflow_server.uri, sweep) as tracker:
            tune.Tuner(
                train,
                param_space={"job": tune.grid_search(jobs)},
                run_config=tune.RunConfig(
                    storage_path=str(tmp_path),
                    callbacks=[MLflowCallback(tracker)],
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
