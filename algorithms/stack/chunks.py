"""Sums over many rows, on a CPU some at a time: only those rows' activations are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Rows at once on a CPU, over all seeds: for COMBO's 30 actions of a state, few enough that their
# activations stay in the cache, and enough for two threads.
CPU_CHUNK, MIN_CPU_CHUNK = 64, 16


def sum_over_chunks(
    function: Callable[..., tuple[Tensor, Sequence[Tensor]]],
    columns: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The sum of `function(*columns)` over chunks of rows.

    Args:
        function: a sum over the rows it is given, and gradients of it.
        columns: `[S, B, ...]` each.
    """
    num_seeds, rows_at_once = columns[0].shape[:2]
    if columns[0].is_cpu:
        rows_at_once = max(MIN_CPU_CHUNK, CPU_CHUNK // num_seeds)
    chunks = zip(*(column.split(rows_at_once, dim=1) for column in columns), strict=True)
    total, gradients = function(*next(chunks))
    gradients = list(gradients)
    for chunk in chunks:
        more, more_gradients = function(*chunk)
        total = total + more
        torch._foreach_add_(gradients, list(more_gradients))
    return total, gradients
