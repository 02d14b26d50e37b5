"""Running a sweep: data, then ensembles, then one trial of Ray Tune per job.

There is one way to start: compare the sweep with the storage, and run what is
missing from where it stands. A first run, a rerun, an extension and the repair
of a lost driver are the same thing.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from filelock import FileLock, Timeout
from ray import tune
from rich.console import Console

from algorithms import ALGORITHMS
from algorithms.data.datasets import load
from algorithms.dynamics.service import NAMESPACE
from algorithms.dynamics.spec import EnsembleSpec
from algorithms.dynamics.store import read_ensemble
from algorithms.errors import UserError
from algorithms.identity import content_key
from orchestrator import ensembles, report
from orchestrator.callbacks import (
    DivergenceCallback,
    ProgressCallback,
    ResultCallback,
    divergence_tags,
)
from orchestrator.plan import Job, Plan, make_plan
from orchestrator.progress import StageProgress
from orchestrator.results import ResultStore
from orchestrator.settings import Settings
from orchestrator.sweep import Sweep, Trial
from orchestrator.tracking import MLflowCallback, Tracker
from orchestrator.variants import slug

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

MAX_FAILURES = 3  # of one trial, each time continued from its last checkpoint


class Share(NamedTuple):
    """What a trial has of a machine."""

    gpus: float
    parallel_evaluation: bool
    cpus: int  # with the one of the evaluation


def run(sweep: Sweep, trials: Sequence[Trial], settings: Settings, console: Console) -> int:
    """Train everything that the sweep still lacks; returns the exit code, 1 if something failed.

    Raises:
        UserError: the sweep asks for a device or CPUs that are not there, or another run
            is training one of its cells.
    """
    with _locked(trials, settings.storage):
        plan = make_plan(sweep, list(trials), settings.storage)
        for dataset in plan.datasets_to_generate:
            load(dataset, settings.storage)
        _connect(settings)
        try:
            share = _share(sweep, settings)
            with _tracker(sweep, settings) as tracker:
                failed = _train(plan, settings, tracker, share, console)
                _record_table(tracker, sweep, trials, settings.storage)
                if failed:
                    tracker.close("FAILED")
        finally:
            ray.shutdown()
    for error in failed:
        console.print(f"failed: {error}", style="red", soft_wrap=True)
    return 1 if failed else 0


def _train(
    plan: Plan, settings: Settings, tracker: Tracker, share: Share, console: Console
) -> list[str]:
    """Ensembles, then trials; returns what failed, a line each.

    An ensemble that cannot be trained takes along the trials that need it, and no others.
    """
    storage = settings.storage
    broken = ensembles.train(plan.ensembles_to_train, storage, plan.sweep.device, console)
    for ensemble in plan.ensembles:
        _record_ensemble(tracker, ensemble.spec, storage)
    for cell in plan.trials:
        if not cell.jobs and not cell.same_as:  # trained before, perhaps by another sweep
            _record_trained(tracker, cell.trial, ResultStore(storage))
    jobs = [job for job in plan.jobs if not broken.keys() & job.ensemble_keys]
    failed = _tune(plan.sweep, jobs, settings, tracker, share, console) if jobs else {}
    # Tune only logs what goes wrong in a callback: a full disk may have kept a result.
    trials = [cell.trial for cell in plan.trials]
    for job in make_plan(plan.sweep, trials, storage).jobs:
        if not broken.keys() & job.ensemble_keys:
            failed.setdefault(_name(job.trial.name, job.seeds), "its result is incomplete")
    return [*broken.values(), *(f"{name}: {error}" for name, error in failed.items())]


@contextmanager
def _locked(trials: Sequence[Trial], storage: Path) -> Iterator[None]:
    """Hold every cell, so that no other run trains it meanwhile; a killed run lets go."""
    folder = storage / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        cells = {trial.cell_key: trial for trial in trials}  # two names may be one cell
        for cell_key, trial in sorted(cells.items()):
            try:
                held.enter_context(FileLock(folder / f"{cell_key}.lock", timeout=0))
            except Timeout:
                raise UserError(
                    f"another run is training {trial.name} in {storage}: let it end first"
                ) from None
        yield


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


def _share(sweep: Sweep, settings: Settings) -> Share:
    resources = ray.cluster_resources()
    all_cpus, all_gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    on_gpu = sweep.device == "cuda" or (sweep.device == "auto" and all_gpus >= 1)
    gpus, cpus = sweep.gpus_per_trial if on_gpu else 0, sweep.cpus_per_trial
    parallel = sweep.parallel_evaluation
    if parallel == "auto":
        # Where GPUs are to come, so are their CPUs; where they are, all shall have a trial.
        parallel = on_gpu and (not all_gpus or all_cpus >= all_gpus / gpus * (cpus + 1))
    share = Share(gpus, bool(parallel), cpus + bool(parallel))
    if settings.ray_address is None:  # a cluster may yet grow, this machine will not
        if on_gpu and not all_gpus:
            raise UserError("device: cuda, but this machine has no GPU: use auto or cpu")
        if share.cpus > all_cpus:
            and_one = ", and one for parallel_evaluation" if parallel else ""
            raise UserError(f"cpus_per_trial: {cpus}{and_one}, but there are {all_cpus:.0f}")
    return share


def _tracker(sweep: Sweep, settings: Settings) -> Tracker:
    embedded = settings.tracking_uri.startswith("sqlite:")
    return Tracker(
        settings.tracking_uri,
        sweep.name,
        question=sweep.question,
        params={
            "algorithm": list(dict.fromkeys(v.algorithm for v in sweep.expanded())),
            "preset": sweep.preset or "none",
            "seeds": list(sweep.seeds),
            "dynamics_seeds": sweep.dynamics_seeds,
            "datasets": [entry.id for entry in sweep.datasets],
            **{f"grid.{key}": values for key, values in sweep.grid.items()},
            **{f"variants.{slug(name)}": choices for name, choices in sweep.variants.items()},
            **{f"fixed.{key}": value for key, value in sweep.fixed.items()},
        },
        artifact_root=settings.artifacts.as_uri() if embedded else None,
    )


def _record_ensemble(tracker: Tracker, spec: EnsembleSpec, storage: Path) -> None:
    from orchestrator.figures import ensemble_picture  # matplotlib takes half a second

    published = read_ensemble(storage, spec.key)
    if published is None:  # no job needs it
        return
    metrics = published.description["metrics"]
    numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
    numbers |= {f"penalty_mean/{k}": v for k, v in metrics["penalty_mean"].items()}
    picture = ensemble_picture(published, spec, storage)
    tracker.log_ensemble(
        spec.key,
        name=f"{spec.dataset.slug} seed {spec.seed}",
        params=spec.settings.model_dump(mode="json"),
        dataset=_dataset_record(spec),
        seed=spec.seed,
        path=published.path,
        metrics=numbers,
        history=published.description["history"],
        files=[picture] if picture else [],
    )


def _dataset_record(spec: EnsembleSpec | Trial) -> dict[str, str]:
    dataset = spec.dataset
    return {"id": dataset.id, "digest": dataset.content_hash, "env_id": dataset.env_id}


def _tune(
    sweep: Sweep,
    jobs: Sequence[Job],
    settings: Settings,
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
    at_once = max(1, int(cpus // share.cpus)) if settings.ray_address is None else None
    experiment = f"{sweep.name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    store = ResultStore(settings.storage)
    failed: dict[str, str] = {}
    with StageProgress(console) as progress:
        for base, group in by_base_algorithm(jobs).items():
            tuner = tune.Tuner(
                ALGORITHMS[base].config_class()().algo_class,
                param_space={
                    "job": tune.grid_search([job_config(job, settings.storage) for job in group]),
                    "num_cpus_for_main_process": sweep.cpus_per_trial,
                    "num_gpus_per_learner": share.gpus,
                    "checkpoint_every_s": 60 * sweep.checkpoint_minutes,
                    "compile": sweep.compile,
                    "parallel_evaluation": share.parallel_evaluation,
                },
                tune_config=tune.TuneConfig(
                    max_concurrent_trials=at_once,
                    trial_name_creator=lambda trial: trial.config["job"]["record"]["name"],
                    trial_dirname_creator=_folder,
                ),
                run_config=tune.RunConfig(
                    name=f"{experiment}-{base}",
                    storage_path=str(settings.storage / "trials"),
                    callbacks=[
                        MLflowCallback(tracker),
                        DivergenceCallback(tracker),
                        ResultCallback(store, tracker),
                        ProgressCallback(progress),
                    ],
                    checkpoint_config=tune.CheckpointConfig(num_to_keep=2, checkpoint_at_end=True),
                    failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                    verbose=0,
                ),
            )
            failed |= _failures(tuner.fit())
    ours = (settings.storage / "trials").glob(f"{experiment}-*/*/checkpoint_*")
    left_behind = {Path(job.resume.checkpoint) for job in jobs if job.resume}
    _prune({*ours, *left_behind}, store)
    return failed


def by_base_algorithm(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    """The jobs of each Tuner, which takes one trainable: that of `mopo` trains `sac` as well."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(ALGORITHMS[job.trial.algorithm].base, []).append(job)
    return groups


def _failures(results: tune.ResultGrid) -> dict[str, str]:
    """The error of each trial that failed, by its folder."""
    failed = {}
    for result in (results[index] for index in range(len(results))):
        if result.error is not None:
            name = Path(result.path).name
            failed[name] = f"{str(result.error).strip().splitlines()[-1]} (see {result.path})"
    return failed


def _prune(checkpoints: Collection[Path], store: ResultStore) -> None:
    """Delete those that no result points to any more: they are what fills a disk."""
    needed = {Path(result.checkpoint) for result in store.all() if result.checkpoint}
    for checkpoint in set(checkpoints) - needed:
        shutil.rmtree(checkpoint, ignore_errors=True)


def job_config(job: Job, storage: Path) -> dict[str, Any]:
    """What `OfflineConfig.job` holds for a job, with the record by which callbacks know it."""
    trial = job.trial
    resume = job.resume
    return {
        "dataset": trial.dataset.model_dump(mode="json"),
        "settings": trial.settings.model_dump(mode="json"),
        "seeds": list(job.seeds),
        "dynamics_seeds": trial.dynamics_seeds,
        "storage": str(storage),
        "resume": resume and {"checkpoint": resume.checkpoint, "positions": list(resume.indices)},
        "record": {
            **_record(trial, job.seeds),
            "epochs_done": resume.epochs if resume else 0,
            # For `ResultCallback`, in the order of the seeds.
            "result_keys": [trial.result_key(seed) for seed in job.seeds],
            "ensemble_of_seed": [spec and spec.key for spec in job.ensembles],
        },
    }


def _record(trial: Trial, seeds: Sequence[int]) -> dict[str, Any]:
    """What the tracker is told of a trial that trains `seeds` of a cell."""
    return {
        "name": trial.name,
        "cell_key": trial.cell_key,
        "run_name": trial.name,
        "params": {
            **trial.settings.model_dump(mode="json"),
            "algorithm": trial.algorithm,
            "dynamics_seeds": trial.dynamics_seeds,
        },
        "dataset": _dataset_record(trial),
        "seeds": list(seeds),
        "cell_seeds": list(trial.seeds),
        "ensemble_keys": sorted(spec.key for spec in trial.ensembles),
        "tags": {"variant": trial.variant},
    }


def _record_trained(tracker: Tracker, trial: Trial, store: ResultStore) -> None:
    """A run for a cell that needs no training: MLflow shows every cell of the sweep."""
    results = {seed: store.get(trial.result_key(seed)) for seed in trial.seeds}
    found = {seed: result for seed, result in results.items() if result is not None}
    record = _record(trial, trial.seeds)
    epochs = trial.settings.epochs
    diverged = [seed for seed, result in found.items() if result.diverged_before(epochs)]
    tracker.start_trial({**record, "tags": {**record["tags"], **divergence_tags(diverged)}})
    tracker.log_result(
        trial.cell_key,
        {
            "training_iteration": max(result.scored_at(epochs) for result in found.values()),
            "seed": {str(seed): {"run_score": r.score(epochs)} for seed, r in found.items()},
        },
        means=False,
    )
    tracker.end_trial(trial.cell_key)


def _folder(trial: TuneTrial) -> str:
    record = trial.config["job"]["record"]
    return _name(record["name"], record["seeds"])


def _name(trial: str, seeds: Sequence[int]) -> str:
    listed = "-".join(map(str, seeds))
    if len(listed) > 40:  # a folder's name ends at 255 bytes
        listed = f"{seeds[0]}-and-{len(seeds) - 1}-more-{content_key({'seeds': list(seeds)})[:8]}"
    return f"{trial}__seeds-{listed}"


def _record_table(tracker: Tracker, sweep: Sweep, trials: Sequence[Trial], storage: Path) -> None:
    text = io.StringIO()
    frame = report.summary(trials, ResultStore(storage))
    Console(file=text, width=120, markup=False, emoji=False).print(report.render(sweep, frame))
    tracker.log_table(text.getvalue(), "table.txt")
    for trial, row in zip(trials, frame.to_dict("records"), strict=True):
        if row["scores"]:
            tracker.log_score(trial.name, row["run_score"], row["epochs_done"])
