"""A tracker that needs no server: one CSV file and TensorBoard's events per cell.

    tracking/sweeps/<sweep>/sweep.json                       what the sweep asks
    tracking/sweeps/<sweep>/<cell>/metrics.csv               a row per epoch, seed and metric
    tracking/sweeps/<sweep>/<cell>/events.out.tfevents...    the same, for `tensorboard --logdir`
    tracking/sweeps/<sweep>/scores.csv                       the score of each cell
    tracking/ensembles/<name>_<key>.json                     what is known of an ensemble

While a cell trains, an epoch that is trained again after a failure has rows twice; when it has
ended, the last of them alone.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import pandas as pd

from orchestrator.deployment import Deployment
from orchestrator.tracking.records import (
    CellRecord,
    EnsembleRecord,
    EpochRecord,
    Status,
    SweepRecord,
)

log = logging.getLogger(__name__)
Arguments = ParamSpec("Arguments")


def open_tracker(sweep: SweepRecord, deployment: Deployment) -> FilesTracker:
    """The tracker of a sweep, below the deployment's storage."""
    return FilesTracker(deployment.storage.path("tracking"), sweep)


def _unless_it_fails(
    method: Callable[Concatenate[FilesTracker, Arguments], None],
) -> Callable[Concatenate[FilesTracker, Arguments], None]:
    """A full disk costs records, never the sweep; the first such error is told at the end."""

    @wraps(method)
    def careful(
        self: FilesTracker, /, *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> None:
        try:
            method(self, *arguments, **named)
        except OSError as error:
            self.error = self.error or error

    return careful


class FilesTracker:
    """Records one sweep in a folder of CSV files and TensorBoard events.

    Args:
        folder: for all sweeps.
        sweep: the one that it is told of.
    """

    def __init__(self, folder: Path, sweep: SweepRecord) -> None:
        self._folder, self._sweep = folder, sweep
        self._records: dict[str, CellRecord] = {}  # by the cells' keys, as all the below
        self._cells: dict[str, Path] = {}  # folders
        self._events: dict[str, Any] = {}  # TensorBoard's writers
        self.error: OSError | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_events": {}}  # they hold open files

    @property
    def _root(self) -> Path:
        return self._folder / "sweeps" / self._sweep.name

    @_unless_it_fails
    def start(self) -> None:
        self._write(self._root / "sweep.json", self._sweep.model_dump(mode="json"))

    @_unless_it_fails
    def start_cell(self, cell: CellRecord) -> None:
        known = self._records.get(cell.key, cell)  # another job may train others of its seeds
        cell = cell.model_copy(
            update={
                "seeds": tuple(sorted({*known.seeds, *cell.seeds})),
                "diverged": tuple(sorted({*known.diverged, *cell.diverged})),
            }
        )
        self._records[cell.key] = cell
        self._cells[cell.key] = self._root / cell.name
        self._write(self._root / cell.name / "cell.json", cell.model_dump(mode="json"))

    @_unless_it_fails
    def log_epoch(self, cell_key: str, epoch: EpochRecord) -> None:
        rows = [
            (epoch.epoch, seed, name, value)
            for seed, metrics in epoch.seeds.items()
            for name, value in metrics.items()
        ]
        _append(self._cells[cell_key] / "metrics.csv", ("epoch", "seed", "metric", "value"), rows)
        events = self._writer(cell_key)
        for name, value in epoch.mean.items():
            events.add_scalar(name, value, epoch.epoch)
        for _, seed, name, value in rows:
            events.add_scalar(f"seed_{seed}/{name}", value, epoch.epoch)

    @_unless_it_fails
    def end_cell(self, cell_key: str, status: Status = "FINISHED") -> None:
        self._write(self._cells[cell_key] / "status.json", {"status": status})
        if events := self._events.pop(cell_key, None):
            events.close()
        _keep_last(self._cells[cell_key] / "metrics.csv", ["epoch", "seed", "metric"])

    @_unless_it_fails
    def log_score(self, cell: str, score: float, epochs: int) -> None:
        path = self._root / "scores.csv"
        _append(path, ("cell", "epochs", "score"), [(cell, epochs, score)])
        _keep_last(path, ["cell"])

    @_unless_it_fails
    def log_table(self, text: str, file: str) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        (self._root / file).write_text(text, encoding="utf-8")

    @_unless_it_fails
    def log_ensemble(self, ensemble: EnsembleRecord) -> None:
        name = f"{ensemble.name.replace(' ', '-')}_{ensemble.key}.json"
        content = {**ensemble._asdict(), "dataset": ensemble.dataset.model_dump(mode="json")}
        del content["files"]  # they lie with the ensemble
        self._write(self._folder / "ensembles" / name, content)

    def run_id(self, cell_key: str) -> None:
        """None: a folder has no id."""
        del cell_key

    def close(self, status: Status | None = None) -> None:
        del status
        for key in list(self._events):
            self.end_cell(key, "KILLED")
        if self.error is not None:
            log.warning("not all was recorded in %s: %s", self._root, self.error)
            self.error = None

    def _writer(self, cell_key: str) -> Any:
        from tensorboardX import SummaryWriter  # a third of a second

        if cell_key not in self._events:
            self._events[cell_key] = SummaryWriter(str(self._cells[cell_key]))
        return self._events[cell_key]

    @staticmethod
    def _write(path: Path, content: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _append(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(header)
        writer.writerows(rows)


def _keep_last(path: Path, keys: list[str]) -> None:
    """Of the rows of a table that are alike in these columns the last one."""
    if not path.is_file():
        return
    table = pd.read_csv(path)
    kept = table.drop_duplicates(keys, keep="last")
    if len(kept) < len(table):
        kept.to_csv(path, index=False)
