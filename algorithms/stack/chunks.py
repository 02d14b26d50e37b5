"""Sums and maps over many rows, on a CPU some at a time: only those rows' activations are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Rows at once on a CPU, over all seeds: for COMBO's 30 actions of a state and MOBILE's 50 samples,
# few enough that their activations stay in the cache, and enough for two threads.
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
    rows_at_once = _rows_at_once(columns[0])
    chunks = zip(*(column.split(rows_at_once, dim=1) for column in columns), strict=True)
    total, gradients = function(*next(chunks))
    gradients = list(gradients)
    for chunk in chunks:
        more, more_gradients = function(*chunk)
        total = total + more
        torch._foreach_add_(gradients, list(more_gradients))
    return total, gradients


def map_over_chunks(function: Callable[..., Tensor], columns: Sequence[Tensor]) -> Tensor:
    """`function(*columns)`, whose value at a row `[S, B, ...]` depends on that row alone.

    Args:
        function: of the same rows of every column.
        columns: `[S, B, ...]` each.
    """
    # Chunks of equal length, or of two: every length is compiled anew.
    count = -(-columns[0].shape[1] // _rows_at_once(columns[0]))
    chunks = zip(*(column.tensor_split(count, dim=1) for column in columns), strict=True)
    return torch.cat([function(*chunk) for chunk in chunks], dim=1)


def _rows_at_once(column: Tensor) -> int:
    num_seeds, num_rows = column.shape[:2]
    return max(MIN_CPU_CHUNK, CPU_CHUNK // num_seeds) if column.is_cpu else num_rows
