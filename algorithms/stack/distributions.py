"""The policies' action distribution."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_STD_BOUNDS = (-5.0, 2.0)


class TanhGaussian(NamedTuple):
    """a = tanh(u), u ~ N(mean, std^2): actions in (-1, 1)^A."""

    mean: Tensor  # [..., A]
    log_std: Tensor  # [..., A]

    @classmethod
    def from_output(cls, output: Tensor) -> TanhGaussian:
        """From an actor's output `[..., 2 A]`: the mean, then the log-std, clamped."""
        mean, log_std = output.chunk(2, dim=-1)
        return cls(mean, log_std.clamp(*LOG_STD_BOUNDS))

    def mode(self) -> Tensor:
        """The deterministic action of evaluation, `[..., A]`."""
        return torch.tanh(self.mean)

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reparametrised action `[..., A]` and log-density `[...]`; `noise` is standard normal."""
        u = self.mean + self.log_std.exp() * noise
        return torch.tanh(u), self._log_prob(noise, u)

    def log_prob(self, u: Tensor) -> Tensor:
        """Log-density `[...]` of the action tanh(u); `u` tells actions apart that round to 1."""
        return self._log_prob((u - self.mean) * (-self.log_std).exp(), u)

    def _log_prob(self, noise: Tensor, u: Tensor) -> Tensor:
        # log(1 - tanh(u)^2) is written as 2 (log 2 - u - softplus(-2 u)), which does
        # not underflow (SAC, appendix C, eq. 26, in the stable form).
        log_prob = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        return (log_prob - 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))).sum(dim=-1)
