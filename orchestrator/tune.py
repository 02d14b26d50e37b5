"""The part of a run that is on Ray: dynamics ensembles, then one trial of Ray Tune per job."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray import tune
from ray.exceptions import RayTaskError
from rich.console import Console

from algorithms.dynamics.service import (
    NAMESPACE,
    name_of,
    train_ensembles,
    trainer_resources,
)
from algorithms.dynamics.spec import EnsembleSpec
from algorithms.dynamics.store import read_ensemble
from algorithms.errors import UserError
from algorithms.identity import content_key
from algorithms.progress import StageProgress
from algorithms.rllib import OfflineAlgorithm
from algorithms.storage import Storage
from orchestrator.callbacks import (
    ProgressCallback,
    ResultCallback,
    TrackingCallback,
    record_of,
)
from orchestrator.deployment import Deployment
from orchestrator.plan import Job, Plan
from orchestrator.results import ResultStore
from orchestrator.sweep.cell import Cell
from orchestrator.sweep.model import Sweep
from orchestrator.tracking.protocol import Tracker
from orchestrator.tracking.records import (
    CellRecord,
    DatasetRecord,
    EnsembleRecord,
    EpochRecord,
    JobRecord,
)

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

MAX_FAILURES = 3  # of one job, each time continued from its last checkpoint


class Share(NamedTuple):
    """What a job has of a machine."""

    gpus: float
    parallel_evaluation: bool
    cpus: int  # with the one of the evaluation


def train(
    plan: Plan, deployment: Deployment, tracker: Tracker, share: Share, console: Console
) -> list[str]:
    """Ensembles, then jobs; returns what failed, a line each.

    An ensemble that cannot be trained takes along the jobs that need it, and no others.
    """
    storage, store = deployment.storage, ResultStore(deployment.storage)
    broken = _train_ensembles(plan, storage, console)
    for ensemble in plan.ensembles:
        _record_ensemble(tracker, ensemble.spec, storage)
    for entry in plan.cells:
        if not entry.jobs and not entry.same_as:  # trained before, perhaps by another sweep
            record_trained(tracker, entry.cell, store)
    jobs = [job for job in plan.jobs if not broken.keys() & job.ensemble_keys]
    failed = run_jobs(plan, jobs, deployment, tracker, share, console) if jobs else {}
    for job in jobs:
        # Tune only logs what goes wrong in a callback: a full disk may have kept a result.
        results = [store.get(job.cell.result_key(seed)) for seed in job.seeds]
        if not all(result and result.done(job.cell.settings.epochs) for result in results):
            failed.setdefault(_name(job.cell.name, job.seeds), "its result is incomplete")
    return [*broken.values(), *(f"{name}: {error}" for name, error in failed.items())]


def _train_ensembles(plan: Plan, storage: Storage, console: Console) -> dict[str, str]:
    """Every dynamics ensemble that a job needs; returns why some could not be trained, by key.

    It ends before the first job starts. Jobs that held a GPU while they waited for a trainer
    that needs one would wait for ever; so they only fetch.
    """
    specs = {spec.key: spec for spec in plan.ensembles_to_train}
    if not specs:
        return {}
    resources = trainer_resources(plan.sweep.device, len(specs))
    _, failed = train_ensembles(
        list(specs.values()), storage, resources, plan.sweep.loaded_plugins, console
    )
    return {key: f"{name_of(specs[key])}: {_reason(error)}" for key, error in failed.items()}


def _reason(error: Exception) -> str:
    """The last line of what went wrong inside: it comes back wrapped by each actor on the way."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


@contextmanager
def connected(deployment: Deployment) -> Iterator[None]:
    """Within it, Ray is there: the cluster that RAY_ADDRESS names, or one on this machine.

    Raises:
        UserError: no cluster answers.
    """
    if ray.is_initialized():  # by a notebook, whose Ray it stays
        yield
        return
    _connect(deployment)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(deployment: Deployment) -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine."""
    # RLlib greets every algorithm with a notice that the new API stack is on.
    logging.getLogger("ray.rllib.algorithms.algorithm_config").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if deployment.ray_address is None:
        ray.init("local", namespace=NAMESPACE, include_dashboard=False, **quiet)
        return
    try:
        ray.init(deployment.ray_address, namespace=NAMESPACE, **quiet)
    except ConnectionError:
        raise UserError(f"RAY_ADDRESS {deployment.ray_address}: no Ray cluster answers") from None


def share_of(sweep: Sweep, deployment: Deployment) -> Share:
    """What each of a sweep's jobs has of a machine.

    Raises:
        UserError: more than this machine has.
    """
    resources = ray.cluster_resources()
    all_cpus, all_gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    on_gpu = sweep.device == "cuda" or (sweep.device == "auto" and all_gpus >= 1)
    gpus, cpus = sweep.gpus_per_trial if on_gpu else 0, sweep.cpus_per_trial
    parallel = sweep.parallel_evaluation
    if parallel == "auto":
        # Where GPUs are to come, so are their CPUs; where they are, all shall have a job.
        parallel = on_gpu and (not all_gpus or all_cpus >= all_gpus / gpus * (cpus + 1))
    share = Share(gpus, bool(parallel), cpus + bool(parallel))
    if deployment.ray_address is None:  # a cluster may yet grow, this machine will not
        if on_gpu and not all_gpus:
            raise UserError("device: cuda, but this machine has no GPU: use auto or cpu")
        if share.cpus > all_cpus:
            and_one = ", and one for parallel_evaluation" if parallel else ""
            raise UserError(f"cpus_per_trial: {cpus}{and_one}, but there are {all_cpus:.0f}")
    return share


def _record_ensemble(tracker: Tracker, spec: EnsembleSpec, storage: Storage) -> None:
    from orchestrator.report.figures import ensemble_picture  # matplotlib takes half a second

    published = read_ensemble(storage, spec.key)
    if published is None:  # no job needs it
        return
    metrics = published.description["metrics"]
    numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
    numbers |= {f"penalty_mean/{k}": v for k, v in metrics["penalty_mean"].items()}
    picture = ensemble_picture(published, spec, storage)
    tracker.log_ensemble(
        EnsembleRecord(
            key=spec.key,
            name=f"{spec.dataset.slug} seed {spec.seed}",
            params=spec.settings.model_dump(mode="json"),
            dataset=DatasetRecord.of(spec.dataset),
            seed=spec.seed,
            folder=str(storage.path(published.folder)),
            metrics=numbers,
            history=tuple(published.description["history"]),
            files=(picture,) if picture else (),
        )
    )


def run_jobs(
    plan: Plan,
    jobs: Sequence[Job],
    deployment: Deployment,
    tracker: Tracker,
    share: Share,
    console: Console,
) -> dict[str, str]:
    """Run every job as one trial of Ray Tune; returns the errors of those that failed, by name."""
    # MLflow holds the curves; Tune's own loggers would write each result three times more.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    # Of Tune's two displays the old one keeps silent when asked to.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Ctrl-C ends the sweep as an exception, like anywhere else; Tune would swallow it.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # More trials than fit only wait; on a cluster, what waits is what makes it grow.
    cpus = ray.cluster_resources().get("CPU", 1)
    at_once = max(1, int(cpus // share.cpus)) if deployment.ray_address is None else None
    sweep, storage = plan.sweep, deployment.storage
    store = ResultStore(storage)
    experiment = f"{sweep.name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    trials = storage.path("trials")
    with StageProgress(console) as progress:
        tuner = tune.Tuner(
            OfflineAlgorithm,
            param_space={
                "job": tune.grid_search([job_config(job, plan, storage) for job in jobs]),
                "num_cpus_for_main_process": sweep.cpus_per_trial,
                "num_gpus_per_learner": share.gpus,
                "checkpoint_every_s": 60 * sweep.checkpoint_minutes,
                "compile": sweep.compile,
                "parallel_evaluation": share.parallel_evaluation,
            },
            tune_config=tune.TuneConfig(
                max_concurrent_trials=at_once,
                trial_name_creator=lambda trial: record_of(trial).cell.name,
                trial_dirname_creator=_folder,
            ),
            run_config=tune.RunConfig(
                name=experiment,
                storage_path=str(trials),
                callbacks=[
                    TrackingCallback(tracker),
                    ResultCallback(store, tracker),
                    ProgressCallback(progress),
                ],
                checkpoint_config=tune.CheckpointConfig(num_to_keep=2, checkpoint_at_end=True),
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                verbose=0,
            ),
        )
        failed = _failures(tuner.fit())
    ours = (trials / experiment).glob("*/checkpoint_*")
    left_behind = {Path(job.resume.checkpoint) for job in jobs if job.resume}
    prune({*ours, *left_behind}, store, storage)
    return failed


def _failures(results: tune.ResultGrid) -> dict[str, str]:
    """The error of each trial that failed, by its folder."""
    failed = {}
    for result in (results[index] for index in range(len(results))):
        if result.error is not None:
            name = Path(result.path).name
            failed[name] = f"{str(result.error).strip().splitlines()[-1]} (see {result.path})"
    return failed


def prune(checkpoints: Collection[Path], store: ResultStore, storage: Storage) -> None:
    """Delete those that no result points to any more: they are what fills a disk."""
    needed = {Path(result.checkpoint) for result in store.all() if result.checkpoint}
    for checkpoint in set(checkpoints) - needed:
        storage.delete(str(checkpoint.relative_to(storage.path(""))))


def job_config(job: Job, plan: Plan, storage: Storage) -> dict[str, Any]:
    """What `OfflineConfig.job` holds for a job, with the record by which callbacks know it."""
    cell, resume = job.cell, job.resume
    others = [e.cell.name for e in plan.cells if e.same_as and e.cell.cell_key == cell.cell_key]
    record = JobRecord(
        cell=cell_record(cell, job.seeds),
        epochs=cell.settings.epochs,
        epochs_done=resume.epochs if resume else 0,
        other_names=tuple(others),
        action_bounds=cell.dataset.action_bounds,
        result_keys=tuple(cell.result_key(seed) for seed in job.seeds),
        ensemble_of_seed=tuple(spec.key if spec else None for spec in job.ensembles),
    )
    return {
        "algorithm": cell.algorithm,
        "dataset": cell.dataset.model_dump(mode="json"),
        "settings": cell.settings.model_dump(mode="json"),
        "seeds": list(job.seeds),
        "dynamics_seeds": cell.dynamics_seeds,
        "storage": storage.url,
        "resume": resume and {"checkpoint": resume.checkpoint, "positions": list(resume.positions)},
        "plugins": [plugin.model_dump() for plugin in plan.sweep.loaded_plugins],
        "record": record.model_dump(mode="json"),
    }


def cell_record(cell: Cell, seeds: Sequence[int], diverged: Sequence[int] = ()) -> CellRecord:
    """What trackers are told of a job that trains `seeds` of a cell."""
    return CellRecord(
        key=cell.cell_key,
        name=cell.name,
        variant=cell.variant,
        params={
            **cell.settings.model_dump(mode="json"),
            "algorithm": cell.algorithm,
            "dynamics_seeds": cell.dynamics_seeds,
        },
        dataset=DatasetRecord.of(cell.dataset),
        seeds=tuple(seeds),
        cell_seeds=cell.seeds,
        ensemble_keys=tuple(sorted(spec.key for spec in cell.ensembles)),
        diverged=tuple(diverged),
    )


def record_trained(tracker: Tracker, cell: Cell, store: ResultStore) -> None:
    """A record for a cell that needs no training: a tracker shows every cell of the sweep."""
    results = {seed: store.get(cell.result_key(seed)) for seed in cell.seeds}
    found = {seed: result for seed, result in results.items() if result is not None}
    epochs = cell.settings.epochs
    diverged = [seed for seed, result in found.items() if result.diverged_before(epochs)]
    tracker.start_cell(cell_record(cell, cell.seeds, diverged))
    scores = {seed: result.score(epochs) for seed, result in found.items()}
    tracker.log_epoch(
        cell.cell_key,
        EpochRecord(
            epoch=max(result.scored_at(epochs) for result in found.values()),
            seeds={seed: {"run_score": s} for seed, s in scores.items() if s is not None},
        ),
    )
    tracker.end_cell(cell.cell_key)


def _folder(trial: Trial) -> str:
    cell = record_of(trial).cell
    return _name(cell.name, cell.seeds)


def _name(cell: str, seeds: Sequence[int]) -> str:
    listed = "-".join(map(str, seeds))
    if len(listed) > 40:  # a folder's name ends at 255 bytes
        listed = f"{seeds[0]}-and-{len(seeds) - 1}-more-{content_key({'seeds': list(seeds)})[:8]}"
    return f"{cell}__seeds-{listed}"
