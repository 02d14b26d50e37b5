"""Actor, critics and temperature of soft actor-critic, for a stack of seeds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from algorithms.settings import SACSettings
from algorithms.stack.distributions import TanhGaussian
from algorithms.stack.mlp import StackedMLP


class SACNetworks(nn.Module):
    """Actor, critics, target critics and log-temperature of S seeds."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        settings: SACSettings,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.obs_dim, self.action_dim = obs_dim, action_dim
        critic_sizes = (obs_dim + action_dim, *settings.hidden, 1)
        self.actor = StackedMLP((obs_dim, *settings.hidden, 2 * action_dim), generators)
        self.critic = StackedMLP(critic_sizes, generators, members=(settings.num_critics,))
        self.target_critic = StackedMLP(critic_sizes, generators, members=(settings.num_critics,))
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.target_critic.requires_grad_(False)
        self.log_alpha_S = nn.Parameter(torch.zeros(len(generators)))

    def q(self, obs_SBO: Tensor, action_SBA: Tensor) -> Tensor:
        """Q-values of every critic, `[S, C, B]`."""
        return _q_values(self.critic, obs_SBO, action_SBA)

    def target_q(self, obs_SBO: Tensor, action_SBA: Tensor) -> Tensor:
        """Q-values of every target critic, `[S, C, B]`."""
        return _q_values(self.target_critic, obs_SBO, action_SBA)

    def policy(self, obs_SBO: Tensor) -> TanhGaussian:
        """The action distribution at `obs_SBO`."""
        return TanhGaussian.from_output(self.actor(obs_SBO))


def _q_values(critic: StackedMLP, obs_SBO: Tensor, action_SBA: Tensor) -> Tensor:
    return critic(torch.cat([obs_SBO, action_SBA], dim=-1).unsqueeze(1)).squeeze(-1)
