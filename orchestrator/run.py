"""Running a sweep: data, then ensembles, then one trial of Ray Tune per job, then the table.

There is one way to start: compare the sweep with the storage, and run what is missing from where
it stands. A first run, a rerun, an extension and the repair of a lost driver are the same thing.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

import pandas as pd
from rich.console import Console

from algorithms.data.source import load
from algorithms.data.spec import DatasetSpec
from algorithms.errors import UserError
from algorithms.storage import HeldError, Storage
from orchestrator.deployment import Deployment
from orchestrator.plan import Job, Plan, make_plan
from orchestrator.report.table import render, summary
from orchestrator.results import ResultStore, remember_datasets
from orchestrator.sweep.cell import Cell, cells_of, resolve_entry
from orchestrator.sweep.model import DatasetEntry, Sweep
from orchestrator.sweep.variants import slug
from orchestrator.tracking.records import SweepRecord


class Outcome(NamedTuple):
    """What a run came to."""

    table: pd.DataFrame  # of `report.table.summary`
    failed: list[str]  # a line each


def run(sweep: Sweep, deployment: Deployment, console: Console) -> Outcome:
    """Train everything that the sweep still lacks.

    Raises:
        UserError: data are missing, the sweep asks for a device or CPUs that are not there, the
            storage cannot be written, or another run is training one of its cells.
    """
    resolved: dict[DatasetEntry, DatasetSpec] = {}

    def resolve(entry: DatasetEntry) -> DatasetSpec:
        resolved[entry] = resolve_entry(entry, deployment.storage)
        return resolved[entry]

    found = cells_of(sweep, resolve)
    store = ResultStore(deployment.storage)
    plan = make_plan(sweep, found, deployment.storage)
    if plan.missing_data:
        raise UserError("; ".join(plan.missing_data))
    if not plan.jobs:
        console.print(plan.summary())
        with suppress(OSError):  # a table can be had of a storage that cannot be written
            _name_shared_results(plan, store, deployment.storage)
            remember_datasets(resolved, deployment.storage)
        return Outcome(summary(found, store), [])
    deployment.prepare()
    with _held(plan.jobs, deployment.storage):
        if not plan.is_current(store):  # another run ended meanwhile
            plan = make_plan(sweep, found, deployment.storage)
        for line in plan.data_lines:
            console.print(line, soft_wrap=True)
        console.print(plan.summary())
        remember_datasets(resolved, deployment.storage)
        _name_shared_results(plan, store, deployment.storage)
        failed = _train(plan, deployment, console) if plan.jobs else []
    return Outcome(summary(found, store), failed)


def _train(plan: Plan, deployment: Deployment, console: Console) -> list[str]:
    """Data, ensembles, jobs; returns what failed, a line each."""
    if plan.sweep.loaded_plugins:
        from algorithms.dynamics.checks import check_on_made_up_input

        for job in plan.jobs:
            check_on_made_up_input(job.cell.settings, job.cell.dataset.env_id)
    for dataset in (*plan.datasets_to_generate, *plan.datasets_to_download):
        load(dataset, deployment.storage)
    # Ray, torch and MLflow take seconds to import: not where there is nothing to train.
    from orchestrator import tune
    from orchestrator.tracking.protocol import open_trackers

    sweep, store = plan.sweep, ResultStore(deployment.storage)
    with tune.connected(deployment):
        share = tune.share_of(sweep, deployment)
        trackers = open_trackers(sweep.trackers, sweep_record(sweep), deployment)
        with trackers as tracker:
            failed = tune.train(plan, deployment, tracker, share, console)
            found = [entry.cell for entry in plan.cells]
            frame = summary(found, store)
            text = io.StringIO()
            Console(file=text, width=120, markup=False, emoji=False).print(render(sweep, frame))
            tracker.log_table(text.getvalue(), "table.txt")
            for cell, row in zip(found, frame.to_dict("records"), strict=True):
                if row["scores"]:
                    tracker.log_score(cell.name, row["run_score"], row["epochs_done"])
            if failed:
                tracker.close("FAILED")
    return failed


def sweep_record(sweep: Sweep) -> SweepRecord:
    """What trackers are told of a sweep."""
    return SweepRecord(
        name=sweep.name,
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
    )


def _name_shared_results(plan: Plan, store: ResultStore, storage: Storage) -> None:
    """A result may be that of several cells, of this sweep and others: it is known by each."""
    for entry in plan.cells:
        cell = entry.cell
        found = [store.get(cell.result_key(seed)) for seed in cell.seeds]
        if all(result is None or cell.name in result.names for result in found):
            continue
        # Whoever trains the cell, this run or another, enters its own name with the results.
        with suppress(HeldError), storage.lease(cell.cell_key, wait=False):
            for seed in cell.seeds:
                store.add_name(cell.result_key(seed), cell.name)


@contextmanager
def _held(jobs: Sequence[Job], storage: Storage) -> Iterator[None]:
    """Hold the jobs' cells, so that no other run trains them meanwhile; a killed run lets go."""
    to_train: dict[str, Cell] = {job.cell.cell_key: job.cell for job in jobs}
    with ExitStack() as held:
        for cell_key, cell in sorted(to_train.items()):
            try:
                held.enter_context(storage.lease(cell_key, wait=False))
            except HeldError:
                raise UserError(
                    f"another run is training {cell.name} in {storage}: let it end first"
                ) from None
        yield
