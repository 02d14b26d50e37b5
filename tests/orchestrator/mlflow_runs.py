"""Samples of what a sweep records, and readers of what MLflow then holds."""

import time
from pathlib import Path

from orchestrator.tracking.mlflow import tracker as mlflow_tracker
from orchestrator.tracking.mlflow.tracker import CELL, MLflowTracker
from orchestrator.tracking.mlflow.writer import ENSEMBLE
from orchestrator.tracking.protocol import Trackers
from orchestrator.tracking.records import (
    CellRecord,
    DatasetRecord,
    EnsembleRecord,
    EpochRecord,
    SweepRecord,
)

DIGEST = "d1" * 32
DATASET = DatasetRecord(id="bundled/hopper-medium", digest=DIGEST, env_id="Hopper-v4")
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


def a_tracker(server, sweep, *, question="", params=None, **options):
    """A tracker of MLflow alone, which closes itself as a context manager."""
    record = SweepRecord(name=sweep, question=question, params=params or {})
    return Trackers([MLflowTracker(server.uri, record, **options)])


def a_cell(**changes):
    values = {
        "key": "c0ffee",
        "name": "penalty-max_std__hopper-medium",
        "variant": "penalty=max_std",
        "params": {"penalty": "max_std", "penalty_coef": 2.5, "epochs": 5, "hidden": (256, 256)},
        "dataset": DATASET,
        "seeds": (0, 1),
        "cell_seeds": (0, 1),
    }
    return CellRecord(**values | changes)


def an_epoch(epoch, *seeds, **metrics):
    """An epoch in which seed k's score is 10 epoch + k."""
    scores = {seed: 10.0 * epoch + seed for seed in seeds or (0, 1)}
    return EpochRecord(
        epoch=epoch,
        minutes=0.5 * epoch,
        mean={"run_score": sum(scores.values()) / len(scores), **metrics},
        seeds={seed: {"run_score": score} for seed, score in scores.items()},
    )


def record_ensemble(tracker, key, **changes):
    values = {
        "key": key,
        "name": f"hopper-medium, seed 0 ({key})",
        "params": {"num_ensemble": 7},
        "dataset": DATASET,
        "seed": 0,
        "folder": "/storage/ensembles/key",
        "metrics": {"holdout_mse": 0.25, "within_1_std": 0.7},
        "history": ({"holdout_mse": 0.5}, {"holdout_mse": 0.25}),
    }
    tracker.log_ensemble(EnsembleRecord(**values | changes))


def runs_of(client, experiment):
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id]) if found else []


def the_run(client, experiment, tag):
    (run,) = [run for run in runs_of(client, experiment) if tag in run.data.tags]
    return run


def curve(client, run, metric):
    history = client.get_metric_history(run.info.run_id, metric)
    return [(point.step, point.value) for point in history]


def the_ensemble(client, key):
    (run,) = [run for run in runs_of(client, "ensembles") if run.data.tags[ENSEMBLE] == key]
    return run


def the_files(client, run, folder):
    """Name -> content of the files that MLflow keeps with a run."""
    names = [file.path for file in client.list_artifacts(run.info.run_id)]
    return {
        name: Path(client.download_artifacts(run.info.run_id, name, str(folder))).read_bytes()
        for name in names
    }


def the_cells(client, sweep):
    runs = runs_of(client, sweep)
    return {run.data.tags[CELL]: run.info.run_id for run in runs if CELL in run.data.tags}


def warnings_of(caplog):
    return [entry.getMessage() for entry in caplog.records if entry.name == mlflow_tracker.__name__]


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
