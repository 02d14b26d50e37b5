"""What follows Ray Tune's trials on the driver: records, results, bars on the terminal.

A trial of Tune's is a job of ours: the seeds of one cell that train together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from ray import tune

from algorithms.identity import code_hash
from algorithms.progress import Bar, StageProgress
from orchestrator.results import ResultStore, SeedResult
from orchestrator.tracking.protocol import Tracker
from orchestrator.tracking.records import EpochRecord, JobRecord

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


def record_of(trial: Trial) -> JobRecord:
    """What is known of a trial's job."""
    return JobRecord.model_validate(trial.config["job"]["record"])


class TrackingCallback(tune.Callback):
    """Tells a tracker what the jobs do. It holds nothing that cannot be pickled.

    Several jobs may work at one cell, each at some of its seeds; they share the cell's record,
    which ends with the last of them.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._active: dict[str, set[str]] = {}  # cell key -> ids of trials at work
        self._failed: set[str] = set()  # cell keys
        self._diverged: dict[str, int] = {}  # trial id -> number of its diverged seeds

    def setup(self, *args: Any, **info: Any) -> None:
        self._tracker.start()

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        cell = record_of(trial).cell
        self._active.setdefault(cell.key, set()).add(trial.trial_id)
        self._tracker.start_cell(cell)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        cell = record_of(trial).cell
        epoch = EpochRecord(
            epoch=int(result["training_iteration"]),
            seeds={int(seed): metrics for seed, metrics in result["seed"].items()},
            mean=result["mean"] if cell.is_whole else {},
            minutes=result.get("minutes"),
        )
        self._tracker.log_epoch(cell.key, epoch)
        diverged = tuple(seed for seed, metrics in epoch.seeds.items() if _has_diverged(metrics))
        if len(diverged) > self._diverged.get(trial.trial_id, 0):
            self._diverged[trial.trial_id] = len(diverged)
            self._tracker.start_cell(cell.model_copy(update={"diverged": diverged}))

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        cell, last = record_of(trial).cell, trial.last_result or {}
        score = last.get("mean", {}).get("run_score")
        if score is not None and cell.is_whole:
            self._tracker.log_score(cell.name, score, int(last["training_iteration"]))
        self._end(trial)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        cell = record_of(trial).cell
        if trial.trial_id not in self._active.get(cell.key, ()):
            self._tracker.start_cell(cell)  # it failed before it had started
        self._failed.add(cell.key)
        self._end(trial)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Trials still at work here were interrupted."""
        for cell_key in self._active:
            self._tracker.end_cell(cell_key, "KILLED")
        self._active.clear()

    def _end(self, trial: Trial) -> None:
        key = record_of(trial).cell.key
        active = self._active.get(key, set())
        active.discard(trial.trial_id)
        if not active:
            self._active.pop(key, None)
            self._tracker.end_cell(key, "FAILED" if key in self._failed else "FINISHED")


class ResultCallback(tune.Callback):
    """Points the result of each seed at every checkpoint of its job, and keeps its curve."""

    def __init__(self, store: ResultStore, tracker: Tracker) -> None:
        self._store, self._tracker = store, tracker
        self._rows: dict[str, list[dict[str, float]]] = defaultdict(list)  # by result key

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        record = record_of(trial)
        for seed, key in zip(record.cell.seeds, record.result_keys, strict=True):
            self._rows[key].append({"epoch": result["epoch"], **result["seed"][str(seed)]})

    def on_checkpoint(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        checkpoint: tune.Checkpoint,
        **info: Any,
    ) -> None:
        # Tune saves between two results: the last one is of the epoch that was saved.
        result, record = trial.last_result, record_of(trial)
        for position, seed in enumerate(record.cell.seeds):
            key = record.result_keys[position]
            metrics = result["seed"][str(seed)]
            diverged = _has_diverged(metrics)
            score = metrics.get("run_score")
            if diverged or (score is not None and not math.isfinite(score)):
                score = None
            finished = {} if score is None or not result["done"] else {result["epoch"]: score}
            seed_result = SeedResult(
                key=key,
                cell=record.cell.name,
                other_names=record.other_names,
                action_bounds=record.action_bounds,
                seed=seed,
                epochs=result["epoch"],
                run_score=score,
                finished_scores=finished,
                dataset=record.cell.dataset,
                behaviour_score=result["behaviour_score"],
                minutes=result["minutes"],
                checkpoint=checkpoint.path,
                position=position,
                ensemble_key=record.ensemble_of_seed[position],
                code=code_hash(),
                mlflow_run_id=self._tracker.run_id(record.cell.key),
                status=_status(diverged=diverged, done=result["done"]),
            )
            if self._store.accepts(seed_result):
                # Before the result: what a curve has beyond it is replaced when it is continued.
                self._keep_curve(key)
                self._store.put(seed_result)

    def _keep_curve(self, key: str) -> None:
        """The epochs before this run, as far as it continues them, and those since."""
        if not self._rows[key]:
            return
        curve = pd.DataFrame(self._rows[key]).drop_duplicates("epoch", keep="last")
        before = self._store.get_curve(key)
        if len(before):
            curve = pd.concat([before[before["epoch"] < curve["epoch"].min()], curve])
        self._store.put_curve(key, curve.sort_values("epoch"))


def _has_diverged(metrics: Mapping[str, float]) -> bool:
    # Not by the other metrics: what a model says of returns may be infinite for a sound seed.
    return metrics["diverged"] == 1.0


def _status(*, diverged: bool, done: bool) -> Literal["running", "finished", "diverged"]:
    if diverged:
        return "diverged"
    return "finished" if done else "running"


class ProgressCallback(tune.Callback):
    """Shows every job's epochs and its score so far."""

    def __init__(self, progress: StageProgress) -> None:
        self._progress: StageProgress | None = progress
        self._bars: dict[str, Bar] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_progress": None, "_bars": {}}  # Tune pickles callbacks; a terminal cannot be

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if self._progress is None or trial.trial_id in self._bars:
            return
        record = record_of(trial)
        name = f"{record.cell.name} seeds {','.join(map(str, record.cell.seeds))}"
        self._bars[trial.trial_id] = self._progress.add(name, record.epochs, record.epochs_done)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        if self._progress is None:
            return
        score = result["mean"].get("run_score")
        note = "" if score is None or math.isnan(score) else f"score {score:.1f}"
        show = self._progress.finish if result["done"] else self._progress.update
        show(self._bars[trial.trial_id], result["epoch"], note)
