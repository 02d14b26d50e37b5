"""The config of an offline algorithm: plain values, for search spaces, checkpoints and logs."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar, Self

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from algorithms import ALGORITHMS
from algorithms.algorithm import Algorithm as AlgorithmRow
from algorithms.data.source import resolve
from algorithms.data.spec import DatasetSpec
from algorithms.dynamics.spec import EnsembleSpec
from algorithms.environments.table import make_env
from algorithms.errors import UserError, expected
from algorithms.identity import DYNAMICS_SEEDS, ensemble_seed
from algorithms.loading import Plugin, find_plugins, load_plugins
from algorithms.rllib.learner import OfflineLearner
from algorithms.rllib.module import StackedSACModule
from algorithms.seeds import seed_list
from algorithms.settings import (
    EnsembleSettings,
    OfflineSettings,
    SACSettings,
    auto_or_bool,
    validated,
)
from algorithms.stack.compilation import can_compile
from algorithms.storage import DEFAULT_STORAGE, Storage

CHECKPOINT_EVERY_S = 600.0
# Compiling takes up to a minute, and saves milliseconds in each step.
STEPS_WORTH_COMPILING = 10_000


class OfflineConfig(AlgorithmConfig):
    """Configures an offline algorithm; usable with or without the orchestrator.

    Everything of ours lives in one plain dictionary, `job`, so that a Tune search
    space, a checkpoint and a log carry it unchanged:

        algorithm   a key of `ALGORITHMS`
        dataset     a `DatasetSpec` as a dict
        settings    hyperparameters that differ from the defaults
        seeds       the numbers of the seeds that train together
        dynamics_seeds  per_seed or shared
        storage     root folder of data and ensembles
        resume      {"checkpoint": folder, "positions": [...]}, or None
        plugins     `Plugin`s as dicts, which every process of the job executes
        record      whatever the caller wants to find in `trial.config` again
    """

    algorithm: ClassVar[str | None] = None  # of a class that is of one algorithm

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class)
        self._is_online = False  # no training EnvRunners
        self.num_env_runners = 0
        self.num_learners = 0  # the algorithm's own process is the learner
        self.num_cpus_for_main_process = 1
        self.checkpoint_every_s = CHECKPOINT_EVERY_S
        self.compile: bool | str = "auto"
        self.parallel_evaluation = False
        self.job: dict[str, Any] = {
            "algorithm": self.algorithm or getattr(algo_class, "algorithm", None),
            "dataset": None,
            "settings": {},
            "seeds": [0],
            "dynamics_seeds": "per_seed",
            "storage": DEFAULT_STORAGE,
            "resume": None,
            "plugins": [],
        }

    def offline(
        self,
        *,
        dataset: str | DatasetSpec = NotProvided,
        seeds: int | Sequence[int] = NotProvided,
        dynamics_seeds: str = NotProvided,
        storage: str | pathlib.Path | Storage = NotProvided,
        resume: dict[str, Any] | None = NotProvided,
        compile: bool | str = NotProvided,  # noqa: A002 - torch's own word for it
        parallel_evaluation: bool = NotProvided,
        plugins: Sequence[str] = NotProvided,
    ) -> Self:
        """Says what to learn from.

        Args:
            plugins: Python files, relative to the working directory, or installed modules, whose
                penalties and environments may be used from here on (`algorithms.plugins`).
            dataset: an id of the catalogue, `file:PATH`, or a resolved spec.
            seeds: how many seeds train together (0, 1, ...), or their numbers.
            dynamics_seeds: `per_seed` (default) or `shared`: one ensemble for all seeds.
            storage: root of cached data and ensembles: a folder, or a URL.
            resume: a checkpoint folder and the positions of the seeds to take from it.
            compile: whether torch.compile is used; `auto` does for long trainings where it can.
            parallel_evaluation: evaluate in a process of its own, on one more CPU, beside the
                epochs that follow; results come later by up to `evaluation_interval` epochs.
        """
        if plugins is not NotProvided:
            self._use_plugins(plugins)
        if dataset is not NotProvided:
            self._use_dataset(dataset)
        if seeds is not NotProvided:
            self.job["seeds"] = list(seed_list(seeds, key="seeds "))
        if dynamics_seeds is not NotProvided:
            if dynamics_seeds not in DYNAMICS_SEEDS:
                raise UserError(expected("dynamics_seeds", dynamics_seeds, DYNAMICS_SEEDS))
            self.job["dynamics_seeds"] = dynamics_seeds
        if storage is not NotProvided:
            self.job["storage"] = str(storage)
        if resume is not NotProvided:
            self.job["resume"] = resume
        if compile is not NotProvided:
            self.compile = auto_or_bool(compile, key="compile ")
        if parallel_evaluation is not NotProvided:
            self.parallel_evaluation = parallel_evaluation
        return self

    def training(self, **settings: Any) -> Self:
        """Sets hyperparameters: the fields of the algorithm's settings, and no others."""
        merged = {**self.job["settings"], **settings}
        self._validated(merged)
        self.job["settings"] = merged
        return self

    def update_from_dict(self, config_dict: dict[str, Any]) -> Self:
        """Takes a point of a search space, or a whole config, which is what Tune makes of one.

        Hyperparameters may stand in it beside RLlib's own settings, as `training` takes them.
        """
        if "job" in config_dict:  # it says which algorithm's hyperparameters they are
            self.job = deepcopy(config_dict["job"])  # it is the caller's
            config_dict = {k: v for k, v in config_dict.items() if k != "job"}
        ours = {"model", "optimizer", *self.row.settings.model_fields}
        # A whole config has RLlib's own values of these (`model`, `gamma`), which are no choice.
        chosen = {k: v for k, v in config_dict.items() if k in ours and v != getattr(self, k, None)}
        super().update_from_dict({k: v for k, v in config_dict.items() if k not in ours})
        return self.training(**chosen)

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        return tuple(map(Plugin.model_validate, self.job.get("plugins", ())))

    def _use_plugins(self, names: Sequence[str]) -> None:
        if isinstance(names, str):
            raise UserError(f"plugins must be a list of files or modules, got {names!r}")
        found = find_plugins(names, pathlib.Path.cwd())
        load_plugins(found)
        self.job["plugins"] = [plugin.model_dump() for plugin in found]

    def _use_dataset(self, dataset: str | DatasetSpec) -> None:
        self.load_plugins()
        if isinstance(dataset, DatasetSpec):
            spec = dataset
        else:
            spec = resolve(dataset, env=self.env, storage=self.storage)
        self.job["dataset"] = spec.model_dump(mode="json")

    def load_plugins(self) -> None:
        """Execute the plugins, if this process has not yet, and show their rows."""
        if self.job.get("plugins"):  # without any, what the caller has loaded stays
            load_plugins(self.plugins)

    @property
    def row(self) -> AlgorithmRow:
        """Of the algorithm.

        Raises:
            UserError: none was chosen, or there is none of that name.
        """
        self.load_plugins()
        name = self.job["algorithm"]
        if name not in ALGORITHMS:
            raise UserError(expected("algorithm", name, ALGORITHMS))
        return ALGORITHMS[name]

    @property
    def settings(self) -> OfflineSettings:
        return self._validated(self.job["settings"])

    def _validated(self, settings: dict[str, Any]) -> OfflineSettings:
        for key, needed in self.row.pinned.items():
            if settings.get(key, needed) != needed:
                raise UserError(
                    f"{key}: {self.job['algorithm']} is {self.row.base} with {key} {needed}, "
                    f"got {settings[key]!r}: leave it out"
                )
        return validated(self.row.settings, {**settings, **self.row.pinned})

    @property
    def dataset(self) -> DatasetSpec:
        if self.job["dataset"] is None:
            raise UserError("no data set: call .offline(dataset=...)")
        self.load_plugins()
        return DatasetSpec.model_validate(self.job["dataset"])

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.job["seeds"])

    @property
    def storage(self) -> Storage:
        return Storage(self.job["storage"])

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
        if not isinstance(self.parallel_evaluation, bool):
            raise UserError(
                f"parallel_evaluation must be True or False, got {self.parallel_evaluation!r}"
            )
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
