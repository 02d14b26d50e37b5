"""What a tracker is, and several as one.

A tracker is told of one sweep. Nothing that it is told of may end the sweep: what cannot be
recorded is told in one warning when it closes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from types import TracebackType
from typing import Protocol, Self, cast

from orchestrator.deployment import Deployment
from orchestrator.tracking.names import TRACKERS
from orchestrator.tracking.records import (
    CellRecord,
    EnsembleRecord,
    EpochRecord,
    Status,
    SweepRecord,
)


class Tracker(Protocol):
    """Records one sweep. It can be pickled at any time, because Ray Tune pickles its callbacks."""

    def start(self) -> None:
        """Begin; anything else that it is told begins as well."""

    def start_cell(self, cell: CellRecord) -> None:
        """A job of a cell begins, or more is known of the cell."""

    def log_epoch(self, cell_key: str, epoch: EpochRecord) -> None:
        """One epoch of a job."""

    def end_cell(self, cell_key: str, status: Status = "FINISHED") -> None:
        """The last job of a cell has ended."""

    def log_score(self, cell: str, score: float, epochs: int) -> None:
        """The score of the cell of that name, after so many epochs."""

    def log_table(self, text: str, file: str) -> None:
        """The sweep's table, as a file of that name."""

    def log_ensemble(self, ensemble: EnsembleRecord) -> None:
        """A trained ensemble; one that is recorded already is left as it is."""

    def run_id(self, cell_key: str) -> str | None:
        """The id of a cell's record, if the tracker gives such, and knows it by now."""

    def close(self, status: Status | None = None) -> None:
        """End the sweep's record and write what waits; bounded in time.

        Args:
            status: None: `FINISHED`, or `FAILED` if a cell did not finish.
        """


class Trackers:
    """Several trackers as one; as a context manager it closes them.

    The sweep is `FAILED` on an exception and `KILLED` on an interrupt.
    """

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def start(self) -> None:
        for tracker in self._trackers:
            tracker.start()

    def start_cell(self, cell: CellRecord) -> None:
        for tracker in self._trackers:
            tracker.start_cell(cell)

    def log_epoch(self, cell_key: str, epoch: EpochRecord) -> None:
        for tracker in self._trackers:
            tracker.log_epoch(cell_key, epoch)

    def end_cell(self, cell_key: str, status: Status = "FINISHED") -> None:
        for tracker in self._trackers:
            tracker.end_cell(cell_key, status)

    def log_score(self, cell: str, score: float, epochs: int) -> None:
        for tracker in self._trackers:
            tracker.log_score(cell, score, epochs)

    def log_table(self, text: str, file: str) -> None:
        for tracker in self._trackers:
            tracker.log_table(text, file)

    def log_ensemble(self, ensemble: EnsembleRecord) -> None:
        for tracker in self._trackers:
            tracker.log_ensemble(ensemble)

    def run_id(self, cell_key: str) -> str | None:
        """The first that a tracker knows."""
        return next(filter(None, (t.run_id(cell_key) for t in self._trackers)), None)

    def close(self, status: Status | None = None) -> None:
        for tracker in self._trackers:
            tracker.close(status)

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


def open_trackers(names: Sequence[str], sweep: SweepRecord, deployment: Deployment) -> Trackers:
    """The trackers of these names, keys of `TRACKERS`."""
    modules = [import_module(TRACKERS[name]) for name in names]
    return Trackers(cast("Tracker", module.open_tracker(sweep, deployment)) for module in modules)
