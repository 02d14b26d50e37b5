"""An RLlib Algorithm without EnvRunners: `train()` is one epoch, evaluation is ours."""

from __future__ import annotations

import time
from typing import Any

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import EVALUATION_RESULTS
from ray.tune.result import DONE, SHOULD_CHECKPOINT, TRAINING_ITERATION

from algorithms.checkpoint import (
    read_training_state,
)
from algorithms.environments import MAX_EPISODE_STEPS, normalized_score
from algorithms.errors import UserError
from algorithms.evaluation import Evaluator
from algorithms.offline import OfflineTraining, select_seeds
from algorithms.rllib.config import OfflineConfig
from algorithms.rllib.learner import OfflineLearner


class OfflineAlgorithm(Algorithm):
    """An RLlib Algorithm that learns from a fixed data set; `train()` is one epoch."""

    config: OfflineConfig

    def setup(self, config: OfflineConfig) -> None:
        dataset = self.config.dataset  # a missing one is told before RLlib misses its spaces
        torch.set_num_threads(max(1, int(self.config.num_cpus_for_main_process)))
        super().setup(config)
        self._evaluator = Evaluator(
            dataset.env_id,
            len(self.config.seeds),
            self.config.settings.evaluation_episodes,
        )
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
        """One epoch, an evaluation when one is due, and a result that Tune can act on.

        `result["seed"][k]` and `result["mean"]` hold the metrics of seed k and their
        mean over seeds; an evaluation's scores are repeated until the next one.
        """
        begin = time.monotonic()
        result: dict[str, Any] = super().step()
        settings, training = self.config.settings, self.training
        metrics = self._statistics
        if training.epoch % settings.evaluation_interval == 0:
            evaluation = self.evaluate()
            training.record_scores(torch.tensor(evaluation["normalized_score"]))
            metrics |= {name: torch.tensor(values) for name, values in evaluation.items()}
            result[EVALUATION_RESULTS] = evaluation
        training.seconds += time.monotonic() - begin
        if training.epoch >= settings.evaluation_interval:
            metrics["normalized_score"] = training.scores_SK[:, -1]
            metrics["run_score"] = training.run_score()
        for name in metrics.keys() - {"diverged"}:
            metrics[name] = metrics[name].masked_fill(training.diverged_S, torch.nan)
        result["epoch"] = training.epoch
        # A seed that turned NaN does not hide the others' mean.
        result["mean"] = {name: float(value.nanmean()) for name, value in metrics.items()}
        result["seed"] = {
            str(seed): {name: float(value[k]) for name, value in metrics.items()}
            for k, seed in enumerate(self.config.seeds)
        }
        result["minutes"] = training.seconds / 60
        result["behaviour_score"] = self.learner.behaviour_score
        result[DONE] = training.epoch >= settings.epochs or bool(training.diverged_S.all())
        if time.monotonic() - self._last_checkpoint > self.config.checkpoint_every_s:
            result[SHOULD_CHECKPOINT] = True
            self._last_checkpoint = time.monotonic()
        return result

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """Complete MuJoCo episodes with the deterministic policy of every seed."""
        networks = self.training.networks
        returns_SB = self._evaluator.returns(
            lambda obs: networks.policy(obs).mode(),
            evaluation=self.training.epoch,
            device=self.learner.device,
        )
        return_S = returns_SB.mean(axis=1)
        score_S = normalized_score(self.config.dataset.env_id, return_S)
        evaluation = {"episode_return": return_S.tolist(), "normalized_score": score_S.tolist()}
        if self.config.settings.uses_model:
            # As many episodes as in the environment, from the first states of the data's own.
            start_obs = self.learner.initial_obs[: self.config.settings.evaluation_episodes]
            model_return_S = self.training.model_return(start_obs, MAX_EPISODE_STEPS)
            evaluation["model_return"] = model_return_S.tolist()
        return evaluation

    def get_module(self, module_id: str = DEFAULT_MODULE_ID, *, seed: int | None = None) -> Any:
        """The stacked RLModule, or with `seed` that seed's ordinary policy."""
        module = self.learner.module[module_id]
        if seed is None:
            return module
        if seed not in self.config.seeds:
            raise UserError(f"no seed {seed}: one of {', '.join(map(str, self.config.seeds))}")
        return module.select_seed(self.config.seeds.index(seed))

    # Algorithm's own versions of the two below dereference an env_runner_group, which an
    # algorithm without EnvRunners does not have (as of Ray 2.60).

    def set_state(self, state: dict[str, Any]) -> None:
        if "learner_group" in state:
            self.learner_group.set_state(state["learner_group"])
        self.metrics.set_state(state["metrics_logger"])
        self._iteration = state[TRAINING_ITERATION]

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        Checkpointable.restore_from_path(self, path, *args, **kwargs)

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: AlgorithmConfig) -> bool:
        return False

    def cleanup(self) -> None:
        self._evaluator.close()
        super().cleanup()
