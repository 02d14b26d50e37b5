"""Made-up data of Hopper's sizes: speed does not depend on what is learnt from them."""

from __future__ import annotations

import torch

from algorithms.stack.transitions import Transition

OBS, ACTION = 11, 3
DATA_ROWS = 400_000  # as many as D4RL's hopper-medium-replay
ROLLOUT_ROWS = 50_000  # start states of an epoch's rollouts
# Bounds of an ensemble's log-variances: with means of 0 and next to no std a rollout stays where
# it began, so that its rows live as those of a good policy do.
QUIET_LOG_VAR = (-22.0, -20.0)


def transitions(rows: int) -> Transition:
    """Rows `[n]` near a standing Hopper, which none of the termination's limits touches."""
    standing = torch.zeros(OBS)
    standing[0] = 1.25
    return Transition(
        standing + 0.02 * torch.randn(rows, OBS),
        torch.rand(rows, ACTION) * 2 - 1,
        torch.randn(rows),
        standing + 0.02 * torch.randn(rows, OBS),
        torch.zeros(rows),
    )
