"""What follows Ray Tune's trials on the driver: results in the storage, bars on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from ray import tune

from algorithms.identity import code_hash
from orchestrator.progress import Bar, StageProgress
from orchestrator.results import ResultStore, SeedResult
from orchestrator.tracking import Tracker

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial


class ResultCallback(tune.Callback):
    """Points the result of each seed at every checkpoint of its trial."""

    def __init__(self, store: ResultStore, tracker: Tracker) -> None:
        self._store, self._tracker = store, tracker

    def on_checkpoint(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        checkpoint: tune.Checkpoint,
        **info: Any,
    ) -> None:
        # Tune saves between two results: the last one is of the epoch that was saved.
        result = trial.last_result
        record = trial.config["job"]["record"]
        for position, seed in enumerate(record["seeds"]):
            metrics = result["seed"][str(seed)]
            diverged = _has_diverged(metrics)
            score = metrics.get("run_score")
            if diverged or (score is not None and not math.isfinite(score)):
                score = None
            finished = {} if score is None or not result["done"] else {result["epoch"]: score}
            self._store.put(
                SeedResult(
                    key=record["result_keys"][position],
                    trial=record["name"],
                    seed=seed,
                    epochs=result["epoch"],
                    run_score=score,
                    finished_scores=finished,
                    behaviour_score=result["behaviour_score"],
                    minutes=result["minutes"],
                    checkpoint=checkpoint.path,
                    index=position,
                    ensemble_key=record["ensemble_of_seed"][position],
                    code=code_hash(),
                    mlflow_run_id=self._tracker.run_id(record["cell_key"]),
                    status=_status(diverged=diverged, done=result["done"]),
                )
            )


def _has_diverged(metrics: Mapping[str, float]) -> bool:
    # Not by the other metrics: what a model says of returns may be infinite for a sound seed.
    return metrics["diverged"] == 1.0


def _status(*, diverged: bool, done: bool) -> Literal["running", "finished", "diverged"]:
    if diverged:
        return "diverged"
    return "finished" if done else "running"


def divergence_tags(seeds: Iterable[int]) -> dict[str, str]:
    """The tags by which a run in MLflow tells its diverged seeds."""
    return {f"diverged.seed_{seed}": "true" for seed in seeds}


class DivergenceCallback(tune.Callback):
    """Tags the runs of cells whose seeds diverge."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._told: dict[str, int] = {}  # trial id -> number of diverged seeds

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        diverged = [int(seed) for seed, values in result["seed"].items() if _has_diverged(values)]
        if len(diverged) > self._told.get(trial.trial_id, 0):
            self._told[trial.trial_id] = len(diverged)
            record = trial.config["job"]["record"]
            tags = {**record["tags"], **divergence_tags(diverged)}
            self._tracker.start_trial({**record, "tags": tags})  # it runs: this adds the tags


class ProgressCallback(tune.Callback):
    """Shows every job's epochs and its score so far."""

    def __init__(self, progress: StageProgress) -> None:
        self._progress: StageProgress | None = progress
        self._bars: dict[str, Bar] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_progress": None, "_bars": {}}  # Tune pickles callbacks; a terminal cannot be

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        if self._progress is None or trial.trial_id in self._bars:
            return
        job = trial.config["job"]
        record = job["record"]
        name = f"{record['name']} seeds {','.join(map(str, record['seeds']))}"
        epochs = job["settings"]["epochs"]
        self._bars[trial.trial_id] = self._progress.add(name, epochs, record["epochs_done"])

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        if self._progress is None:
            return
        score = result["mean"].get("run_score")
        note = "" if score is None or math.isnan(score) else f"score {score:.1f}"
        show = self._progress.finish if result["done"] else self._progress.update
        show(self._bars[trial.trial_id], result["epoch"], note)
