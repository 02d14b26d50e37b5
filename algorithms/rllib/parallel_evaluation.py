"""Evaluation in a process of its own, while the training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from algorithms.loading import Plugin, load_plugins
from algorithms.training.evaluation import PolicyEvaluation, Scores, Weights


class _Evaluation(PolicyEvaluation):
    """In a process that executes the plugins first, which may bring the environment."""

    def __init__(self, plugins: Sequence[Plugin], **arguments: Any) -> None:
        load_plugins(plugins)
        super().__init__(**arguments)


class ParallelEvaluation:
    """A `PolicyEvaluation` in a process and on a CPU of its own; it takes the same arguments.

    Args:
        plugins: of the job.
        arguments: of `PolicyEvaluation`.
    """

    def __init__(self, plugins: Sequence[Plugin], **arguments: Any) -> None:
        process: Any = ray.remote(num_cpus=1)(_Evaluation)
        self._process = process.remote(plugins, **arguments)

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
