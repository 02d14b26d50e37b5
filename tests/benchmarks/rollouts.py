"""Model rollouts from 50,000 states, in rows stepped per second; S = 1.

The plain program runs all seven members in float32; its name says beside which one it ran.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import Program, Series, Setup, measure_rates
from hopper import ROLLOUT_ROWS
from ours import change, offline_training, runs_by_dtype
from plain import rollout_steps

from algorithms.stack.compilation import Call, call_eagerly
from algorithms.training.loop import OfflineTraining

LENGTH = 5
PENALTIES = ("max_std", "none")  # of all seven members, and of one


def measure(setup: Setup) -> list[Series]:
    _check_that_rows_live(setup.device)
    series = []
    for penalty in PENALTIES:
        for dtype, ways in runs_by_dtype(setup.device).items():
            # As in a trial, nothing else is compiled: torch searches what is at every call.
            torch.compiler.reset()
            programs = _programs(penalty, dtype, ways, setup)
            series += measure_rates(programs, "transitions/s", setup)
    return series


def _programs(penalty: str, dtype: str, ways: dict[str, Call], setup: Setup) -> list[Program]:
    baseline = f"plain, {penalty} {dtype}"
    plain = _in_rollouts(rollout_steps(setup.device))
    programs = [Program(baseline, plain, amount=ROLLOUT_ROWS)]
    for name, run in ways.items():
        training = offline_training(
            "MOPO",
            1,
            run,
            setup.device,
            penalty=penalty,
            rollout_batch_size=ROLLOUT_ROWS,
            rollout_length=LENGTH,
            matmul_dtype=dtype,
        )
        programs.append(
            Program(
                f"{penalty} {name}",
                _in_rollouts(_rollout(training)),
                amount=ROLLOUT_ROWS,
                baseline=baseline,
            )
        )
    return programs


def _in_rollouts(roll_out: Callable[[int], None]) -> Callable[[int], None]:
    """Runs a number of steps, `LENGTH` in each rollout."""

    def run(steps: int) -> None:
        for begin in range(0, steps, LENGTH):
            roll_out(min(LENGTH, steps - begin))

    return run


def _rollout(training: OfflineTraining) -> Callable[[int], None]:
    def roll_out(length: int) -> None:
        change(training, rollout_length=length)
        training._extend_buffer()

    return roll_out


def _check_that_rows_live(device: str) -> None:
    """Rows whose rollout has ended are stepped on, but would be no work to plain code."""
    training = offline_training(
        "MOPO", 1, call_eagerly, device, rollout_batch_size=1000, rollout_length=LENGTH
    )
    ended = float(training._extend_buffer().terminated_S.max())
    assert ended < 0.05, f"{ended:.0%} of the rollouts ended early"
