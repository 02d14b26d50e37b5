"""Gradient steps of all seeds together, with the draws of their batches and noise."""

from __future__ import annotations

from collections.abc import Callable

from harness import Program, Series, Setup, measure_rates
from ours import ALGORITHMS, change, draw_in_blocks, fill_buffer, offline_training, runs
from plain import PlainCOMBO, PlainSAC

from algorithms.offline import OfflineTraining

SEEDS = (1, 5)


def measure(setup: Setup) -> list[Series]:
    programs = [
        Program("plain SAC", PlainSAC(setup.device).steps),
        Program("plain COMBO", PlainCOMBO(setup.device).steps),
    ]
    baselines = {"MOPO": "plain SAC", "COMBO": "plain COMBO"}
    for algorithm in ALGORITHMS:
        for num_seeds in SEEDS:
            for name, run in runs(setup.device).items():
                training = offline_training(
                    algorithm,
                    num_seeds,
                    run,
                    setup.device,
                    rollout_batch_size=10_000,
                    rollout_length=1,
                )
                fill_buffer(training)
                draw_in_blocks(training)
                programs.append(
                    Program(
                        f"{algorithm} S={num_seeds} {name}",
                        _steps(training),
                        amount=num_seeds,
                        baseline=baselines[algorithm],
                    )
                )
    return measure_rates(programs, "steps/s", setup)


def _steps(training: OfflineTraining) -> Callable[[int], None]:
    def run(number: int) -> None:
        change(training, gradient_steps_per_epoch=number)
        training._gradient_steps()

    return run
