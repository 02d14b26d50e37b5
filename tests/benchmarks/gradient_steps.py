"""Gradient steps of all seeds together, with the draws of their batches and noise.

The plain programs train one seed in float32; their names say beside which ones they ran.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import Program, Series, Setup, measure_rates
from ours import (
    ALGORITHMS,
    change,
    draw_in_blocks,
    fill_buffer,
    offline_training,
    runs_by_dtype,
)
from plain import PlainCOMBO, PlainMOBILE, PlainSAC

from algorithms.stack.compilation import Call
from algorithms.training.loop import OfflineTraining

SEEDS = (1, 5)
PLAIN = {
    "MOPO": ("plain SAC", PlainSAC),
    "COMBO": ("plain COMBO", PlainCOMBO),
    "MOBILE": ("plain MOBILE", PlainMOBILE),
}


def measure(setup: Setup) -> list[Series]:
    series = []
    for algorithm in ALGORITHMS:
        for num_seeds in SEEDS:
            for dtype, ways in runs_by_dtype(setup.device).items():
                # As in a trial, nothing else is compiled: torch searches what is at every call.
                torch.compiler.reset()
                programs = _programs(algorithm, num_seeds, dtype, ways, setup)
                series += measure_rates(programs, "steps/s", setup)
    return series


def _programs(
    algorithm: str, num_seeds: int, dtype: str, ways: dict[str, Call], setup: Setup
) -> list[Program]:
    name, plain = PLAIN[algorithm]
    baseline = f"{name}, S={num_seeds} {dtype}"
    programs = [Program(baseline, plain(setup.device).steps)]
    for name, run in ways.items():
        training = offline_training(
            algorithm,
            num_seeds,
            run,
            setup.device,
            rollout_batch_size=10_000,
            rollout_length=1,
            matmul_dtype=dtype,
        )
        fill_buffer(training)
        draw_in_blocks(training)
        programs.append(
            Program(
                f"{algorithm} S={num_seeds} {name}",
                _steps(training),
                amount=num_seeds,
                baseline=baseline,
            )
        )
    return programs


def _steps(training: OfflineTraining) -> Callable[[int], None]:
    def run(number: int) -> None:
        change(training, gradient_steps_per_epoch=number)
        training._gradient_steps()

    return run
