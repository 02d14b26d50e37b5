"""Training of seven dynamics models, in rows per second that each of them learns from.

The seconds of an epoch follow from the rate over part of an epoch; the evaluation on the
holdout (1,000 rows, forward only) is not in them.
"""

from __future__ import annotations

from collections.abc import Callable

from harness import Program, Series, Setup, measure_rates
from hopper import DATA_ROWS, transitions
from ours import runs
from plain import BATCH, ensemble_batches

from algorithms.dynamics.training import EnsembleTraining
from algorithms.settings import EnsembleSettings
from algorithms.stack.compilation import Call

EPOCH_ROWS = 399_000  # 400,000 without the holdout


def measure(setup: Setup) -> list[Series]:
    programs = [Program("plain", ensemble_batches(setup.device), amount=BATCH)]
    programs += [
        Program(name, _batches(run, setup.device), amount=BATCH, baseline="plain")
        for name, run in runs(setup.device).items()
    ]
    rates = measure_rates(programs, "rows/s", setup)
    return rates + [
        Series(
            f"{series.name}, epoch",
            "s",
            [EPOCH_ROWS / rate for rate in series.samples],
            note=f"extrapolated to {EPOCH_ROWS:,} rows",
        )
        for series in rates
    ]


def _batches(run: Call, device: str) -> Callable[[int], None]:
    training = EnsembleTraining(transitions(DATA_ROWS), EnsembleSettings(), [0], device, run)
    rows_SEN = training.rows_SEN

    def run_batches(batches: int) -> None:
        training.rows_SEN = rows_SEN[..., : batches * BATCH]
        training._pass()

    return run_batches
