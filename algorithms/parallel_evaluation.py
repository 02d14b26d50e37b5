"""Evaluation in a process of its own, while the training goes on."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import ray

from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.networks import StackedMLP
from algorithms.policy_evaluation import PolicyEvaluation, Scores, Weights


class ParallelEvaluation:
    """`PolicyEvaluation` on a CPU of its own: a call returns at once, with a reference.

    Args:
        actor, ensemble: as `PolicyEvaluation` takes them.
        others: its other arguments.
    """

    def __init__(
        self, actor: StackedMLP, *, ensemble: DynamicsEnsemble | None, **others: Any
    ) -> None:
        on_cpu = deepcopy(actor).cpu(), deepcopy(ensemble).cpu() if ensemble else None
        worker: Any = ray.remote(num_cpus=1)(EvaluationWorker)
        self._worker = worker.remote(*on_cpu, others)

    def __call__(self, weights: Weights, epoch: int) -> ray.ObjectRef[Scores]:
        """What `PolicyEvaluation` gives for the weights as they are now.

        `ray.get` waits for it, and raises `ray.exceptions.RayError` if the process died.
        """
        on_cpu = {name: value.cpu() for name, value in weights.items()}
        reference: ray.ObjectRef[Scores] = self._worker.evaluate.remote(on_cpu, epoch)
        return reference

    def close(self) -> None:
        """End the process, whatever it is at."""
        if ray.is_initialized():  # else it is gone, and `ray.kill` would start Ray
            ray.kill(self._worker)


class EvaluationWorker:
    """The process."""

    def __init__(
        self, actor: StackedMLP, ensemble: DynamicsEnsemble | None, others: dict[str, Any]
    ) -> None:
        self._evaluation = PolicyEvaluation(actor, ensemble=ensemble, **others)

    def evaluate(self, weights: Weights, epoch: int) -> Scores:
        return self._evaluation(weights, epoch)
