"""Timing in alternation: in every round each program runs once, one after the other.

A neighbour on the cores, or a chip that gets hot, then slows all of them alike: compare
programs by their ratio within one run, never by absolute numbers of different runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from rich.table import Table


class Setup(NamedTuple):
    """What the command line asks for."""

    device: str
    threads: int
    rounds: int
    seconds: float  # about as long as one sample shall take
    quick: bool


class Program(NamedTuple):
    """`run(n)` does n units of work; a unit counts for `amount` of what the rate is of."""

    name: str
    run: Callable[[int], None]
    amount: float = 1.0
    baseline: str = ""  # name of the program that this one is compared with


class Series(NamedTuple):
    """All samples of one number."""

    name: str
    unit: str
    samples: list[float]
    baseline: str = ""  # name of the series to which its ratio is told
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


def now(device: str) -> float:
    """Seconds on a clock, when the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure_rates(programs: Sequence[Program], unit: str, setup: Setup) -> list[Series]:
    """What each program does per second, one sample per round.

    The first runs are the warm-up: they compile, fill caches, and tell how many units
    take `setup.seconds`.
    """
    units = {program.name: _units_per_sample(program, setup) for program in programs}
    rates: dict[str, list[float]] = {program.name: [] for program in programs}
    for _ in range(setup.rounds):
        for program in programs:
            seconds = _time(program, units[program.name], setup)
            rates[program.name].append(units[program.name] * program.amount / seconds)
    return [Series(p.name, unit, rates[p.name], p.baseline) for p in programs]


def _units_per_sample(program: Program, setup: Setup) -> int:
    _time(program, 1, setup)
    units, seconds = 1, _time(program, 1, setup)
    while seconds < setup.seconds / 4:
        units *= 2
        seconds = _time(program, units, setup)
    return max(1, round(units * setup.seconds / seconds))


def _time(program: Program, units: int, setup: Setup) -> float:
    begin = now(setup.device)
    program.run(units)
    return now(setup.device) - begin


def table(group: Sequence[Series]) -> Table:
    """Medians, the range over samples, and ratios of medians."""
    shown = Table()
    shown.add_column("", no_wrap=True)
    for column in ("median", "min - max"):
        shown.add_column(column, justify="right", no_wrap=True)
    for column in ("", "ratio", "note"):
        shown.add_column(column, no_wrap=column == "ratio")
    medians = {series.name: series.median for series in group}
    for series in group:
        ratio = ""
        if series.baseline:
            ratio = f"{series.median / medians[series.baseline]:.2f} x {series.baseline}"
        low, high = _number(min(series.samples)), _number(max(series.samples))
        shown.add_row(
            series.name,
            _number(series.median),
            f"{low} - {high}" if len(series.samples) > 1 else "",
            series.unit,
            ratio,
            series.note,
        )
    return shown


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
