"""What a sweep still has to do, given what the storage holds. Planning changes nothing on disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table

from algorithms.data.source import at_hand, missing, to_download
from algorithms.data.spec import DatasetSpec
from algorithms.dynamics.spec import EnsembleSpec, is_published
from algorithms.presets import PRESETS
from algorithms.storage import Storage
from orchestrator.results import ResultStore
from orchestrator.sweep.cell import Cell
from orchestrator.sweep.model import Sweep


@dataclass(frozen=True)
class Resume:
    """Where the seeds of a job continue."""

    checkpoint: str  # absolute path of a folder
    positions: tuple[int, ...]  # of each of the job's seeds in the checkpoint's stack
    epochs: int  # done


@dataclass(frozen=True)
class Job:
    """Seeds of one cell that train together in one program: one trial of Ray Tune."""

    cell: Cell
    seeds: tuple[int, ...]
    resume: Resume | None  # None: from the start

    @property
    def ensembles(self) -> tuple[EnsembleSpec | None, ...]:
        """The dynamics ensemble of each seed, None without a model."""
        return tuple(self.cell.ensemble(seed) for seed in self.seeds)

    @property
    def ensemble_keys(self) -> set[str]:
        """Those that must be there before it can start."""
        return {spec.key for spec in self.ensembles if spec}

    @property
    def epochs_left(self) -> int:
        return self.cell.settings.epochs - (self.resume.epochs if self.resume else 0)

    @property
    def gradient_steps(self) -> int:
        """Gradient steps left, summed over seeds."""
        steps_per_epoch = self.cell.settings.gradient_steps_per_epoch
        return len(self.seeds) * self.epochs_left * steps_per_epoch


@dataclass(frozen=True)
class CellPlan:
    """One cell: the seeds that are done, and jobs for the others."""

    cell: Cell
    done: tuple[int, ...]
    jobs: tuple[Job, ...]
    lost: tuple[int, ...] = ()  # seeds that start anew because their checkpoint is gone
    same_as: Cell | None = None  # another name for that cell, which has the jobs

    @property
    def continuing(self) -> tuple[Job, ...]:
        return tuple(job for job in self.jobs if job.resume)

    @property
    def new(self) -> tuple[int, ...]:
        return tuple(seed for job in self.jobs if not job.resume for seed in job.seeds)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.cell.name,
            "variant": self.cell.variant,
            "algorithm": self.cell.algorithm,
            "dataset": self.cell.dataset_label,
            "settings": self.cell.settings.model_dump(mode="json"),
            "same_as": self.same_as and self.same_as.name,
            "seeds": list(self.cell.seeds),
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
    """One dynamics ensemble that the sweep's cells share."""

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
    cells: tuple[CellPlan, ...]
    ensembles: tuple[EnsemblePlan, ...]
    datasets_to_generate: tuple[DatasetSpec, ...]
    datasets_to_download: Mapping[DatasetSpec, int]  # and their bytes
    missing_data: tuple[str, ...]  # for each file that a job lacks, where to put it

    @property
    def jobs(self) -> tuple[Job, ...]:
        return tuple(job for cell in self.cells for job in cell.jobs)

    @property
    def ensembles_to_train(self) -> tuple[EnsembleSpec, ...]:
        return tuple(ensemble.spec for ensemble in self.ensembles if ensemble.to_train)

    @property
    def gradient_steps(self) -> int:
        """Gradient steps left, summed over seeds."""
        return sum(job.gradient_steps for job in self.jobs)

    def is_current(self, store: ResultStore) -> bool:
        """Whether the seeds that are to train stand where they stood when it was made."""
        for job in self.jobs:
            for seed in job.seeds:
                result = store.get(job.cell.result_key(seed))
                if (result.epochs if result else 0) != (job.resume.epochs if job.resume else 0):
                    return False
        return True

    def summary(self) -> str:
        """The plan in one sentence."""
        if not self.jobs:
            return f"nothing to run: {_count(len(self.cells), 'cell')} done"
        seeds = sum(len(job.seeds) for job in self.jobs)
        cells = sum(bool(cell.jobs) for cell in self.cells)
        parts = [f"{_count(seeds, 'seed')} in {_count(cells, 'cell')}"]
        if self.ensembles_to_train:
            parts.append(f"{_count(len(self.ensembles_to_train), 'dynamics ensemble')} to train")
        if self.datasets_to_generate:
            parts.append(f"{_count(len(self.datasets_to_generate), 'data set')} to generate")
        if self.datasets_to_download:
            size = decimal(sum(self.datasets_to_download.values()))
            count = _count(len(self.datasets_to_download), "data set")
            parts.append(f"{count} to download ({size})")
        text = f"to run: {', '.join(parts)}; {self.gradient_steps:,} gradient steps"
        if lost := sum(len(cell.lost) for cell in self.cells):
            text += f"; {_count(lost, 'seed')} of these start anew: their checkpoints are gone"
        return text

    def to_json(self) -> dict[str, Any]:
        return {
            "sweep": self.sweep.name,
            "question": self.sweep.question,
            "preset": self.sweep.preset,
            "dynamics_seeds": self.sweep.dynamics_seeds,
            "cells": [cell.to_json() for cell in self.cells],
            "ensembles": [ensemble.to_json() for ensemble in self.ensembles],
            "datasets_to_generate": [dataset.id for dataset in self.datasets_to_generate],
            "datasets_to_download": [
                {"id": dataset.id, "bytes": size}
                for dataset, size in self.datasets_to_download.items()
            ],
            "missing_data": list(self.missing_data),
            "data": list(self.data_lines),
            "plugins": [
                {"name": plugin.name, "sha256": plugin.sha256}
                for plugin in self.sweep.loaded_plugins
            ],
            "gradient_steps": self.gradient_steps,
        }

    def render(self) -> RenderableType:
        """Tables of cells, preset and ensembles for a terminal."""
        shown: list[RenderableType] = [self._cells_table()]
        if self.sweep.preset:
            shown.append(self._preset_table(self.sweep.preset))
        if self.ensembles:
            shown.append(self._ensembles_table())
        return Group(
            *shown, *self._plugin_lines(), *self.data_lines, *self.missing_data, self.summary()
        )

    @property
    def data_lines(self) -> tuple[str, ...]:
        """What was done to read the data sets, and what is odd about them: a sentence each."""
        cells = [entry.cell for entry in self.cells]
        datasets = {cell.dataset.content_hash: cell.dataset for cell in cells}.values()
        return tuple(
            line
            for dataset in datasets
            for line in (
                *dataset.notes,
                *(f"warning: {text}" for text in dataset.warnings),
                *dataset.silenced,
            )
        )

    def _plugin_lines(self) -> list[str]:
        """Which plugins are part of the keys, and of how many cells."""
        lines = []
        for plugin in self.sweep.loaded_plugins:
            users = sum(
                plugin.name in {origin.plugin for origin in entry.cell.origins}
                for entry in self.cells
            )
            used = f"part of the keys of {_count(users, 'cell')}" if users else "used by no cell"
            lines.append(f"plugin {plugin.name}: source {plugin.sha256[:12]}, {used}")
        return lines

    def _cells_table(self) -> Table:
        headings = ("variant", "dataset", "done", "to continue", "new", "epochs")
        table = _table(f"{self.sweep.name}: cells", headings)
        for entry in self.cells:
            continuing = [
                f"{_seeds(job.seeds)} from epoch {job.resume.epochs}"
                for job in entry.continuing
                if job.resume
            ]
            new = f"as {entry.same_as.variant}" if entry.same_as else _seeds(entry.new)
            table.add_row(
                entry.cell.variant,
                entry.cell.dataset_label,
                _seeds(entry.done),
                "; ".join(continuing) or "-",
                new,
                str(entry.cell.settings.epochs),
            )
        return table

    def _preset_table(self, preset: str) -> Table:
        """What the preset decides: the same for all variants that do not choose otherwise."""
        everywhere: dict[str, Any] = {}
        rows: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
        for entry in self.cells:
            row = rows[entry.cell.dataset_label, entry.cell.algorithm]
            for key, value in entry.cell.preset.items():
                (everywhere if key in PRESETS[preset].everywhere else row)[key] = value
        title = f"preset {preset}: {_settings(everywhere)}"
        table = _table(title, ("dataset", "algorithm", "settings"))
        table.caption = f"source: {PRESETS[preset].source}"
        for (dataset, algorithm), values in rows.items():
            table.add_row(dataset, algorithm, _settings(values))
        return table

    def _ensembles_table(self) -> Table:
        table = _table("dynamics ensembles", ("dataset", "seed", "key", "state"))
        for ensemble in self.ensembles:
            spec = ensemble.spec
            state = "cached" if ensemble.cached else "to train" if ensemble.needed else "not needed"
            table.add_row(spec.dataset.id, str(spec.seed), spec.key, state)
        return table


def make_plan(sweep: Sweep, cells: list[Cell], storage: Storage) -> Plan:
    """Compare the sweep with the storage.

    Raises:
        UserError: a result in the storage is unreadable.
    """
    store = ResultStore(storage)
    planned = _plan_cells(cells, store)
    specs = {spec.key: spec for cell in cells for spec in cell.ensembles}
    jobs = [job for entry in planned for job in entry.jobs]
    needed = {key for job in jobs for key in job.ensemble_keys}
    datasets = {job.cell.dataset.content_hash: job.cell.dataset for job in jobs}.values()
    lacking = {d: missing(d, storage) for d in datasets}
    downloads = ((d, to_download(d, storage)) for d in datasets if lacking[d] is None)
    return Plan(
        sweep=sweep,
        cells=planned,
        ensembles=tuple(
            EnsemblePlan(
                spec=spec,
                cached=is_published(storage, key),
                needed=key in needed,
            )
            for key, spec in specs.items()
        ),
        datasets_to_generate=tuple(d for d in datasets if d.recipe and not at_hand(d, storage)),
        datasets_to_download={d: size for d, size in downloads if size},
        missing_data=tuple(filter(None, lacking.values())),
    )


def _plan_cells(cells: list[Cell], store: ResultStore) -> tuple[CellPlan, ...]:
    first: dict[str, Cell] = {}
    planned = []
    for cell in cells:
        entry = _plan_cell(cell, store)
        same = first.setdefault(cell.cell_key, cell)
        if same is not cell:
            entry = replace(entry, jobs=(), lost=(), same_as=same)
        planned.append(entry)
    return tuple(planned)


def _plan_cell(cell: Cell, store: ResultStore) -> CellPlan:
    done: list[int] = []
    new: list[int] = []
    lost: list[int] = []
    # Seeds train together only if they stand at the same epoch of the same checkpoint.
    continuing: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    for seed in cell.seeds:
        result = store.get(cell.result_key(seed))
        if result is None:
            new.append(seed)
        elif result.done(cell.settings.epochs):
            done.append(seed)
        elif checkpoint := result.existing_checkpoint:
            continuing[checkpoint, result.epochs].append((seed, result.position))
        else:
            new.append(seed)
            lost.append(seed)
    jobs = [
        Job(
            cell=cell,
            seeds=tuple(seed for seed, _ in group),
            resume=Resume(checkpoint, tuple(index for _, index in group), epochs),
        )
        for (checkpoint, epochs), group in continuing.items()
    ]
    if new:
        jobs.append(Job(cell=cell, seeds=tuple(new), resume=None))
    return CellPlan(cell=cell, done=tuple(done), jobs=tuple(jobs), lost=tuple(lost))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def _seeds(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds)) or "-"


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items()) or "-"


def _table(title: str, headings: Iterable[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
