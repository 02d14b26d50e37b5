"""Termination functions: when a state ends an episode, as the simulators decide it.

A learned model predicts states, not ends; that these are known is the usual
privilege of this literature (MBPO, MOPO, COMBO). Each function maps next
observations `[..., O]` to `[...]` booleans with tensor methods only, so nothing
leaves the device. The limits are those of `gymnasium.envs.mujoco`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def hopper(next_obs: Tensor) -> Tensor:
    """Alive iff finite, every |obs[1:]| < 100, height > 0.7 and |torso angle| < 0.2."""
    # The magnitude is taken before the comparison: `abs(x < 100)`, a bug of several
    # published implementations, tests nothing on the lower side.
    alive = (
        next_obs.isfinite().all(dim=-1)
        & (next_obs[..., 1:].abs() < 100).all(dim=-1)
        & (next_obs[..., 0] > 0.7)
        & (next_obs[..., 1].abs() < 0.2)
    )
    return ~alive


def walker2d(next_obs: Tensor) -> Tensor:
    """Alive iff finite, 0.8 < height < 2.0 and |torso angle| < 1.0."""
    height = next_obs[..., 0]
    alive = (
        next_obs.isfinite().all(dim=-1)
        & (height > 0.8)
        & (height < 2.0)
        & (next_obs[..., 1].abs() < 1.0)
    )
    return ~alive


def never(next_obs: Tensor) -> Tensor:
    """No state ends an episode (half-cheetah)."""
    return next_obs.new_zeros(next_obs.shape[:-1], dtype=torch.bool)


TERMINATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Hopper-v4": hopper,
    "Walker2d-v4": walker2d,
    "HalfCheetah-v4": never,
}
