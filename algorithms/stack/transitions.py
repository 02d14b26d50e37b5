"""Transition batches, and the ring buffer that keeps model rollouts on the device."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Transition(NamedTuple):
    """Transitions with any leading axes, for example `[n]` or `[S, B]`.

    `terminal` is 1 where the episode truly ended; a time limit is not an end
    (bootstrapping continues through it).
    """

    obs: Tensor  # [..., O]
    action: Tensor  # [..., A]
    reward: Tensor  # [...]
    next_obs: Tensor  # [..., O]
    terminal: Tensor  # [...]

    @property
    def rows(self) -> int:
        """Size of the last leading axis."""
        return self.reward.shape[-1]

    @classmethod
    def from_numpy(cls, data: Any) -> Transition:
        """From any object with these five arrays as attributes, sharing their memory."""
        arrays = [getattr(data, name) for name in cls._fields]
        rows = data.obs.base
        width = 2 * data.obs.shape[1] + data.action.shape[1] + 2
        if isinstance(rows, np.ndarray) and rows.shape == (len(data.obs), width):
            together = unpack(torch.from_numpy(rows), data.obs.shape[1], data.action.shape[1])
            addresses = [array.ctypes.data for array in arrays]
            if [tensor.data_ptr() for tensor in together] == addresses:
                return together  # of one storage, which `packed_in_place` needs
        return cls(*map(torch.from_numpy, arrays))

    def to(self, device: torch.device | str) -> Transition:
        return Transition(*(x.to(device) for x in self))

    def pack(self) -> Tensor:
        """One row `[obs, action, reward, next_obs, terminal]` per transition: `[..., 2 O + A + 2]`.

        A packed batch is gathered with one index operation instead of five.
        """
        return torch.cat(self._columns, dim=-1)

    def packed_in_place(self) -> Tensor:
        """As `pack`, without a copy of what lies in memory as such rows already."""
        columns = self._columns
        width = sum(column.shape[-1] for column in columns)
        address = columns[0].data_ptr()
        for column in columns:
            side_by_side = column.stride() == (width, 1) and column.data_ptr() == address
            if not side_by_side or column.dtype != self.obs.dtype:
                return self.pack()
            address += column.shape[-1] * column.element_size()
        return self.obs.as_strided((len(self.obs), width), (width, 1))

    @property
    def _columns(self) -> list[Tensor]:
        reward, terminal = self.reward[..., None], self.terminal[..., None]
        return [self.obs, self.action, reward, self.next_obs, terminal]


def unpack(rows: Tensor, obs_dim: int, action_dim: int) -> Transition:
    """The inverse of `Transition.pack`, as views."""
    obs, action, reward, next_obs, terminal = rows.split(
        [obs_dim, action_dim, 1, obs_dim, 1], dim=-1
    )
    return Transition(obs, action, reward.squeeze(-1), next_obs, terminal.squeeze(-1))


class RingBuffer:
    """Packed transitions `[S, capacity, width]`, the oldest overwritten first.

    Every seed has its own fill level and write position, because rollouts of
    different seeds terminate at different rows.
    """

    def __init__(
        self, num_seeds: int, capacity: int, width: int, device: torch.device | str
    ) -> None:
        self.capacity = capacity
        self.rows_SNW = torch.zeros(num_seeds, capacity, width, device=device)
        self.size_S = torch.zeros(num_seeds, dtype=torch.long, device=device)
        self.position_S = torch.zeros(num_seeds, dtype=torch.long, device=device)

    def add(self, rows_SNW: Tensor, keep_SN: Tensor) -> None:
        """Append the rows where `keep_SN` is true, in order, seed by seed."""
        count_SN = keep_SN.long().cumsum(dim=1)
        target_SN = (self.position_S[:, None] + count_SN - 1) % self.capacity
        seed, row = keep_SN.nonzero(as_tuple=True)
        self.rows_SNW[seed, target_SN[seed, row]] = rows_SNW[seed, row]
        added_S = count_SN[:, -1]
        self.position_S = (self.position_S + added_S) % self.capacity
        self.size_S = torch.minimum(
            self.size_S + added_S, torch.full_like(self.size_S, self.capacity)
        )
