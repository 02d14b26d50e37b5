"""The thread that writes to MLflow: in order, many entries to a request, through outages.

A caller only enqueues. What a lost server cannot take waits, and nothing here ever raises into a
sweep.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, takewhile
from pathlib import Path
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.entities import DatasetInput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from orchestrator.tracking.records import Status

ENSEMBLE = "orchestrator.ensemble"  # the tag by which an ensemble's run is found
ENSEMBLES = "ensembles"
# MLflow never changes a parameter. One that an extension changed (`epochs`) keeps its first value
# there, and its newest in the tag `orchestrator.changed.epochs`.
CHANGED = "orchestrator.changed."

GATHER_SECONDS = 0.5  # results come in bursts: wait this long for more before a request
BATCH = 1000  # MLflow's limit for one request
MAX_WAITING = 100_000  # entries kept through an outage: some 1000 epochs of 5 seeds, 50 MB
BREAKER = 3  # failures in a row after which closing tries only once more
STRIKES = 5  # failures of one entry, the server answering, after which the entry is to blame
MAX_BACKOFF_SECONDS = 30.0


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
class File:
    """A file to keep with the run as it is, under its own name. Read when its turn comes."""

    path: Path


@dataclass(frozen=True)
class End:
    """Set a run's final status."""

    status: Status


Logged = Metric | Param | RunTag  # what shares a request
Entry = Logged | Open | Artifact | File | DatasetInput | End


class RefusedError(Exception):
    """An entry is itself at fault: sent again, it would fail again."""


class Writer:
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
        self._struck_out = 0  # entries in a row given up after strikes: is it they, or a full disk?
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
        # It tells of each failed statement in a page of its own; here the last one is told once.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
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
                if max(self._failures, self._struck_out) >= BREAKER:
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
                    self._struck_out += self._strikes >= STRIKES
                    follow_up = []
                else:
                    self._struck_out = 0
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
        elif isinstance(first, File):
            if not first.path.is_file():
                raise RefusedError(f"{first.path} is gone")
            self._client.log_artifact(run, str(first.path))
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
                self._experiments[name] = self._client.create_experiment(name, location)
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
