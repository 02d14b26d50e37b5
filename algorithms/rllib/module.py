"""Actor and critics of a stack of seeds as one RLModule."""

from __future__ import annotations

from typing import Any

from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

from algorithms.sac.networks import SACNetworks
from algorithms.sac.policy import Policy
from algorithms.settings import SACSettings
from algorithms.stack.randomness import seed_generators
from algorithms.training.loop import NETWORK_STREAM


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
