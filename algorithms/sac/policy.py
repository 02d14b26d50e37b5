"""One trained policy as an ordinary torch module, and as a file that needs torch alone."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

from algorithms.stack.distributions import TanhGaussian
from algorithms.stack.mlp import StackedMLP


class Policy(nn.Module):
    """An actor without the stack axis: `[B, O] -> [B, 2 A]` (mean, then log-std, before tanh)."""

    def __init__(self, weights: list[Tensor], biases: list[Tensor]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for weight, bias in zip(weights, biases, strict=True):
            linear = nn.Linear(*weight.shape)
            with torch.no_grad():
                linear.weight.copy_(weight.T)
                linear.bias.copy_(bias.squeeze(0))
            layers += [linear, nn.ReLU()]
        self.actor = nn.Sequential(*layers[:-1])

    @classmethod
    def from_stack(cls, actor: StackedMLP, position: int) -> Policy:
        """The actor at `position` of a stack `[S]`."""
        return cls([w[position] for w in actor.weights], [b[position] for b in actor.biases])

    @classmethod
    def from_state(cls, state: dict[str, Tensor], position: int) -> Policy:
        """From a training state (`OfflineTraining.state_dict`)."""
        prefix = "networks/actor."
        layers = sum(name.startswith(prefix + "weights.") for name in state)
        return cls(
            [state[f"{prefix}weights.{i}"][position] for i in range(layers)],
            [state[f"{prefix}biases.{i}"][position] for i in range(layers)],
        )

    def forward(self, obs_BO: Tensor) -> Tensor:
        output: Tensor = self.actor(obs_BO)
        return output


class DeterministicPolicy(nn.Module):
    """Observations `[B, O]` -> actions `[B, A]` in the environment's units, without gradients.

    Args:
        policy: whose mode is taken.
        low: bounds of the environment's actions; the policy's own are -1 and 1.
        high: see `low`.
    """

    def __init__(self, policy: Policy, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        self.policy = policy.requires_grad_(requires_grad=False)
        self.low, self.high = low, high

    @torch.no_grad()
    def forward(self, obs: Tensor) -> Tensor:
        action = TanhGaussian.from_output(self.policy(obs)).mode()
        if (self.low, self.high) == (-1.0, 1.0):
            return action
        return self.low + (action + 1.0) * ((self.high - self.low) / 2.0)


def export_policy(deterministic: DeterministicPolicy, path: Path) -> None:
    """Write a policy as a `torch.export` program.

    It loads without this project: `torch.export.load(path).module()`.
    """
    first = deterministic.policy.actor[0]
    assert isinstance(first, nn.Linear)
    program = torch.export.export(
        deterministic,
        (torch.zeros(2, first.in_features),),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    content = BytesIO()
    torch.export.save(program, content)
    path.write_bytes(content.getvalue())
