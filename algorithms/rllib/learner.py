"""The Learner: one `update()` is one epoch, over tensors that stay on the learner's device."""

from __future__ import annotations

import pathlib
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.checkpoints import Checkpointable
from torch import Tensor

from algorithms.data.source import load
from algorithms.dynamics.penalty_scale import check_penalty_of_plugin, known_or_measured
from algorithms.dynamics.service import obtain_ensembles
from algorithms.dynamics.store import stack_ensembles
from algorithms.environments.learned_termination import learn_termination
from algorithms.environments.table import ENVIRONMENTS, Termination
from algorithms.sac.agent import Context, RewardScale
from algorithms.stack.compilation import call_compiled, call_eagerly
from algorithms.stack.state import State
from algorithms.stack.transitions import Transition
from algorithms.training.checkpoint import TRAINING_COMPONENT, TRAINING_FILE, decode, encode
from algorithms.training.loop import OfflineTraining

if TYPE_CHECKING:
    from algorithms.rllib.config import OfflineConfig


class OfflineLearner(TorchLearner):
    """A Learner whose `update()` is one whole epoch of `OfflineTraining`."""

    config: OfflineConfig
    training: OfflineTraining
    termination: Termination | None

    def build(self) -> None:
        super().build()
        config = self.config
        settings = config.settings
        dataset = load(config.dataset, config.storage)
        data = Transition.from_numpy(dataset)
        ensembles = obtain_ensembles(config.ensemble_specs(), config.storage, config.plugins)
        self.termination = ENVIRONMENTS[config.dataset.env_id].termination
        if self.termination is None:
            self.termination = learn_termination(data).to(self.device)
        stacked = stack_ensembles(ensembles) if ensembles else None
        penalty_mean = [e.description["metrics"]["penalty_mean"] for e in ensembles]
        if stacked is not None and settings.matched_penalty is not None:
            penalty_mean = known_or_measured(settings.matched_penalty, penalty_mean, stacked, data)
        elif stacked is not None and settings.rollout_penalty is not None:
            check_penalty_of_plugin(settings.rollout_penalty, stacked, data)
        context = Context(
            networks=self.module[DEFAULT_MODULE_ID].networks.to(self.device),
            settings=settings,
            reward_scale=RewardScale.of(data.reward, settings.gamma),
            ensemble=stacked,
            penalty_mean=penalty_mean,
            call=call_compiled if config.compiles(self.device) else call_eagerly,
        )
        self.training = OfflineTraining(
            config.row.agent_class()(context),
            data,
            config.seeds,
            self.termination,
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
