"""What a sweep tells MLflow.

Three kinds of run. Each is looked up by a tag before it is made, so that a rerun, a resumption or
an extension of a sweep continues the runs it began:

    run        experiment                  found by the tag
    sweep      the sweep's name            orchestrator.sweep    = name of the sweep
    trial      same, child of the sweep    orchestrator.cell     = Trial.cell_key
    ensemble   `ensembles`, for all        orchestrator.ensemble = EnsembleSpec.key

Metrics of a trial: `normalized_score` is the mean over its seeds, `seed_0/normalized_score` one
seed's, `run_score` the mean of the last ten evaluations; the step is the epoch. Metrics of a sweep:
`run_score/<name of the trial>`.

All methods only enqueue; `writer.py` writes.
"""

from __future__ import annotations

import getpass
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

from algorithms.identity import git_commit
from orchestrator.tracking.writer import (
    ENSEMBLE,
    ENSEMBLES,
    Artifact,
    End,
    Entry,
    File,
    Open,
    Ref,
    Status,
    Writer,
)

if TYPE_CHECKING:
    from types import TracebackType

SWEEP, CELL = "orchestrator.sweep", "orchestrator.cell"

log = logging.getLogger(__name__)


class Tracker:
    """Records one sweep in MLflow. All methods return at once, but `close`, which is bounded.

    It can be pickled at any time: a copy has the same settings, and a thread of its own as soon as
    it writes. As a context manager it closes itself, the sweep `FAILED` on an exception and
    `KILLED` on an interrupt.

    Args:
        uri: where MLflow is, `http://...` or `sqlite:///...`.
        sweep: the sweep's name, which is also the experiment's.
        question: what the sweep asks; the run's description.
        params: the sweep's settings.
        tags: on every run, besides `source_tags()`.
        artifact_root: where files of new experiments go. None: the server decides.
    """

    def __init__(
        self,
        uri: str,
        sweep: str,
        *,
        question: str = "",
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
        artifact_root: str | None = None,
    ) -> None:
        self._uri = uri
        self._artifact_root = artifact_root
        self._sweep = Ref(SWEEP, sweep)
        self._tags = {**source_tags(), **(tags or {})}
        self._open_sweep = Open(
            experiment=sweep,
            name=sweep,
            params=params or {},
            tags={**self._tags, "mlflow.note.content": question},
        )
        self._complete = True
        self._writer: Writer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_writer": None}  # threads cannot be pickled

    def start(self) -> None:
        """Open the sweep's run. Anything else written opens it as well."""
        self._put(self._sweep)

    def start_trial(self, job: Mapping[str, Any]) -> None:
        """Open the run of a trial.

        Args:
            job: `cell_key`; `run_name`; `params`, the resolved settings; `dataset` with `id`,
                `digest` and `env_id`; `seeds`, those that this trial trains; optionally
                `cell_seeds`, all of the cell's (by default the same), `ensemble_keys`, `tags`.
        """
        dataset = job["dataset"]
        keys = tuple(job.get("ensemble_keys", ()))
        tags = {
            **self._tags,
            **_dataset_tags(dataset),
            "orchestrator.ensembles": ",".join(keys),
            **job.get("tags", {}),
        }
        if trains_whole_cell(job):
            tags["orchestrator.mean_over_seeds"] = ",".join(map(str, job["seeds"]))
        self._put(
            self._trial(job["cell_key"]),
            Open(
                experiment=self._sweep.value,
                name=job["run_name"],
                params=job["params"],
                tags=tags,
                parent=self._sweep,
                dataset=_dataset_input(dataset),
                ensembles=keys,
            ),
        )

    def log_result(self, cell_key: str, result: Mapping[str, Any], *, means: bool = True) -> None:
        """Log one epoch of a trial.

        Args:
            cell_key: the trial's.
            result: `training_iteration` (the step), `mean` {metric: value}, `seed` {"0": {metric:
                value}}, and `minutes`.
            means: whether `mean` is over all seeds of the cell. False for a trial that adds some
                seeds to others trained before: a curve would change its meaning half way.
        """
        values: dict[str, Any] = {}
        if means:
            values |= result.get("mean", {})
            values["minutes"] = result.get("minutes")
        for seed, metrics in result.get("seed", {}).items():
            values |= {f"seed_{seed}/{name}": value for name, value in metrics.items()}
        self._put(self._trial(cell_key), *_metrics(values, int(result["training_iteration"])))

    def end_trial(self, cell_key: str, status: Status = "FINISHED") -> None:
        """End the run of a trial."""
        self._complete = self._complete and status == "FINISHED"
        self._put(self._trial(cell_key), End(status))

    def log_score(self, trial: str, score: float, epochs: int) -> None:
        """A trial's score on the run of the sweep, so that one page compares all trials."""
        self._put(self._sweep, *_metrics({f"run_score/{trial}": score}, epochs))

    def log_table(self, text: str, file: str = "table.md") -> None:
        """Keep the sweep's table as a file of its run."""
        self._put(self._sweep, Artifact(text, file))

    def log_ensemble(
        self,
        key: str,
        *,
        name: str,
        params: Mapping[str, object],
        dataset: Mapping[str, str],
        seed: int,
        path: str,
        metrics: Mapping[str, float],
        history: Sequence[Mapping[str, float]] = (),
        files: Sequence[Path] = (),
    ) -> None:
        """Record a trained ensemble; one that is recorded already is left as it is.

        Args:
            key: EnsembleSpec.key.
            name: the run's name.
            params: the EnsembleSettings.
            dataset: `id`, `digest` and `env_id`.
            seed: the ensemble's.
            path: the folder where it is published.
            metrics: of the published ensemble (holdout mse, calibration).
            history: metrics of each epoch, from the first.
            files: kept with the run under their names; read when they are written, not now.
        """
        tags = {**self._tags, **_dataset_tags(dataset), "orchestrator.path": path}
        curves = [
            metric for epoch, values in enumerate(history, 1) for metric in _metrics(values, epoch)
        ]
        self._put(
            Ref(ENSEMBLE, key),
            Open(
                experiment=ENSEMBLES,
                name=name,
                params={**params, "seed": seed, "dataset": dataset["id"]},
                tags=tags,
                dataset=_dataset_input(dataset),
                once=True,
            ),
            *curves,
            *_metrics(metrics, len(history)),
            *map(File, files),
            End("FINISHED"),
        )

    def run_id(self, cell_key: str) -> str | None:
        """The id of a trial's run; None while MLflow has not told it."""
        return self._writer.runs.get(self._trial(cell_key)) if self._writer else None

    def close(self, status: Status | None = None, timeout: float = 8.0) -> None:
        """End the sweep's run, and write what waits.

        The run is `FINISHED`, or `FAILED` if one of its trials did not finish, or `status`.

        A lost server is given up after two seconds, one that does not answer after `timeout`.
        Trials that have not ended are `KILLED`. What could not be written is told in one warning.
        """
        if self._writer is None:
            return
        for ref in self._writer.open - {self._sweep}:
            self.end_trial(ref.value, "KILLED")
        self._put(self._sweep, End(status or ("FINISHED" if self._complete else "FAILED")))
        complaint = self._writer.close(timeout)
        self._writer = None
        if complaint:
            log.warning(complaint)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.close("FAILED" if issubclass(kind, Exception) else "KILLED")

    @staticmethod
    def _trial(cell_key: str) -> Ref:
        return Ref(CELL, cell_key)

    def _put(self, ref: Ref, *entries: Entry) -> None:
        if self._writer is None:
            self._writer = Writer(self._uri, self._artifact_root)
            self._writer.put(self._sweep, [self._open_sweep])
        if entries:
            self._writer.put(ref, entries)


def _metrics(values: Mapping[str, Any], step: int) -> list[Metric]:
    """Numbers become metrics of now, NaN and infinities included; anything else is left out."""
    now = time.time_ns() // 1_000_000
    return [
        Metric(key, float(value), now, step)
        for key, value in values.items()
        if isinstance(value, Real)
    ]


def _dataset_tags(dataset: Mapping[str, str]) -> dict[str, str]:
    return {"dataset": dataset["id"], "dataset_digest": dataset["digest"]}


def _dataset_input(dataset: Mapping[str, str]) -> DatasetInput:
    return DatasetInput(
        Dataset(
            name=dataset["id"],
            digest=dataset["digest"][:36],  # MLflow's limit; the tag has it whole
            source_type="orchestrator",
            source=json.dumps({"id": dataset["id"]}),
            profile=json.dumps({"env_id": dataset["env_id"]}),
        ),
        tags=[InputTag("mlflow.data.context", "training")],
    )


def trains_whole_cell(job: Mapping[str, Any]) -> bool:
    """Whether a job trains every seed of its cell, so that its means are the cell's."""
    return set(job["seeds"]) == set(job.get("cell_seeds", job["seeds"]))


def source_tags() -> dict[str, str]:
    """Who runs which code: `mlflow.user`, and `mlflow.source.git.commit` in a git checkout."""
    tags = {"mlflow.source.name": "orchestrator", "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError):  # a container's user need not have a name
        tags["mlflow.user"] = getpass.getuser()
    if commit := git_commit():
        tags["mlflow.source.git.commit"] = commit
    return tags
