"""The state of a training as flat tensors by name, the seed axis first in all but 0-d ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]


def below(state: State, prefix: str) -> State:
    """The entries whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def replace_seeds(state: State, other: State, chosen_S: Tensor) -> State:
    """`state` with the chosen seeds as they are in `other`, which has the same keys or fewer."""
    replaced = dict(state)
    for name, value in other.items():
        if value.dim() > 0:
            mask = chosen_S.to(value.device).view(-1, *(1,) * (value.dim() - 1))
            replaced[name] = torch.where(mask, value, state[name])
    return replaced


def select_seeds(state: State, positions: Sequence[int]) -> State:
    """The state of some seeds of a stack, in the given order."""
    index = torch.tensor(list(positions))
    return {
        k: v if v.dim() == 0 else v.index_select(0, index.to(v.device)) for k, v in state.items()
    }
