"""Adam for stacks, stepped along given gradients, with its moments as flat tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from algorithms.stack.state import State


def adam(parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """Adam in one kernel, which on a GPU may be part of a CUDA graph."""
    parameters = list(parameters)
    # The first steps of an epoch, which no graph captures, are meant.
    warnings.filterwarnings("ignore", message=".*constructed with capturable=True")
    return torch.optim.Adam(parameters, lr, fused=True, capturable=parameters[0].is_cuda)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def step_along(optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor]) -> None:
    """One step with these gradients of the optimizer's parameters."""
    for parameter, gradient in zip(parameters_of(optimizer), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def optimizer_state(optimizer: torch.optim.Optimizer, prefix: str) -> State:
    """An optimizer's moments and counters as flat tensors, named `<prefix><index>/<moment>`."""
    return {
        f"{prefix}{index}/{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: State) -> None:
    """The inverse of `optimizer_state`, its prefix removed."""
    values: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        index, name = key.split("/")
        values.setdefault(int(index), {})[name] = value.clone()
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": values, "param_groups": groups})
