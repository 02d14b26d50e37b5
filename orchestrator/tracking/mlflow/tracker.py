"""What a sweep tells MLflow.

Three kinds of run. Each is looked up by a tag before it is made, so that a rerun, a resumption or
an extension of a sweep continues the runs it began:

    run        experiment                  found by the tag
    sweep      the sweep's name            orchestrator.sweep    = name of the sweep
    cell       same, child of the sweep    orchestrator.cell     = Cell.cell_key
    ensemble   `ensembles`, for all        orchestrator.ensemble = EnsembleSpec.key

Metrics of a cell: `normalized_score` is the mean over its seeds, `seed_0/normalized_score` one
seed's, `run_score` the mean of the last ten evaluations; the step is the epoch. Metrics of a sweep:
`run_score/<name of the cell>`.

All methods only enqueue; `writer.py` writes.
"""

from __future__ import annotations

import getpass
import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from numbers import Real
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

from algorithms.identity import git_commit
from orchestrator.deployment import Deployment
from orchestrator.tracking.mlflow.writer import (
    ENSEMBLE,
    ENSEMBLES,
    Artifact,
    End,
    Entry,
    File,
    Open,
    Ref,
    Writer,
)
from orchestrator.tracking.records import (
    CellRecord,
    DatasetRecord,
    EnsembleRecord,
    EpochRecord,
    Status,
    SweepRecord,
)

SWEEP, CELL = "orchestrator.sweep", "orchestrator.cell"

log = logging.getLogger(__name__)


def open_tracker(sweep: SweepRecord, deployment: Deployment) -> MLflowTracker:
    """The tracker of a sweep where the deployment has its MLflow."""
    embedded = deployment.tracking_uri.startswith("sqlite:")
    artifacts = deployment.artifacts.as_uri() if embedded else None
    return MLflowTracker(deployment.tracking_uri, sweep, artifact_root=artifacts)


class MLflowTracker:
    """Records one sweep in MLflow. All methods return at once, but `close`, which is bounded.

    It can be pickled at any time: a copy has the same settings, and a thread of its own as soon as
    it writes.

    Args:
        uri: where MLflow is, `http://...` or `sqlite:///...`.
        sweep: the sweep; its name is also the experiment's, its question the run's description.
        tags: on every run, besides `source_tags()`.
        artifact_root: where files of new experiments go. None: the server decides.
    """

    def __init__(
        self,
        uri: str,
        sweep: SweepRecord,
        *,
        tags: Mapping[str, str] | None = None,
        artifact_root: str | None = None,
    ) -> None:
        self._uri = uri
        self._artifact_root = artifact_root
        self._sweep = Ref(SWEEP, sweep.name)
        self._tags = {**source_tags(), **(tags or {})}
        self._open_sweep = Open(
            experiment=sweep.name,
            name=sweep.name,
            params=sweep.params,
            tags={**self._tags, "mlflow.note.content": sweep.question},
        )
        self._complete = True
        self._writer: Writer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_writer": None}  # threads cannot be pickled

    def start(self) -> None:
        """Open the sweep's run. Anything else written opens it as well."""
        self._put(self._sweep)

    def start_cell(self, cell: CellRecord) -> None:
        """Open the run of a cell."""
        tags = {
            **self._tags,
            **_dataset_tags(cell.dataset),
            "orchestrator.ensembles": ",".join(cell.ensemble_keys),
            "variant": cell.variant,
            **{f"diverged.seed_{seed}": "true" for seed in cell.diverged},
        }
        if cell.is_whole:
            tags["orchestrator.mean_over_seeds"] = ",".join(map(str, cell.seeds))
        self._put(
            _cell(cell.key),
            Open(
                experiment=self._sweep.value,
                name=cell.name,
                params={**cell.params, **_dataset_params(cell.dataset)},
                tags=tags,
                parent=self._sweep,
                dataset=_dataset_input(cell.dataset),
                ensembles=cell.ensemble_keys,
            ),
        )

    def log_epoch(self, cell_key: str, epoch: EpochRecord) -> None:
        """Metrics of a cell's run at the step of that epoch.

        Means are of a job that trains all seeds of its cell. A job that adds some seeds to others
        trained before has none: a curve would change its meaning half way.
        """
        values: dict[str, Any] = dict(epoch.mean)
        if epoch.mean:
            values["minutes"] = epoch.minutes
        for seed, metrics in epoch.seeds.items():
            values |= {f"seed_{seed}/{name}": value for name, value in metrics.items()}
        self._put(_cell(cell_key), *_metrics(values, epoch.epoch))

    def end_cell(self, cell_key: str, status: Status = "FINISHED") -> None:
        """End the run of a cell."""
        self._complete = self._complete and status == "FINISHED"
        self._put(_cell(cell_key), End(status))

    def log_score(self, cell: str, score: float, epochs: int) -> None:
        """A cell's score on the run of the sweep, so that one page compares all cells."""
        self._put(self._sweep, *_metrics({f"run_score/{cell}": score}, epochs))

    def log_table(self, text: str, file: str) -> None:
        """Keep the sweep's table as a file of its run."""
        self._put(self._sweep, Artifact(text, file))

    def log_ensemble(self, ensemble: EnsembleRecord) -> None:
        """Record a trained ensemble in a run of its own; one that is recorded stays as it is."""
        dataset, history = ensemble.dataset, ensemble.history
        tags = {**self._tags, **_dataset_tags(dataset), "orchestrator.path": ensemble.folder}
        curves = [
            metric for epoch, values in enumerate(history, 1) for metric in _metrics(values, epoch)
        ]
        self._put(
            Ref(ENSEMBLE, ensemble.key),
            Open(
                experiment=ENSEMBLES,
                name=ensemble.name,
                params={**ensemble.params, "seed": ensemble.seed, **_dataset_params(dataset)},
                tags=tags,
                dataset=_dataset_input(dataset),
                once=True,
            ),
            *curves,
            *_metrics(ensemble.metrics, len(history)),
            *map(File, ensemble.files),
            End("FINISHED"),
        )

    def run_id(self, cell_key: str) -> str | None:
        """The id of a cell's run; None while MLflow has not told it."""
        return self._writer.runs.get(_cell(cell_key)) if self._writer else None

    def close(self, status: Status | None = None, timeout: float = 8.0) -> None:
        """End the sweep's run, and write what waits.

        The run is `FINISHED`, or `FAILED` if one of its cells did not finish, or `status`.

        A lost server is given up after two seconds, one that does not answer after `timeout`.
        Cells that have not ended are `KILLED`. What could not be written is told in one warning.
        """
        if self._writer is None:
            return
        for ref in self._writer.open - {self._sweep}:
            self.end_cell(ref.value, "KILLED")
        self._put(self._sweep, End(status or ("FINISHED" if self._complete else "FAILED")))
        complaint = self._writer.close(timeout)
        self._writer = None
        if complaint:
            log.warning(complaint)

    def _put(self, ref: Ref, *entries: Entry) -> None:
        if self._writer is None:
            self._writer = Writer(self._uri, self._artifact_root)
            self._writer.put(self._sweep, [self._open_sweep])
        if entries:
            self._writer.put(ref, entries)


def _cell(key: str) -> Ref:
    return Ref(CELL, key)


def _metrics(values: Mapping[str, Any], step: int) -> list[Metric]:
    """Numbers become metrics of now, NaN and infinities included; anything else is left out."""
    now = time.time_ns() // 1_000_000
    return [
        Metric(key, float(value), now, step)
        for key, value in values.items()
        if isinstance(value, Real)
    ]


def _dataset_tags(dataset: DatasetRecord) -> dict[str, str]:
    return {"dataset": dataset.id, "dataset_digest": dataset.digest}


def _dataset_params(dataset: DatasetRecord) -> dict[str, str]:
    """What the runs' page compares by; an empty one says nothing."""
    params = {
        "dataset": dataset.id,
        "dataset_content": dataset.digest[:12],
        "dataset_version": dataset.version,
        "dataset_notes": "; ".join(dataset.notes),
        "dataset_silenced": "; ".join(dataset.silenced),
    }
    return {key: _cut(value, 5_000) for key, value in params.items() if value}


def _cut(text: str, length: int) -> str:
    """Within MLflow's limits: 6,000 characters of a param, 500 of a data set's name."""
    return text if len(text) <= length else f"{text[: length - 4]} ..."


def _dataset_input(dataset: DatasetRecord) -> DatasetInput:
    return DatasetInput(
        Dataset(
            name=_cut(dataset.id, 450),
            digest=dataset.digest[:36],  # MLflow's limit; the tag has it whole
            source_type="orchestrator",
            source=json.dumps({"id": dataset.id}),
            profile=_cut(dataset.model_dump_json(exclude={"id", "digest"}), 60_000),
        ),
        tags=[InputTag("mlflow.data.context", "training")],
    )


def source_tags() -> dict[str, str]:
    """Who runs which code: `mlflow.user`, and `mlflow.source.git.commit` in a git checkout."""
    tags = {"mlflow.source.name": "orchestrator", "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError):  # a container's user need not have a name
        tags["mlflow.user"] = getpass.getuser()
    if commit := git_commit():
        tags["mlflow.source.git.commit"] = commit
    return tags
