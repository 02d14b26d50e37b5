"""Packing, and the ring buffer against a list."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.stack.randomness import randint_below, seed_generators
from algorithms.stack.transitions import RingBuffer, Transition, unpack


@settings(max_examples=25, deadline=None)
@given(
    lead=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    obs_dim=st.integers(1, 5),
    action_dim=st.integers(1, 3),
)
def test_unpack_is_the_inverse_of_pack(lead, obs_dim, action_dim):
    batch = Transition(
        torch.randn(*lead, obs_dim),
        torch.randn(*lead, action_dim),
        torch.randn(*lead),
        torch.randn(*lead, obs_dim),
        torch.randint(2, lead).float(),
    )
    rows = batch.pack()
    assert rows.shape == (*lead, 2 * obs_dim + action_dim + 2)
    assert batch.rows == lead[-1]
    for before, after in zip(batch, unpack(rows, obs_dim, action_dim), strict=True):
        assert torch.equal(before, after)


def test_from_numpy_takes_the_fields_by_name():
    class Data:
        timeout = np.zeros(2, dtype=bool)
        terminal = np.array([0, 1], dtype=np.float32)
        next_obs = np.full((2, 3), 3, dtype=np.float32)
        reward = np.full(2, 2, dtype=np.float32)
        action = np.full((2, 1), 1, dtype=np.float32)
        obs = np.zeros((2, 3), dtype=np.float32)

    batch = Transition.from_numpy(Data)
    assert batch.pack().tolist() == [[0, 0, 0, 1, 2, 3, 3, 3, 0], [0, 0, 0, 1, 2, 3, 3, 3, 1]]


@st.composite
def additions(draw):
    num_seeds, capacity = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    masks = draw(
        st.lists(
            st.integers(1, capacity).flatmap(
                lambda n: st.lists(
                    st.lists(st.booleans(), min_size=n, max_size=n),
                    min_size=num_seeds,
                    max_size=num_seeds,
                )
            ),
            max_size=8,
        )
    )
    return num_seeds, capacity, masks


@settings(max_examples=60, deadline=None)
@given(additions())
def test_ring_buffer_keeps_the_last_rows_of_every_seed(case):
    num_seeds, capacity, masks = case
    buffer = RingBuffer(num_seeds, capacity, 2, "cpu")
    buffer.rows_SNW.fill_(torch.nan)  # what was never written must never be read
    written = [[] for _ in range(num_seeds)]
    number = 0
    for mask in masks:
        keep = torch.tensor(mask)
        rows = torch.arange(number, number + keep.numel() * 2.0).view(*keep.shape, 2)
        number += keep.numel() * 2
        buffer.add(rows, keep)
        for s in range(num_seeds):
            written[s] += [row for row, k in zip(rows[s].tolist(), mask[s], strict=True) if k]
    for s in range(num_seeds):
        size, position = int(buffer.size_S[s]), int(buffer.position_S[s])
        last = written[s][-capacity:]
        assert size == len(last)
        assert position == len(written[s]) % capacity
        # From the oldest: it lies at the write position once the ring is full.
        oldest = position if size == capacity else 0
        order = [(oldest + k) % capacity for k in range(size)]
        assert buffer.rows_SNW[s, order].tolist() == last


def test_indices_below_a_tensor_reach_all_rows_of_each_seed_and_none_beyond():
    sizes = torch.tensor([1, 3, 7])
    index = randint_below(seed_generators(1, [0, 1, 2]), sizes, 400)
    for drawn, size in zip(index, sizes.tolist(), strict=True):
        assert sorted(set(drawn.tolist())) == list(range(size))
