"""All MLflow writing.

Three kinds of run. Each is looked up by a tag before it is made, so that a rerun, a resumption or
an extension of a sweep continues the runs it began:

    run        experiment                  found by the tag
    sweep      the sweep's name            orchestrator.sweep    = name of the sweep
    trial      same, child of the sweep    orchestrator.cell     = Trial.cell_key
    ensemble   `ensembles`, for all        orchestrator.ensemble = EnsembleSpec.key

Metrics of a trial: `normalized_score` is the mean over its seeds, `seed_0/normalized_score` one
seed's; the step is the epoch. Metrics of a sweep: `score/<name of the trial>`.

A caller only enqueues. One thread writes: per run in order, many entries to a request. What a lost
server cannot take waits, and nothing here ever raises into a sweep.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, takewhile
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from ray.tune import Callback

from algorithms.identity import git_commit

if TYPE_CHECKING:
    from types import TracebackType

    from ray.tune.experiment import Trial

Status = Literal["FINISHED", "FAILED", "KILLED"]

SWEEP, CELL, ENSEMBLE = "orchestrator.sweep", "orchestrator.cell", "orchestrator.ensemble"
ENSEMBLES = "ensembles"
# Without it MLflow's page opens on traces of language models, not on runs.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
# MLflow never changes a parameter. One that an extension changed (`epochs`) keeps its first value
# there, and its newest in the tag `orchestrator.changed.epochs`.
CHANGED = "orchestrator.changed."

GATHER_SECONDS = 0.5  # results come in bursts: wait this long for more before a request
BATCH = 1000  # MLflow's limit for one request
MAX_WAITING = 100_000  # entries kept through an outage: some 1000 epochs of 5 seeds, 50 MB
BREAKER = 3  # failures in a row after which closing tries only once more
STRIKES = 5  # failures of one entry, the server answering, after which the entry is to blame
MAX_BACKOFF_SECONDS = 30.0

log = logging.getLogger(__name__)


class Ref(NamedTuple):
    """Which run: the tag it is found by, and its value. Known before MLflow knows the run."""

    tag: str
    value: str


@dataclass(frozen=True)
class Open:
    """Find or make a run, and set it running."""

    experiment: str
    name: str
    params: Mapping[str, object]
    tags: Mapping[str, str]
    parent: Ref | None = None
    dataset: DatasetInput | None = None
    ensembles: tuple[str, ...] = ()
    once: bool = False  # a run that has finished holds everything: leave it alone


@dataclass(frozen=True)
class Artifact:
    """A text to keep as a file of the run."""

    text: str
    file: str


@dataclass(frozen=True)
class End:
    """Set a run's final status."""

    status: Status


Logged = Metric | Param | RunTag  # what shares a request
Entry = Logged | Open | Artifact | DatasetInput | End


class RefusedError(Exception):
    """An entry is itself at fault: sent again, it would fail again."""


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
        self._writer: _Writer | None = None

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
        if _trains_whole_cell(job):
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
        self._put(self._sweep, *_metrics({f"score/{trial}": score}, epochs))

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
            self._writer = _Writer(self._uri, self._artifact_root)
            self._writer.put(self._sweep, [self._open_sweep])
        if entries:
            self._writer.put(ref, entries)


class _Writer:
    """The thread that writes, and what waits for it."""

    WAKE = Ref("", "")

    def __init__(self, uri: str, artifact_root: str | None) -> None:
        # MLflow's client retries a request 7 times, for minutes, at up to 120 s each: a lost server
        # would hold this thread, and with it the end of the sweep. Retrying is done here.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        # Ending a run prints its address, in the middle of the progress display.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        self.runs: dict[Ref, str] = {}  # their ids, as far as MLflow has told them
        self.open: set[Ref] = set()  # begun and not ended, as its callers see it
        self._uri = uri
        self._artifact_root = artifact_root
        self._experiments: dict[str, str] = {}
        self._inbox: queue.SimpleQueue[tuple[Ref, Sequence[Entry]]] = queue.SimpleQueue()
        self._waiting: dict[Ref, deque[Entry]] = {}
        self._failures = 0  # attempts in a row that found no server
        self._strikes = 0  # attempts in a row that failed although it answers
        self._error: Exception | None = None
        self._put: Counter[type[Entry]] = Counter()  # only callers write this
        self._done: Counter[type[Entry]] = Counter()  # only the thread writes this
        self._written = 0
        self._refused = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    def put(self, ref: Ref, entries: Sequence[Entry]) -> None:
        """Write `entries` of a run when their turn comes."""
        for entry in entries:
            if isinstance(entry, Open):
                self.open.add(ref)
            elif isinstance(entry, End):
                self.open.discard(ref)
        self._put.update(map(type, entries))
        self._inbox.put((ref, entries))

    def close(self, timeout: float) -> str:
        """Write what waits while that moves on; what was lost, in a sentence, or nothing."""
        self._closing.set()
        self._inbox.put((self.WAKE, ()))
        progress = -1
        while self._thread.is_alive() and progress != self._written:
            progress = self._written
            self._thread.join(timeout)
        metrics = self._put[Metric] - self._done[Metric]
        ends = self._put[End] - self._done[End]
        complaints = []
        if metrics or ends:
            complaints.append(
                f"MLflow was away: {metrics} metrics not written, {ends} runs not ended"
            )
        if self._refused:
            complaints.append(f"MLflow refused {self._refused} entries")
        return f"{'; '.join(complaints)} (last error: {self._error})" if complaints else ""

    @cached_property
    def _client(self) -> MlflowClient:
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        return MlflowClient(self._uri)  # creates the tables of a new sqlite store: takes seconds

    def _work(self) -> None:
        while True:
            if not self._waiting:
                self._receive(*self._inbox.get())
            self._closing.wait(GATHER_SECONDS)
            while not self._inbox.empty():
                self._receive(*self._inbox.get())
            self._drop_oldest()
            if self._write_waiting():
                if self._closing.is_set() and self._inbox.empty():
                    return
            elif self._closing.is_set():
                if self._failures >= BREAKER:
                    return
                time.sleep(GATHER_SECONDS)
            else:
                exponent = min(self._failures + self._strikes - 1, 10)
                self._closing.wait(min(2.0**exponent, MAX_BACKOFF_SECONDS))

    def _receive(self, ref: Ref, entries: Iterable[Entry]) -> None:
        if entries:
            self._waiting.setdefault(ref, deque()).extend(entries)

    def _drop_oldest(self) -> None:
        """Keep to the bound by giving up the oldest metrics of the run with the most entries."""
        for _ in range(sum(map(len, self._waiting.values())) - MAX_WAITING):
            longest = max(self._waiting.values(), key=len)
            oldest = next((i for i, entry in enumerate(longest) if isinstance(entry, Metric)), None)
            if oldest is None:
                return
            del longest[oldest]

    def _write_waiting(self) -> bool:
        """Write everything; whether that came to an end. Else the rest waits, in order."""
        for ref in list(self._waiting):
            entries = self._waiting[ref]
            size = BATCH
            while entries:
                batch = _next_batch(entries, size)
                try:
                    follow_up = self._write(ref, batch)
                except Exception as error:  # noqa: BLE001 - a sweep outlives whatever fails here
                    self._error = error
                    if not self._to_blame(error):
                        return False
                    if len(batch) > 1:  # halve until the faulty entry stands alone
                        size = len(batch) // 2
                        continue
                    self._refused += 1
                    follow_up = []
                size = min(2 * size, BATCH)
                self._failures = self._strikes = 0
                self._done.update(map(type, batch))
                self._written += len(batch)
                for _ in batch:
                    entries.popleft()
                entries.extendleft(reversed(follow_up))
            del self._waiting[ref]
        return True

    def _to_blame(self, error: Exception) -> bool:
        """Whether an entry failed by its own fault, and not because the server is away."""
        if isinstance(error, RefusedError):
            return True
        try:
            self._client.search_experiments(max_results=1)
        except Exception:  # noqa: BLE001 - whatever it is, the server does not serve
            self._failures += 1
            return False
        self._strikes += 1
        # A name that exists already was made by somebody else a moment ago: it is found next time.
        invalid = (
            isinstance(error, MlflowException)
            and error.get_http_status_code() in (400, 404)
            and error.error_code != "RESOURCE_ALREADY_EXISTS"
        )
        return invalid or self._strikes >= STRIKES

    def _write(self, ref: Ref, batch: Sequence[Entry]) -> Sequence[Entry]:
        """Write entries that share a request; returns what is to be written next on this run."""
        first = batch[0]
        if isinstance(first, Open):
            return self._open(ref, first)
        if ref not in self.runs:
            raise RefusedError(f"the run {ref.value} could not be made")
        run = self.runs[ref]
        if isinstance(first, Artifact):
            self._client.log_text(run, first.text, first.file)
        elif isinstance(first, DatasetInput):
            self._client.log_inputs(run, [first])
        elif isinstance(first, End):
            self._client.set_terminated(run, first.status)
        else:
            self._client.log_batch(
                run,
                metrics=[entry for entry in batch if isinstance(entry, Metric)],
                params=[entry for entry in batch if isinstance(entry, Param)],
                tags=[entry for entry in batch if isinstance(entry, RunTag)],
            )
        return ()

    def _open(self, ref: Ref, spec: Open) -> Sequence[Entry]:
        run = self._find(ref, spec.experiment)
        if run is None:
            identity = {ref.tag: ref.value}
            if spec.parent in self.runs:
                identity["mlflow.parentRunId"] = self.runs[spec.parent]
            run = self._client.create_run(
                self._experiment(spec.experiment), tags=identity, run_name=spec.name
            )
        elif run.info.status == "FINISHED" and spec.once:
            self.runs[ref] = run.info.run_id
            entries = self._waiting[ref]
            while len(entries) > 1:  # all that follows is recorded already
                self._done[type(entries.pop())] += 1
            return ()
        elif run.info.status != "RUNNING":
            self._client.update_run(run.info.run_id, "RUNNING")
        self.runs[ref] = run.info.run_id
        return _missing(run, spec, self._ensemble_runs(spec.ensembles))

    def _find(self, ref: Ref, experiment: str) -> Run | None:
        quote = '"' if "'" in ref.value else "'"
        found = self._client.search_runs(
            [self._experiment(experiment)],
            filter_string=f"tags.`{ref.tag}` = {quote}{ref.value}{quote}",
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        return found[0] if found else None

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                location = f"{self._artifact_root}/{name}" if self._artifact_root else None
                self._experiments[name] = self._client.create_experiment(
                    name, location, tags=EXPERIMENT_TAGS
                )
            else:
                if found.lifecycle_stage == "deleted":  # its name stays taken: bring it back
                    self._client.restore_experiment(found.experiment_id)
                self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def _ensemble_runs(self, keys: Iterable[str]) -> str:
        """Ids of the ensembles' runs, in a tag's form; an unrecorded ensemble is left out."""
        for ref in (Ref(ENSEMBLE, key) for key in keys):
            if ref not in self.runs and (run := self._find(ref, ENSEMBLES)):
                self.runs[ref] = run.info.run_id
        known = (self.runs.get(Ref(ENSEMBLE, key)) for key in keys)
        return ",".join(filter(None, known))


def _next_batch(entries: deque[Entry], size: int) -> list[Entry]:
    """The entries at the head that share a request: up to `size` logged values, or one other."""
    logged = takewhile(lambda entry: isinstance(entry, Logged), islice(entries, size))
    return list(logged) or [entries[0]]


def _missing(run: Run, spec: Open, ensemble_runs: str) -> list[Entry]:
    """What `spec` says of a run and MLflow does not know yet."""
    known = run.data.params
    params = {name: str(value) for name, value in spec.params.items()}
    tags = dict(spec.tags)
    if ensemble_runs:
        tags["orchestrator.ensemble_runs"] = ensemble_runs
    for name, value in params.items():
        if known.get(name, value) != value:
            tags[CHANGED + name] = value
    entries: list[Entry] = [Param(key, value) for key, value in params.items() if key not in known]
    entries += [RunTag(key, tag) for key, tag in tags.items() if run.data.tags.get(key) != tag]
    if spec.dataset and not (run.inputs and run.inputs.dataset_inputs):
        entries.append(spec.dataset)
    return entries


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


def _trains_whole_cell(job: Mapping[str, Any]) -> bool:
    return set(job["seeds"]) == set(job.get("cell_seeds", job["seeds"]))


def source_tags() -> dict[str, str]:
    """Who runs which code: `mlflow.user`, and `mlflow.source.git.commit` in a git checkout."""
    tags = {"mlflow.source.name": "orchestrator", "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError):  # a container's user need not have a name
        tags["mlflow.user"] = getpass.getuser()
    if commit := git_commit():
        tags["mlflow.source.git.commit"] = commit
    return tags


def job_of(trial: Trial) -> Mapping[str, Any] | None:
    """What `Tracker.start_trial` needs, from `job["record"]` in a Tune trial's config.

    The config is a dict or an AlgorithmConfig. None for a trial that is not of this project.
    """
    config: Any = trial.config
    job = config.get("job") if isinstance(config, Mapping) else getattr(config, "job", None)
    record = job.get("record") if isinstance(job, Mapping) else None
    return record if isinstance(record, Mapping) else None


class MLflowCallback(Callback):
    """Tells a tracker what Tune's trials do. It holds nothing that cannot be pickled.

    Several Tune trials may work at one cell, each at some of its seeds; they share the cell's run,
    which ends with the last of them.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._active: dict[str, set[str]] = {}  # cell key -> ids of trials at work
        self._failed: set[str] = set()  # cell keys

    def setup(self, *args: Any, **info: Any) -> None:
        self._tracker.start()

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if job := job_of(trial):
            self._active.setdefault(job["cell_key"], set()).add(trial.trial_id)
            self._tracker.start_trial(job)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        if job := job_of(trial):
            self._tracker.log_result(job["cell_key"], result, means=_trains_whole_cell(job))

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if job := job_of(trial):
            last = trial.last_result or {}
            score = last.get("mean", {}).get("score")
            if score is not None and _trains_whole_cell(job):
                self._tracker.log_score(job["name"], score, int(last["training_iteration"]))
            self._end(trial, job)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if job := job_of(trial):
            self._failed.add(job["cell_key"])
            self._end(trial, job)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Trials still at work here were interrupted."""
        for cell_key in self._active:
            self._tracker.end_trial(cell_key, "KILLED")
        self._active.clear()

    def _end(self, trial: Trial, job: Mapping[str, Any]) -> None:
        cell_key = job["cell_key"]
        active = self._active.get(cell_key, set())
        active.discard(trial.trial_id)
        if not active:
            self._active.pop(cell_key, None)
            self._tracker.end_trial(cell_key, "FAILED" if cell_key in self._failed else "FINISHED")
