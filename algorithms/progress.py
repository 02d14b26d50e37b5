"""Progress of long stages: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import NewType, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

LINE_EVERY_S = 30.0

Bar = NewType("Bar", int)


class StageProgress:
    """Named bars that count epochs, each with a note behind it.

    A job's log is no terminal: there, every bar prints a line at its start, at its
    end and at most every 30 seconds in between.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._printed: dict[TaskID, float] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def add(self, name: str, total: int, completed: int = 0) -> Bar:
        task = self._progress.add_task(name, total=total, completed=completed, note="")
        self._print(task, name, completed, total, "starts")
        return Bar(task)

    def update(self, bar: Bar, completed: int, note: str) -> None:
        task = TaskID(bar)
        before = self._task(task).completed
        self._progress.update(task, completed=completed, note=note)
        due = time.monotonic() - self._printed.get(task, 0.0) > LINE_EVERY_S
        if due and completed != before:
            self._line(task, note)

    def finish(self, bar: Bar, completed: int, note: str) -> None:
        """The last update: an early stop counts as complete."""
        task = TaskID(bar)
        self._progress.update(task, completed=completed, total=completed, note=note)
        self._line(task, note)

    def _task(self, task_id: TaskID) -> Task:
        return next(task for task in self._progress.tasks if task.id == task_id)

    def _line(self, task_id: TaskID, note: str) -> None:
        task = self._task(task_id)
        self._print(task_id, task.description, int(task.completed), int(task.total or 0), note)

    def _print(self, task: TaskID, name: str, completed: int, total: int, note: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"{name}: {completed}/{total} epochs {note}", soft_wrap=True)
        self._printed[task] = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
