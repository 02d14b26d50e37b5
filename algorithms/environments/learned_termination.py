"""Which states end an episode, learned from data where nobody has written it down."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.errors import UserError
from algorithms.stack.threads import one_thread
from algorithms.stack.transitions import Transition

SEED = 0x7E12
STEPS, BATCH_SIZE, LR, HIDDEN = 2_000, 256, 3e-3, 64
MOST_ROWS = 400_000  # of those that go on; each that ends is taken


class LearnedTermination(nn.Module):
    """A classifier of next observations `[..., O]` -> `[...]` booleans.

    Ends are rare, and one that is missed costs more than its share: a policy learns to go where
    the model lets it live on. So it says yes from odds on that lie half-way, on the scale of the
    logit, between those of the data and those of classes of equal size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, obs_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(obs_dim))
        self.register_buffer("std", torch.ones(obs_dim))
        self.layers = nn.Sequential(
            nn.Linear(obs_dim, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, 1),
        )

    def logit(self, next_obs: Tensor) -> Tensor:
        """Of the probability that the episode ends there, `[...]`."""
        normalised = ((next_obs - self.mean) / self.std).clamp(-20.0, 20.0)
        output: Tensor = self.layers(normalised)
        return output.squeeze(-1)

    def forward(self, next_obs: Tensor) -> Tensor:
        with torch.autocast(next_obs.device.type, enabled=False):  # not in bfloat16
            ends = self.logit(next_obs) > 0.0
        # A model that ran away to inf or nan has left every state that there is data of.
        return ends | ~next_obs.isfinite().all(dim=-1)


class Never(nn.Module):
    """No state ends an episode, because none of the data's does."""

    def forward(self, next_obs: Tensor) -> Tensor:
        return ~next_obs.isfinite().all(dim=-1)


def learn_termination(data: Transition) -> nn.Module:
    """A termination function from the `terminal` of transitions `[n]`, on the CPU.

    It follows from the data alone: the same in every process. Half of every batch are ends.

    Raises:
        UserError: every row is terminal, so nothing is known of states that end nothing.
    """
    ends, others = data.terminal.bool(), ~data.terminal.bool()
    if not ends.any():
        return Never()
    if not others.any():
        raise UserError("every row of the data is terminal: no termination can be learned of it")
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.default_generator.manual_seed(SEED)
        model = LearnedTermination(data.obs.shape[-1])
        next_obs = data.next_obs.float()
        model.mean.copy_(next_obs.mean(dim=0))
        std = next_obs.std(dim=0)
        model.std.copy_(torch.where(std < 1e-6, torch.ones_like(std), std))
        yes = next_obs[ends]
        # A state that begins a step that does not end is one that went on, too.
        no = next_obs[others][torch.randperm(int(others.sum()))[:MOST_ROWS]]
        optimizer = torch.optim.Adam(model.parameters(), LR)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        half = BATCH_SIZE // 2
        target = torch.cat([torch.ones(half), torch.zeros(half)])
        for _ in range(STEPS):
            rows = [x[torch.randint(len(x), (half,))] for x in (yes, no)]
            loss = F.binary_cross_entropy_with_logits(model.logit(torch.cat(rows)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    # Trained on odds of 1 to 1; the data's are much lower. Held-out rows of Hopper, 20,000 of
    # medium: at the data's odds it finds a third of the ends, half-way 93 % with 0.1 % of the
    # other rows taken for ends.
    last = model.layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias.add_(0.5 * math.log(float(ends.sum()) / float(others.sum())))
    return model.requires_grad_(requires_grad=False)
