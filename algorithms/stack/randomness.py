"""Random numbers: one generator per seed, so that a seed draws alike alone or in company."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from algorithms.errors import UserError


def stream_seed(*words: int) -> int:
    """A 31-bit seed from a sequence of integers, well mixed and stable across versions.

    The first word names the stream, so that no two uses of random numbers (evaluation,
    online training, generated data) start from the same states.
    """
    return int(np.random.SeedSequence(words).generate_state(1)[0] >> 1)


def seed_generators(
    stream: int, seeds: Sequence[int], device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """One generator per seed, on `device`; different streams of one seed are independent."""
    return [torch.Generator(device).manual_seed(stream_seed(stream, seed)) for seed in seeds]


def randn(generators: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Standard normal `[S, *shape]`."""
    return torch.stack([torch.randn(*shape, generator=g, device=g.device) for g in generators])


def randint(generators: Sequence[torch.Generator], high: int, *shape: int) -> Tensor:
    """Uniform integers below `high`, `[S, *shape]`."""
    return torch.stack(
        [torch.randint(high, shape, generator=g, device=g.device) for g in generators]
    )


def randint_below(generators: Sequence[torch.Generator], high_S: Tensor, *shape: int) -> Tensor:
    """Uniform integers below `high_S[s]`, `[S, *shape]`.

    `high_S` is a tensor, so that a buffer's size need not leave the device.
    """
    uniform = torch.stack(
        [torch.rand(*shape, generator=g, device=g.device, dtype=torch.float64) for g in generators]
    )
    high = high_S.view(-1, *(1 for _ in shape))
    return (uniform * high).long()


def randperm(generators: Sequence[torch.Generator], n: int) -> Tensor:
    """A random permutation of 0 ... n - 1 per seed, `[S, n]`."""
    return torch.stack([torch.randperm(n, generator=g, device=g.device) for g in generators])


def generator_states(generators: Sequence[torch.Generator]) -> Tensor:
    """The states of all generators, `[S, bytes]`."""
    return torch.stack([g.get_state() for g in generators])


def set_generator_states(generators: Sequence[torch.Generator], states: Tensor) -> None:
    """Continue where `generator_states` was taken.

    Raises:
        UserError: the states are of another kind of device, whose numbers differ.
    """
    if states.shape[1:] != generators[0].get_state().shape:
        raise UserError(
            f"this checkpoint was not written on {generators[0].device.type}: "
            "continue it on the kind of device that it was started on"
        )
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state.cpu().clone())  # a view into a stack is refused
