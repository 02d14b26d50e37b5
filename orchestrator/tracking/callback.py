"""From Ray Tune's trials to a tracker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from orchestrator.tracking.tracker import Tracker, trains_whole_cell

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


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
            self._tracker.log_result(job["cell_key"], result, means=trains_whole_cell(job))

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if job := job_of(trial):
            last = trial.last_result or {}
            score = last.get("mean", {}).get("run_score")
            if score is not None and trains_whole_cell(job):
                self._tracker.log_score(job["name"], score, int(last["training_iteration"]))
            self._end(trial, job)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if job := job_of(trial):
            if trial.trial_id not in self._active.get(job["cell_key"], ()):
                self._tracker.start_trial(job)  # it failed before it had started
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
