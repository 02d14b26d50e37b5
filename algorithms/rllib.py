"""The glue between `OfflineTraining` and RLlib: the only user of RLlib's internals.

One `Algorithm.train()` is one `Learner.update()` is one epoch, over tensors that
stay on the learner's device. There are no EnvRunners: evaluation is ours.
RLlib, Tune and MLflow see one result per epoch.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Collection, Sequence
from typing import Any, Self

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import EVALUATION_RESULTS
from ray.tune.result import DONE, SHOULD_CHECKPOINT, TRAINING_ITERATION
from torch import Tensor

from algorithms.checkpoint import (
    TRAINING_COMPONENT,
    TRAINING_FILE,
    decode,
    encode,
    read_training_state,
)
from algorithms.compilation import can_compile, run_compiled, run_eagerly
from algorithms.data.catalog import DatasetSpec, resolve
from algorithms.data.datasets import load
from algorithms.dynamics.actor import obtain_ensembles
from algorithms.dynamics.store import stack_ensembles
from algorithms.environments import MAX_EPISODE_STEPS, make_env, normalized_score
from algorithms.errors import UserError, expected
from algorithms.evaluation import Evaluator
from algorithms.identity import DYNAMICS_SEEDS, EnsembleSpec, ensemble_seed
from algorithms.offline import NETWORK_STREAM, OfflineTraining, select_seeds
from algorithms.policy import Policy
from algorithms.randomness import seed_generators
from algorithms.sac import SAC, RewardScale, SACNetworks, State
from algorithms.settings import EnsembleSettings, OfflineSettings, SACSettings, validated
from algorithms.terminations import TERMINATIONS
from algorithms.transitions import Transition

DEFAULT_STORAGE = "~/orchestrator"
CHECKPOINT_EVERY_S = 600.0
# Compiling takes 10 to 30 seconds, and saves a few milliseconds in each step.
STEPS_WORTH_COMPILING = 10_000


class OfflineConfig(AlgorithmConfig):
    """Configures an offline algorithm; usable with or without the orchestrator.

    Everything of ours lives in one plain dictionary, `job`, so that a Tune search
    space, a checkpoint and a log carry it unchanged:

        dataset     a `DatasetSpec` as a dict, or an id to be resolved
        settings    hyperparameters that differ from the defaults
        seeds       the numbers of the seeds that train together
        dynamics_seeds  per_seed or shared
        storage     root folder of data and ensembles
        resume      {"checkpoint": folder, "positions": [...]}, or None
        record      whatever the caller wants to find in `trial.config` again
    """

    settings_class: type[OfflineSettings]
    agent_class: type[SAC]

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class)
        self._is_online = False  # no training EnvRunners
        self.num_env_runners = 0
        self.num_learners = 0  # the algorithm's own process is the learner
        self.num_cpus_for_main_process = 1
        self.checkpoint_every_s = CHECKPOINT_EVERY_S
        self.compile: bool | str = "auto"
        self.job: dict[str, Any] = {
            "dataset": None,
            "settings": {},
            "seeds": [0],
            "dynamics_seeds": "per_seed",
            "storage": DEFAULT_STORAGE,
            "resume": None,
        }

    def offline(
        self,
        *,
        dataset: str | DatasetSpec = NotProvided,
        seeds: int | Sequence[int] = NotProvided,
        dynamics_seeds: str = NotProvided,
        storage: str | pathlib.Path = NotProvided,
        resume: dict[str, Any] | None = NotProvided,
        compile: bool | str = NotProvided,  # noqa: A002 - torch's own word for it
    ) -> Self:
        """Says what to learn from.

        Args:
            dataset: an id of the catalogue, `file:PATH`, or a resolved spec.
            seeds: how many seeds train together (0, 1, ...), or their numbers.
            dynamics_seeds: `per_seed` (default) or `shared`: one ensemble for all seeds.
            storage: root folder of cached data and ensembles.
            resume: a checkpoint folder and the positions of the seeds to take from it.
            compile: whether torch.compile is used; `auto` does for long trainings where it can.
        """
        if dataset is not NotProvided:
            spec = dataset if isinstance(dataset, DatasetSpec) else resolve(dataset, env=self.env)
            self.job["dataset"] = spec.model_dump(mode="json")
        if seeds is not NotProvided:
            self.job["seeds"] = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
        if dynamics_seeds is not NotProvided:
            if dynamics_seeds not in DYNAMICS_SEEDS:
                raise UserError(expected("dynamics_seeds", dynamics_seeds, DYNAMICS_SEEDS))
            self.job["dynamics_seeds"] = dynamics_seeds
        if storage is not NotProvided:
            self.job["storage"] = str(storage)
        if resume is not NotProvided:
            self.job["resume"] = resume
        if compile is not NotProvided:
            self.compile = compile
        return self

    def training(self, **settings: Any) -> Self:
        """Sets hyperparameters: the fields of `settings_class`, and no others."""
        merged = {**self.job["settings"], **settings}
        validated(self.settings_class, merged)
        self.job["settings"] = merged
        return self

    @property
    def settings(self) -> OfflineSettings:
        return validated(self.settings_class, self.job["settings"])

    @property
    def dataset(self) -> DatasetSpec:
        if self.job["dataset"] is None:
            raise UserError("no data set: call .offline(dataset=...)")
        return DatasetSpec.model_validate(self.job["dataset"])

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.job["seeds"])

    @property
    def storage(self) -> pathlib.Path:
        return pathlib.Path(self.job["storage"]).expanduser()

    def ensemble_specs(self) -> list[EnsembleSpec]:
        """The dynamics ensemble of each seed; none where no row of a batch is the model's."""
        if not self.settings.uses_model:
            return []
        settings = self.settings.part(EnsembleSettings)
        seeds = [ensemble_seed(seed, self.job["dynamics_seeds"]) for seed in self.seeds]
        return [EnsembleSpec(dataset=self.dataset, settings=settings, seed=s) for s in seeds]

    def compiles(self, device: torch.device) -> bool:
        """Whether gradient steps and rollouts are compiled: where it pays, if not told."""
        if self.compile != "auto":
            return bool(self.compile)
        steps = self.settings.epochs * self.settings.gradient_steps_per_epoch
        return steps >= STEPS_WORTH_COMPILING and can_compile(device)

    def validate(self) -> None:
        super().validate()
        if self.num_learners != 0:
            raise UserError("num_learners must be 0: the trial's own process is the learner")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"seeds {list(self.seeds)}: at least one, each once")
        if self.job["dataset"] is None:
            return  # Tune validates a default config to size its resources
        env_id = self.dataset.env_id
        if self.env is not None and self.env != env_id:
            raise UserError(f"environment {self.env!r} does not fit the data set's {env_id!r}")
        if not self._is_frozen:
            self.env = env_id
            env = make_env(env_id)
            self.observation_space, self.action_space = env.observation_space, env.action_space
            env.close()

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(
            module_class=StackedSACModule,
            observation_space=self.observation_space,
            action_space=self.action_space,
            model_config={
                "settings": self.settings.part(SACSettings).model_dump(),
                "seeds": list(self.seeds),
            },
        )

    def get_default_learner_class(self) -> type[OfflineLearner]:
        return OfflineLearner


class StackedSACModule(TorchRLModule):
    """Actor and critics of S seeds as one RLModule.

    `forward_inference({"obs": [S, B, O]})` gives `action_dist_inputs [S, B, 2 A]`.
    """

    def setup(self) -> None:
        assert self.observation_space is not None
        assert self.action_space is not None
        self.networks = SACNetworks(
            self.observation_space.shape[0],
            self.action_space.shape[0],
            SACSettings(**self.model_config["settings"]),
            seed_generators(NETWORK_STREAM, self.model_config["seeds"]),
        )

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.networks.actor(batch[Columns.OBS])}

    def select_seed(self, position: int) -> Policy:
        """The policy at `position` in the stack as an ordinary module, `[B, O] -> [B, 2 A]`."""
        return Policy.from_stack(self.networks.actor, position)


class OfflineLearner(TorchLearner):
    """A Learner whose `update()` is one whole epoch of `OfflineTraining`."""

    config: OfflineConfig
    training: OfflineTraining

    def build(self) -> None:
        super().build()
        config = self.config
        settings = config.settings
        dataset = load(config.dataset, config.storage)
        data = Transition.from_numpy(dataset)
        ensembles = obtain_ensembles(config.ensemble_specs(), config.storage)
        networks = self.module[DEFAULT_MODULE_ID].networks.to(self.device)
        self.training = OfflineTraining(
            agent=config.agent_class(
                networks,
                settings,
                RewardScale.of(data.reward, settings.gamma),
                run_compiled if config.compiles(self.device) else run_eagerly,
            ),
            data=data,
            ensemble=stack_ensembles(ensembles) if ensembles else None,
            settings=settings,
            seeds=config.seeds,
            termination_fn=TERMINATIONS[config.dataset.env_id],
            penalty_mean=[e.description["metrics"]["penalty_mean"] for e in ensembles],
        )
        self.behaviour_score = dataset.behaviour_score(config.dataset.env_id)
        self.initial_obs = torch.from_numpy(dataset.initial_obs)

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """None here: `OfflineTraining` owns the optimizers, and their state."""

    def compute_loss_for_module(self, **kwargs: Any) -> Any:
        raise AssertionError("update() does not use RLlib's loss loop")

    def update(self, **kwargs: Any) -> dict[str, Tensor]:
        """Rollouts and gradient steps of one epoch; per-seed statistics `[S]` on the host."""
        self._check_is_built()
        self.before_gradient_based_update(timesteps={})
        self._weights_seq_no += 1
        statistics = self.training.train_epoch()
        self.after_gradient_based_update(timesteps={})
        return statistics

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(TRAINING_COMPONENT, components, not_components):
            # Copies: training goes on in the tensors that `state_dict` refers to.
            tensors = self.training.state_dict()
            state[TRAINING_COMPONENT] = {name: value.clone() for name, value in tensors.items()}
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if TRAINING_COMPONENT in state:
            self.training.load_state_dict(state[TRAINING_COMPONENT])

    def get_checkpointable_components(self) -> list[tuple[str, Checkpointable]]:
        inherited = super().get_checkpointable_components()  # type: ignore[no-untyped-call]
        return [*inherited, (TRAINING_COMPONENT, _TrainingFile(self.training))]


class _TrainingFile(Checkpointable):
    """`OfflineTraining`'s state as a component of RLlib's checkpoint: tensors, no pickle."""

    def __init__(self, training: OfflineTraining) -> None:
        self._training = training

    def get_state(self, components: Any = None, **kwargs: Any) -> State:
        return self._training.state_dict()

    def set_state(self, state: State) -> None:
        self._training.load_state_dict(state)

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self._training,), {}

    def save_to_path(
        self,
        path: str | pathlib.Path | None = None,
        *,
        state: State | None = None,
        filesystem: Any = None,
        use_msgpack: bool = False,
    ) -> str:
        assert path is not None
        assert filesystem is not None
        folder = pathlib.Path(path)
        filesystem.create_dir(folder.as_posix(), recursive=True)
        content = encode(self.get_state() if state is None else state, self._training.seeds)
        with filesystem.open_output_stream((folder / TRAINING_FILE).as_posix()) as file:
            file.write(content)
        return str(path)

    def restore_from_path(
        self,
        path: str | pathlib.Path,
        *,
        component: str | None = None,
        filesystem: Any = None,
        **kwargs: Any,
    ) -> None:
        assert filesystem is not None
        file_path = (pathlib.Path(path) / TRAINING_FILE).as_posix()
        with filesystem.open_input_stream(file_path) as file:
            self.set_state(decode(file.read(), file_path))


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
