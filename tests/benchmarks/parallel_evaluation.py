"""What evaluating beside the next epoch saves of a MOPO epoch, S = 1, where a core is free.

Both trainings do the same work: an epoch (`epochs.py` says of what), and ten episodes of 1000
steps in the environment and in the model. In turns, or at once in two processes, of which the
second has one thread.
"""

from __future__ import annotations

import logging
import os

# Ray reads these when it is imported; without the first it writes to the user's home.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from evaluations import evaluation_arguments
from harness import Series, Setup, now
from hopper import ROLLOUT_ROWS
from ours import expert, offline_training, runs

from algorithms.rllib.parallel_evaluation import ParallelEvaluation
from algorithms.training.evaluation import PolicyEvaluation


def measure(setup: Setup) -> list[Series]:
    *_, (run_name, run) = runs(setup.device).items()
    size = {"rollout_length": 1, "gradient_steps_per_epoch": 100} if setup.quick else {}
    training = offline_training(
        "MOPO", 1, run, setup.device, rollout_batch_size=ROLLOUT_ROWS, **size
    )
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    walker, arguments = expert(), evaluation_arguments(training)
    in_turns, beside = PolicyEvaluation(**arguments), ParallelEvaluation(**arguments)

    def training_alone() -> float:
        begin = now(setup.device)
        training.train_epoch()
        return now(setup.device) - begin

    def epoch_in_turns() -> tuple[float, float]:
        begin = now(setup.device)
        train = training_alone()
        in_turns.evaluate(walker, epoch=0)
        return now(setup.device) - begin, train

    def epoch_beside() -> tuple[float, float]:
        begin = now(setup.device)
        evaluated = beside.evaluate(walker, epoch=0)
        train = training_alone()
        ray.get(evaluated)
        return now(setup.device) - begin, train

    epoch_in_turns()  # compiles, and waits until the process is there
    epoch_beside()
    samples = [(epoch_in_turns(), epoch_beside()) for _ in range(setup.rounds)]
    beside.close()
    in_turns.close()
    ray.shutdown()
    return [
        Series("epoch, evaluated in turns", "s", [a for (a, _), _ in samples], note=run_name),
        Series(
            "epoch, evaluated beside",
            "s",
            [b for _, (b, _) in samples],
            baseline="epoch, evaluated in turns",
        ),
        Series("training alone", "s", [a for (_, a), _ in samples]),
        Series(
            "training beside an evaluation",
            "s",
            [b for _, (_, b) in samples],
            baseline="training alone",
        ),
    ]
