"""What RLlib, Tune and MLflow cost in an epoch: a real sweep of one cell, MOPO, S = 1.

An epoch is some hundred gradient steps and small rollouts, not evaluated and not saved. Two
differences make the overhead. Each is taken within one process and one epoch, so that a
machine whose speed changes does not hide them:

    RLlib               `Algorithm.train` less `OfflineTraining.train_epoch` inside it
    Tune, Ray, MLflow   the time between two results of the sweep, as MLflow recorded them, less
                        the cell's own clock in `Algorithm.step`
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

# Ray reads these when it is imported; without the first it writes to the user's home.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from harness import Series, Setup, now
from hopper import ROLLOUT_ROWS
from mlflow import MlflowClient
from ours import fill_buffer, offline_training, runs
from rich.console import Console

from algorithms.dynamics.service import train_ensemble
from algorithms.rllib import MOPOConfig
from algorithms.storage import Storage
from algorithms.training.checkpoint import encode
from orchestrator.deployment import Deployment
from orchestrator.run import run as run_sweep
from orchestrator.sweep.cell import Cell, cells_of
from orchestrator.sweep.model import Sweep


class Result(NamedTuple):
    """An epoch of the sweep."""

    at: float  # when the driver had it, in seconds since 1970
    seconds: float  # in `Algorithm.step`, of all epochs so far


class Epoch(NamedTuple):
    """An epoch in this process, in seconds."""

    train: float  # `Algorithm.train`
    train_epoch: float  # `OfflineTraining.train_epoch`, within it


def measure(setup: Setup) -> list[Series]:
    sweep = _sweep(setup)
    (cell,) = cells_of(sweep)
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder:
        for spec in cell.ensembles:
            for _ in train_ensemble(spec, Storage(folder)):  # makes the data as well
                pass
        begin = time.time()
        results = _in_tune(sweep, cell, Path(folder))
        epochs = _in_rllib(cell, Path(folder), setup)
    pairs = list(pairwise(results[:-1]))  # from the second epoch on; the last one is evaluated
    between = [later.at - earlier.at for earlier, later in pairs]
    in_step = [later.seconds - earlier.seconds for earlier, later in pairs]
    of_tune = [b - s for b, s in zip(between, in_step, strict=True)]
    of_rllib = [epoch.train - epoch.train_epoch for epoch in epochs]
    alone = [epoch.train_epoch for epoch in epochs]
    overhead = statistics.median(of_rllib) + statistics.median(of_tune)
    share = 100 * overhead / statistics.median(alone)
    start = results[0].at - results[0].seconds - begin
    return [
        Series("train_epoch alone", "s", alone),
        Series("an epoch in Tune", "s", between, baseline="train_epoch alone"),
        Series("RLlib", "s per epoch", of_rllib),
        Series("Tune, Ray, MLflow", "s per epoch", of_tune),
        Series("overhead", "s per epoch", [overhead], note="sum of both medians"),
        Series("overhead", "%", [share], note="of train_epoch alone"),
        Series("start", "s", [start], note="of the sweep, until its first epoch begins"),
        *_checkpoint(setup),
    ]


def _sweep(setup: Setup) -> Sweep:
    epochs = 4 if setup.quick else 8
    return Sweep.model_validate(
        {
            "name": "overhead",
            "algorithm": "mopo",
            "datasets": [{"id": "bundled/hopper-medium-replay", "size": 2000}],
            "seeds": 1,
            "device": setup.device,
            "cpus_per_trial": setup.threads,
            "fixed": {
                "dynamics_hidden": [32, 32],
                "dynamics_weight_decay": [0.0, 0.0, 0.0],
                "dynamics_max_epochs": 2,
                "rollout_batch_size": 5000,
                "gradient_steps_per_epoch": 100 if setup.quick else 300,
                "epochs": epochs,
                "evaluation_interval": epochs,
            },
        }
    )


def _in_tune(sweep: Sweep, cell: Cell, storage: Path) -> list[Result]:
    """Run the sweep on a Ray of its own; its results in their order."""
    deployment = Deployment.from_environment(storage, environ={})
    outcome = run_sweep(sweep, deployment, Console(stderr=True))
    assert not outcome.failed, "the sweep failed"
    client = MlflowClient(tracking_uri=deployment.tracking_uri)
    experiment = client.get_experiment_by_name(sweep.name)
    of_cell = f"tags.`orchestrator.cell` = '{cell.cell_key}'"
    (run,) = client.search_runs([experiment.experiment_id], of_cell)
    history = client.get_metric_history(run.info.run_id, "minutes")
    history.sort(key=lambda metric: metric.step)
    return [Result(metric.timestamp / 1000, 60 * metric.value) for metric in history]


def _in_rllib(cell: Cell, storage: Path, setup: Setup) -> list[Epoch]:
    """The same training on the sweep's ensemble, but in this process and without Tune."""
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    config = (
        MOPOConfig()
        .offline(dataset=cell.dataset, seeds=cell.seeds, storage=storage)
        .training(**cell.settings.model_dump())
        .resources(num_cpus_for_main_process=setup.threads)
        .learners(num_gpus_per_learner=int(setup.device == "cuda"))
    )
    algorithm = config.build_algo()
    train_epoch = algorithm.training.train_epoch
    seconds: list[float] = []

    def timed() -> object:
        begin = now(setup.device)
        statistics = train_epoch()
        seconds.append(now(setup.device) - begin)
        return statistics

    algorithm.training.train_epoch = timed
    epochs = []
    for _ in range(cell.settings.epochs - 1):  # the last one would be evaluated
        begin = now(setup.device)
        algorithm.train()
        epochs.append(Epoch(now(setup.device) - begin, seconds[-1]))
    algorithm.stop()
    ray.shutdown()
    return epochs[1:]


def _checkpoint(setup: Setup) -> list[Series]:
    """A cell's state at its full size, to a file."""
    *_, run = runs(setup.device).values()
    training = offline_training("MOPO", 1, run, setup.device, rollout_batch_size=ROLLOUT_ROWS)
    fill_buffer(training)
    seconds = []
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder:
        path = Path(folder) / "training.safetensors"
        for _ in range(setup.rounds):
            begin = now(setup.device)
            path.write_bytes(encode(training.state_dict(), training.seeds))
            seconds.append(now(setup.device) - begin)
        size = path.stat().st_size / 2**20
    return [Series("a checkpoint", "s", seconds, note=f"{size:.0f} MB, every 10 minutes")]
