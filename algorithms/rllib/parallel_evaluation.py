"""Evaluation in a process of its own, while the training goes on."""

from __future__ import annotations

from typing import Any

import ray

from algorithms.training.evaluation import PolicyEvaluation, Scores, Weights


class ParallelEvaluation:
    """A `PolicyEvaluation` in a process and on a CPU of its own; it takes the same arguments."""

    def __init__(self, **arguments: Any) -> None:
        process: Any = ray.remote(num_cpus=1)(PolicyEvaluation)
        self._process = process.remote(**arguments)

    def evaluate(self, weights: Weights, epoch: int) -> ray.ObjectRef[Scores]:
        """Returns at once, with a reference to the scores of the weights as they are now.

        `ray.get` waits for them, and raises `ray.exceptions.RayError` if the process died.
        """
        on_cpu = {name: value.cpu() for name, value in weights.items()}
        reference: ray.ObjectRef[Scores] = self._process.evaluate.remote(on_cpu, epoch)
        return reference

    def close(self) -> None:
        """End the process, whatever it is at."""
        if ray.is_initialized():  # else it is gone, and `ray.kill` would start Ray
            ray.kill(self._process)
