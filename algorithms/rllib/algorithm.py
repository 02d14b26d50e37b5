"""An RLlib Algorithm without EnvRunners: `train()` is one epoch, evaluation is ours."""

from __future__ import annotations

import time
from collections import deque
from copy import deepcopy
from typing import Any, ClassVar, NamedTuple

import ray
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import EVALUATION_RESULTS
from ray.tune import PlacementGroupFactory
from ray.tune.result import DONE, SHOULD_CHECKPOINT, TRAINING_ITERATION
from torch import Tensor

from algorithms.environments.table import ENVIRONMENTS
from algorithms.errors import UserError
from algorithms.rllib.config import OfflineConfig
from algorithms.rllib.learner import OfflineLearner
from algorithms.rllib.parallel_evaluation import ParallelEvaluation
from algorithms.stack.state import select_seeds
from algorithms.training.checkpoint import read_training_state
from algorithms.training.evaluation import PolicyEvaluation, Scores
from algorithms.training.loop import OfflineTraining
from algorithms.training.reporting import report_epoch


class Epoch(NamedTuple):
    """An epoch that was trained, and is still to be reported."""

    result: dict[str, Any]  # RLlib's
    statistics: dict[str, Tensor]  # `[S]` each
    scores: Scores | ray.ObjectRef[Scores] | None  # a reference while another process evaluates

    def is_evaluated(self) -> bool:
        """Whether its scores need not be waited for."""
        if not isinstance(self.scores, ray.ObjectRef):
            return True
        return bool(ray.wait([self.scores], timeout=0)[0])


class OfflineAlgorithm(Algorithm):
    """An RLlib Algorithm that learns from a fixed data set; `train()` gives one epoch's result."""

    config: OfflineConfig
    algorithm: ClassVar[str | None] = None  # of a class that is of one algorithm

    @classmethod
    def get_default_config(cls) -> OfflineConfig:
        return OfflineConfig(algo_class=cls)

    def setup(self, config: OfflineConfig) -> None:
        env_id = self.config.dataset.env_id  # a missing one is told before RLlib misses its spaces
        torch.set_num_threads(max(1, int(self.config.num_cpus_for_main_process)))
        super().setup(config)
        self._evaluation = self._make_evaluation(env_id)
        self._trained: deque[Epoch] = deque()  # and not reported
        self._reports: deque[dict[str, Any]] = deque()  # made before they were asked for
        self._last_checkpoint = time.monotonic()
        if self.config.job["resume"]:
            resume = self.config.job["resume"]
            state = read_training_state(resume["checkpoint"])
            self.training.load_state_dict(select_seeds(state, resume["positions"]))
            self._iteration = self.training.epoch
            # From here on the trial's own checkpoints are what it continues from.
            resume.clear()

    @property
    def learner(self) -> OfflineLearner:
        learner = self.learner_group._learner
        assert isinstance(learner, OfflineLearner)
        return learner

    @property
    def training(self) -> OfflineTraining:
        return self.learner.training

    def training_step(self) -> None:
        self._statistics = self.learner.update()

    def step(self) -> dict[str, Any]:
        """The result of the next epoch, with an evaluation when one is due.

        `result["seed"][k]` and `result["mean"]` hold the metrics of seed k and their
        mean over seeds; an evaluation's scores are repeated until the next one.

        With `parallel_evaluation` the training runs ahead while an epoch is evaluated. The
        results and their order are the same; they only come later.
        """
        if self._reports:
            return self._reports.popleft()
        begin = time.monotonic()
        while not self._trained or (self._may_run_ahead() and not self._trained[0].is_evaluated()):
            self._trained.append(self._train_epoch())
        result = self._report()
        self.training.seconds += time.monotonic() - begin
        result["minutes"] = self.training.seconds / 60
        # A checkpoint is of the epoch that is reported with it: none has been trained since.
        if not self._trained and self._checkpoint_is_due():
            result[SHOULD_CHECKPOINT] = True
            self._last_checkpoint = time.monotonic()
        return result

    def _may_run_ahead(self) -> bool:
        """Whether to train on although an epoch waits: up to the one that is evaluated next."""
        return (
            len(self._trained) <= self.config.settings.evaluation_interval
            and not self._trained[-1].result[DONE]
            and not self._checkpoint_is_due()
        )

    def _checkpoint_is_due(self) -> bool:
        return time.monotonic() - self._last_checkpoint > self.config.checkpoint_every_s

    def _train_epoch(self) -> Epoch:
        result: dict[str, Any] = super().step()
        settings, training = self.config.settings, self.training
        result["epoch"] = training.epoch
        result[DONE] = training.epoch >= settings.epochs or bool(training.diverged_S.all())
        due = training.epoch % settings.evaluation_interval == 0
        return Epoch(result, self._statistics, self._start_evaluation() if due else None)

    def _start_evaluation(self) -> Scores | ray.ObjectRef[Scores]:
        actor, epoch = self.training.networks.actor, self.training.epoch
        return self._evaluation.evaluate(actor.state_dict(), epoch)

    def _report(self) -> dict[str, Any]:
        """The result of the oldest epoch that is not reported, when it has been evaluated."""
        result, statistics, pending = self._trained[0]
        scores = None if pending is None else wait_for(pending)
        self._trained.popleft()
        if scores is not None:
            result[EVALUATION_RESULTS] = as_lists(scores)
        result |= report_epoch(self.training, result["epoch"], statistics, scores)
        result["behaviour_score"] = self.learner.behaviour_score
        return result

    def _make_evaluation(self, env_id: str) -> PolicyEvaluation | ParallelEvaluation:
        config, ensemble = self.config, self.training.ensemble
        learned = ENVIRONMENTS[env_id].termination is None
        arguments: dict[str, Any] = {
            "actor": deepcopy(self.training.networks.actor).cpu(),
            "env_id": env_id,
            "seeds": config.seeds,
            "episodes": config.settings.evaluation_episodes,
            "ensemble": None if ensemble is None else deepcopy(ensemble).cpu(),
            "initial_obs": self.learner.initial_obs,
            # A function of the table is found in the table; a learned one goes along.
            "termination": deepcopy(self.learner.termination).cpu() if learned else None,
        }
        if config.parallel_evaluation:
            return ParallelEvaluation(config.plugins, **arguments)
        return PolicyEvaluation(**arguments)

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, list[float]]:
        """Complete episodes with the deterministic policy of every seed, as it is now."""
        return as_lists(wait_for(self._start_evaluation()))

    @classmethod
    def default_resource_request(cls, config: Any) -> PlacementGroupFactory:
        """What Tune reserves for a trial."""
        request = super().default_resource_request(config)
        assert isinstance(request, PlacementGroupFactory)
        chosen = cls.get_default_config().update_from_dict(config)
        if not chosen.parallel_evaluation:
            return request
        return PlacementGroupFactory([*request.bundles, {"CPU": 1}], request.strategy)

    def get_module(self, module_id: str = DEFAULT_MODULE_ID, *, seed: int | None = None) -> Any:
        """The stacked RLModule, or with `seed` that seed's ordinary policy."""
        module = self.learner.module[module_id]
        if seed is None:
            return module
        if seed not in self.config.seeds:
            raise UserError(f"no seed {seed}: one of {', '.join(map(str, self.config.seeds))}")
        return module.select_seed(self.config.seeds.index(seed))

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state, and the results of epochs that are trained but not reported.

        It waits for their evaluations, whose scores are part of the training's state.
        """
        while self._trained:
            self._reports.append(self._report() | {"minutes": self.training.seconds / 60})
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        state["reports"] = list(self._reports)
        return state

    # Algorithm's own versions of the two below dereference an env_runner_group, which an
    # algorithm without EnvRunners does not have (as of Ray 2.60).

    def set_state(self, state: dict[str, Any]) -> None:
        if "learner_group" in state:
            self.learner_group.set_state(state["learner_group"])
        self.metrics.set_state(state["metrics_logger"])
        self._iteration = state[TRAINING_ITERATION]
        self._trained.clear()
        self._reports = deque(state.get("reports", ()))

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        Checkpointable.restore_from_path(self, path, *args, **kwargs)

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: AlgorithmConfig) -> bool:
        return False

    def cleanup(self) -> None:
        self._evaluation.close()
        super().cleanup()


def wait_for(scores: Scores | ray.ObjectRef[Scores]) -> Scores:
    """The scores, when they are there."""
    return ray.get(scores) if isinstance(scores, ray.ObjectRef) else scores


def as_lists(scores: Scores) -> dict[str, list[float]]:
    """Plain numbers, for a result."""
    return {name: value.tolist() for name, value in scores.items()}
