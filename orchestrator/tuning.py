"""Running a sweep: data, then ensembles, then one trial of Ray Tune per job.

There is one way to start: compare the sweep with the storage, and run what is
missing from where it stands. A first run, a rerun, an extension and the repair
of a lost driver are the same thing.
"""

from __future__ import annotations

import io
import logging
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray import tune
from rich.console import Console

from algorithms import ALGORITHMS
from algorithms.data.datasets import load
from algorithms.dynamics.actor import NAMESPACE
from algorithms.dynamics.store import read_ensemble
from algorithms.errors import UserError
from algorithms.identity import EnsembleSpec
from orchestrator import ensembles, report
from orchestrator.plan import Job, Plan, make_plan
from orchestrator.progress import Bar, StageProgress
from orchestrator.results import ResultStore, SeedResult
from orchestrator.settings import Settings
from orchestrator.sweep import Sweep, Trial
from orchestrator.tracking import MLflowCallback, Tracker

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

MAX_FAILURES = 3  # of one trial, each time continued from its last checkpoint


def run(sweep: Sweep, trials: Sequence[Trial], settings: Settings, console: Console) -> int:
    """Train everything that the sweep still lacks; returns the exit code, 1 if a trial failed.

    Raises:
        UserError: the sweep asks for a device or CPUs that are not there.
    """
    plan = make_plan(sweep, list(trials), settings.storage)
    for dataset in plan.datasets_to_generate:
        load(dataset, settings.storage)
    _connect(settings)
    try:
        cpus = ray.cluster_resources().get("CPU", 0)
        if settings.ray_address is None and sweep.cpus_per_trial > cpus:  # a cluster may yet grow
            raise UserError(f"cpus_per_trial: {sweep.cpus_per_trial}, but there are {cpus:.0f}")
        gpus = _gpus_per_trial(sweep)
        with _tracker(sweep, settings) as tracker:
            failed = ensembles.train(
                plan.ensembles_to_train, settings.storage, sweep.device, console
            )
            for ensemble in plan.ensembles:
                _record_ensemble(tracker, ensemble.spec, settings.storage)
            if not failed:
                failed = _train_jobs(plan, settings, tracker, gpus, console)
            # Tune only logs what goes wrong in a callback: a full disk may have kept the result.
            for job in make_plan(sweep, list(trials), settings.storage).jobs:
                failed.setdefault(_name(job.trial.name, job.seeds), "its result is incomplete")
            _record_table(tracker, sweep, trials, settings.storage)
            if failed:
                tracker.close("FAILED")
    finally:
        ray.shutdown()
    for name, error in failed.items():
        console.print(f"failed: {name}: {error}", style="red", soft_wrap=True)
    return 1 if failed else 0


def _connect(settings: Settings) -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine."""
    # RLlib greets every algorithm with a notice that the new API stack is on.
    logging.getLogger("ray.rllib.algorithms.algorithm_config").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if settings.ray_address is None:
        ray.init("local", namespace=NAMESPACE, include_dashboard=False, **quiet)
        return
    try:
        ray.init(settings.ray_address, namespace=NAMESPACE, **quiet)
    except ConnectionError:
        raise UserError(f"RAY_ADDRESS {settings.ray_address}: no Ray cluster answers") from None


def _gpus_per_trial(sweep: Sweep) -> int:
    available = ray.cluster_resources().get("GPU", 0) >= 1
    if sweep.device == "cuda" and not available:
        raise UserError("device: cuda, but the cluster has no GPU: use auto or cpu")
    return int(available and sweep.device != "cpu")


def _tracker(sweep: Sweep, settings: Settings) -> Tracker:
    embedded = settings.tracking_uri.startswith("sqlite:")
    return Tracker(
        settings.tracking_uri,
        sweep.name,
        question=sweep.question,
        params={
            "algorithm": sweep.algorithm,
            "seeds": list(sweep.seeds),
            "dynamics_seeds": sweep.dynamics_seeds,
            "datasets": [entry.id for entry in sweep.datasets],
            **{f"grid.{key}": values for key, values in sweep.grid.items()},
            **{f"fixed.{key}": value for key, value in sweep.fixed.items()},
        },
        artifact_root=settings.artifacts.as_uri() if embedded else None,
    )


def _record_ensemble(tracker: Tracker, spec: EnsembleSpec, storage: Path) -> None:
    published = read_ensemble(storage, spec.key)
    if published is None:  # no job needs it
        return
    metrics = published.description["metrics"]
    numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
    numbers |= {f"penalty_mean/{k}": v for k, v in metrics["penalty_mean"].items()}
    tracker.log_ensemble(
        spec.key,
        name=f"{spec.dataset.slug} seed {spec.seed}",
        params=spec.settings.model_dump(mode="json"),
        dataset=_dataset_record(spec),
        seed=spec.seed,
        path=published.path,
        metrics=numbers,
        history=published.description["history"],
    )


def _dataset_record(spec: EnsembleSpec | Trial) -> dict[str, str]:
    dataset = spec.dataset
    return {"id": dataset.id, "digest": dataset.content_hash, "env_id": dataset.env_id}


def _train_jobs(
    plan: Plan, settings: Settings, tracker: Tracker, gpus: int, console: Console
) -> dict[str, str]:
    """Run every job as one trial of Ray Tune; returns the errors of those that failed."""
    if not plan.jobs:
        return {}
    # MLflow holds the curves; Tune's own loggers would write each result three times more.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    # Of Tune's two displays the old one keeps silent when asked to.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Ctrl-C ends the sweep as an exception, like anywhere else; Tune would swallow it.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    sweep = plan.sweep
    cpus = ray.cluster_resources().get("CPU", 1)
    with StageProgress(console) as progress:
        tuner = tune.Tuner(
            ALGORITHMS[sweep.algorithm].config_class()().algo_class,
            param_space={
                "job": tune.grid_search([job_config(job, settings.storage) for job in plan.jobs]),
                "num_cpus_for_main_process": sweep.cpus_per_trial,
                "num_gpus_per_learner": gpus,
                "checkpoint_every_s": 60 * sweep.checkpoint_minutes,
            },
            tune_config=tune.TuneConfig(
                max_concurrent_trials=max(1, int(cpus // sweep.cpus_per_trial)),
                trial_name_creator=lambda trial: trial.config["job"]["record"]["name"],
                trial_dirname_creator=_folder,
            ),
            run_config=tune.RunConfig(
                name=f"{sweep.name}-{time.strftime('%Y%m%d-%H%M%S')}",
                storage_path=str(settings.storage / "trials"),
                callbacks=[
                    MLflowCallback(tracker),
                    ResultCallback(ResultStore(settings.storage), tracker),
                    ProgressCallback(progress),
                ],
                checkpoint_config=tune.CheckpointConfig(num_to_keep=2, checkpoint_at_end=True),
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                verbose=0,
            ),
        )
        results = tuner.fit()
    failed = {}
    for result in (results[index] for index in range(len(results))):
        if result.error is not None:
            name = Path(result.path).name
            failed[name] = f"{str(result.error).strip().splitlines()[-1]} (see {result.path})"
    return failed


def job_config(job: Job, storage: Path) -> dict[str, Any]:
    """What `OfflineConfig.job` holds for a job, with the record by which callbacks know it."""
    trial = job.trial
    resume = job.resume
    specs = [trial.ensemble(seed) for seed in job.seeds]
    return {
        "dataset": trial.dataset.model_dump(mode="json"),
        "settings": trial.settings.model_dump(mode="json"),
        "seeds": list(job.seeds),
        "dynamics_seeds": trial.dynamics_seeds,
        "storage": str(storage),
        "resume": resume and {"checkpoint": resume.checkpoint, "positions": list(resume.indices)},
        "record": {
            "name": trial.name,
            "cell_key": trial.cell_key,
            "run_name": trial.name,
            "params": {
                **trial.settings.model_dump(mode="json"),
                "algorithm": trial.algorithm,
                "dynamics_seeds": trial.dynamics_seeds,
            },
            "dataset": _dataset_record(trial),
            "seeds": list(job.seeds),
            "cell_seeds": list(trial.seeds),
            "ensemble_keys": sorted({trial.ensemble(seed).key for seed in trial.seeds}),
            "tags": {"variant": trial.variant},
            # For `ResultCallback`, in the order of the seeds.
            "result_keys": [trial.result_key(seed) for seed in job.seeds],
            "ensemble_of_seed": [spec.key for spec in specs],
        },
    }


def _folder(trial: TuneTrial) -> str:
    record = trial.config["job"]["record"]
    return _name(record["name"], record["seeds"])


def _name(trial: str, seeds: Sequence[int]) -> str:
    return f"{trial}__seeds-{'-'.join(map(str, seeds))}"


class ResultCallback(tune.Callback):
    """Points the result of each seed at every checkpoint of its trial."""

    def __init__(self, store: ResultStore, tracker: Tracker) -> None:
        self._store, self._tracker = store, tracker

    def on_checkpoint(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        checkpoint: tune.Checkpoint,
        **info: Any,
    ) -> None:
        # Tune saves between two results: the last one is of the epoch that was saved.
        result = trial.last_result
        record = trial.config["job"]["record"]
        for position, seed in enumerate(record["seeds"]):
            metrics = result["seed"][str(seed)]
            finite = all(math.isfinite(value) for value in metrics.values())
            score, last_score = metrics.get("score"), metrics.get("normalized_score")
            self._store.put(
                SeedResult(
                    key=record["result_keys"][position],
                    trial=record["name"],
                    seed=seed,
                    epochs=result["epoch"],
                    score=score if finite else None,
                    last_score=last_score if finite else None,
                    behaviour_score=result["behaviour_score"],
                    minutes=result["minutes"],
                    checkpoint=checkpoint.path,
                    index=position,
                    ensemble_key=record["ensemble_of_seed"][position],
                    mlflow_run_id=self._tracker.run_id(record["cell_key"]),
                    status=_status(finite=finite, done=result["done"]),
                )
            )


def _status(*, finite: bool, done: bool) -> Literal["running", "finished", "diverged"]:
    if not finite:
        return "diverged"
    return "finished" if done else "running"


class ProgressCallback(tune.Callback):
    """Shows every job's epochs and its score so far."""

    def __init__(self, progress: StageProgress) -> None:
        self._progress: StageProgress | None = progress
        self._bars: dict[str, Bar] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_progress": None, "_bars": {}}  # Tune pickles callbacks; a terminal cannot be

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        if self._progress is None or trial.trial_id in self._bars:
            return
        job = trial.config["job"]
        record = job["record"]
        name = f"{record['name']} seeds {','.join(map(str, record['seeds']))}"
        self._bars[trial.trial_id] = self._progress.add(name, job["settings"]["epochs"])

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        if self._progress is None:
            return
        score = result["mean"].get("score")
        note = "" if score is None else f"score {score:.1f}"
        show = self._progress.finish if result["done"] else self._progress.update
        show(self._bars[trial.trial_id], result["epoch"], note)


def _record_table(tracker: Tracker, sweep: Sweep, trials: Sequence[Trial], storage: Path) -> None:
    text = io.StringIO()
    frame = report.summary(trials, ResultStore(storage))
    Console(file=text, width=120).print(report.render(sweep, frame))
    tracker.log_table(text.getvalue(), "table.txt")
    for trial, row in zip(trials, frame.to_dict("records"), strict=True):
        if row["scores"]:
            tracker.log_score(trial.name, row["score"], row["epochs_done"])
