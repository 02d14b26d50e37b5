"""Rows some at a time give what all of them give at once."""

import pytest
import torch

from algorithms.stack import chunks
from algorithms.stack.chunks import map_over_chunks


@pytest.mark.parametrize("rows", [1, 4, 5, 23])
def test_a_map_over_chunks_is_the_map_of_all_rows(monkeypatch, rows):
    monkeypatch.setattr(chunks, "CPU_CHUNK", 8)
    monkeypatch.setattr(chunks, "MIN_CPU_CHUNK", 1)
    x, y = torch.randn(2, rows, 3), torch.randn(2, rows)
    lengths = []

    def function(x, y):
        lengths.append(x.shape[1])
        return x.sum(dim=2) * y

    assert torch.equal(map_over_chunks(function, (x, y)), x.sum(dim=2) * y)
    assert max(lengths) <= 4  # of each of two seeds
    assert sum(lengths) == rows
    assert max(lengths) - min(lengths) <= 1  # two lengths, or more would be compiled
