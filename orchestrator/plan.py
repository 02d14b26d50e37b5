"""What a sweep still has to do, given what the storage holds. Planning changes nothing on disk."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from algorithms.data import bundled
from algorithms.data.catalog import DatasetSpec
from algorithms.identity import EnsembleSpec
from orchestrator.results import ResultStore
from orchestrator.sweep import Sweep, Trial


@dataclass(frozen=True)
class Resume:
    """Where the seeds of a job continue."""

    checkpoint: str  # absolute path of a folder
    indices: tuple[int, ...]  # position of each of the job's seeds in the checkpoint's stack
    epochs: int  # done


@dataclass(frozen=True)
class Job:
    """Seeds of one trial that train together in one program: one trial of Ray Tune."""

    trial: Trial
    seeds: tuple[int, ...]
    resume: Resume | None  # None: from the start

    @property
    def ensembles(self) -> tuple[EnsembleSpec, ...]:
        """The dynamics ensemble of each seed."""
        return tuple(self.trial.ensemble(seed) for seed in self.seeds)

    @property
    def epochs_left(self) -> int:
        return self.trial.settings.epochs - (self.resume.epochs if self.resume else 0)

    @property
    def gradient_steps(self) -> int:
        """Gradient steps left, summed over seeds."""
        steps_per_epoch = self.trial.settings.gradient_steps_per_epoch
        return len(self.seeds) * self.epochs_left * steps_per_epoch


@dataclass(frozen=True)
class TrialPlan:
    """One cell: the seeds that are done, and jobs for the others."""

    trial: Trial
    done: tuple[int, ...]
    jobs: tuple[Job, ...]
    lost: tuple[int, ...] = ()  # seeds that start anew because their checkpoint is gone

    @property
    def continuing(self) -> tuple[Job, ...]:
        return tuple(job for job in self.jobs if job.resume)

    @property
    def new(self) -> tuple[int, ...]:
        return tuple(seed for job in self.jobs if not job.resume for seed in job.seeds)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.trial.name,
            "variant": self.trial.variant,
            "dataset": self.trial.dataset_label,
            "epochs": self.trial.settings.epochs,
            "seeds": list(self.trial.seeds),
            "done": list(self.done),
            "continuing": [
                {"seeds": list(job.seeds), "epochs": job.resume.epochs}
                for job in self.continuing
                if job.resume
            ],
            "new": list(self.new),
        }


@dataclass(frozen=True)
class EnsemblePlan:
    """One dynamics ensemble that the sweep's trials share."""

    spec: EnsembleSpec
    cached: bool  # published in the storage
    needed: bool  # by a seed that still has to train

    @property
    def to_train(self) -> bool:
        return self.needed and not self.cached

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.spec.key,
            "dataset": self.spec.dataset.id,
            "seed": self.spec.seed,
            "cached": self.cached,
            "to_train": self.to_train,
        }


@dataclass(frozen=True)
class Plan:
    """Everything that `orchestrator run` would do."""

    sweep: Sweep
    trials: tuple[TrialPlan, ...]
    ensembles: tuple[EnsemblePlan, ...]
    datasets_to_generate: tuple[DatasetSpec, ...]

    @property
    def jobs(self) -> tuple[Job, ...]:
        return tuple(job for trial in self.trials for job in trial.jobs)

    @property
    def ensembles_to_train(self) -> tuple[EnsembleSpec, ...]:
        return tuple(ensemble.spec for ensemble in self.ensembles if ensemble.to_train)

    @property
    def gradient_steps(self) -> int:
        """Gradient steps left, summed over seeds."""
        return sum(job.gradient_steps for job in self.jobs)

    def summary(self) -> str:
        """The plan in one sentence."""
        if not self.jobs:
            return f"nothing to run: {_count(len(self.trials), 'trial')} done"
        seeds = sum(len(job.seeds) for job in self.jobs)
        trials = sum(bool(trial.jobs) for trial in self.trials)
        parts = [f"{_count(seeds, 'seed')} in {_count(trials, 'trial')}"]
        if self.ensembles_to_train:
            parts.append(f"{_count(len(self.ensembles_to_train), 'dynamics ensemble')} to train")
        if self.datasets_to_generate:
            parts.append(f"{_count(len(self.datasets_to_generate), 'data set')} to generate")
        text = f"to run: {', '.join(parts)}; {self.gradient_steps:,} gradient steps"
        if lost := sum(len(trial.lost) for trial in self.trials):
            text += f"; {_count(lost, 'seed')} of these start anew: their checkpoints are gone"
        return text

    def to_json(self) -> dict[str, Any]:
        return {
            "sweep": self.sweep.name,
            "question": self.sweep.question,
            "algorithm": self.sweep.algorithm,
            "dynamics_seeds": self.sweep.dynamics_seeds,
            "trials": [trial.to_json() for trial in self.trials],
            "ensembles": [ensemble.to_json() for ensemble in self.ensembles],
            "datasets_to_generate": [dataset.id for dataset in self.datasets_to_generate],
            "gradient_steps": self.gradient_steps,
        }

    def render(self) -> RenderableType:
        """Tables of trials and ensembles for a terminal."""
        trials = Table(box=SIMPLE_HEAD, title=f"{self.sweep.name}: trials")
        for heading in ("variant", "dataset", "done", "to continue", "new", "epochs"):
            trials.add_column(heading, overflow="fold")
        for cell in self.trials:
            trials.add_row(
                cell.trial.variant,
                cell.trial.dataset_label,
                _seeds(cell.done),
                "; ".join(
                    f"{_seeds(job.seeds)} from epoch {job.resume.epochs}"
                    for job in cell.continuing
                    if job.resume
                )
                or "-",
                _seeds(cell.new),
                str(cell.trial.settings.epochs),
            )
        ensembles = Table(box=SIMPLE_HEAD, title="dynamics ensembles")
        for heading in ("dataset", "seed", "key", "state"):
            ensembles.add_column(heading, overflow="fold")
        for ensemble in self.ensembles:
            spec = ensemble.spec
            state = "cached" if ensemble.cached else "to train" if ensemble.needed else "not needed"
            ensembles.add_row(spec.dataset.id, str(spec.seed), spec.key, state)
        return Group(trials, ensembles, self.summary())


def make_plan(sweep: Sweep, trials: list[Trial], storage: Path) -> Plan:
    """Compare the sweep with the storage.

    Raises:
        UserError: a result in the storage is unreadable.
    """
    store = ResultStore(storage)
    planned = tuple(_plan_trial(trial, store) for trial in trials)
    specs = {
        spec.key: spec
        for trial in trials
        for spec in (trial.ensemble(seed) for seed in trial.seeds)
    }
    jobs = [job for cell in planned for job in cell.jobs]
    needed = {job.trial.ensemble(seed).key for job in jobs for seed in job.seeds}
    datasets = {job.trial.dataset.content_hash: job.trial.dataset for job in jobs}
    return Plan(
        sweep=sweep,
        trials=planned,
        ensembles=tuple(
            EnsemblePlan(
                spec=spec,
                cached=(storage / "ensembles" / key / "ensemble.json").is_file(),
                needed=key in needed,
            )
            for key, spec in specs.items()
        ),
        datasets_to_generate=tuple(
            dataset
            for dataset in datasets.values()
            if dataset.recipe and not bundled.cache_path(dataset, storage).is_file()
        ),
    )


def _plan_trial(trial: Trial, store: ResultStore) -> TrialPlan:
    done: list[int] = []
    new: list[int] = []
    lost: list[int] = []
    # Seeds train together only if they stand at the same epoch of the same checkpoint.
    continuing: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    for seed in trial.seeds:
        result = store.get(trial.result_key(seed))
        if result is None:
            new.append(seed)
        elif result.done(trial.settings.epochs):
            done.append(seed)
        elif checkpoint := result.existing_checkpoint:
            continuing[checkpoint, result.epochs].append((seed, result.index))
        else:
            new.append(seed)
            lost.append(seed)
    jobs = [
        Job(
            trial=trial,
            seeds=tuple(seed for seed, _ in group),
            resume=Resume(checkpoint, tuple(index for _, index in group), epochs),
        )
        for (checkpoint, epochs), group in continuing.items()
    ]
    if new:
        jobs.append(Job(trial=trial, seeds=tuple(new), resume=None))
    return TrialPlan(trial=trial, done=tuple(done), jobs=tuple(jobs), lost=tuple(lost))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def _seeds(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds)) or "-"
