"""Model-based offline training without Ray: one epoch is rollouts, then gradient steps.

`OfflineTraining` owns everything that lives on the device, for S seeds at once.
Python touches no tensor's value inside an epoch: statistics come to the host
once, at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.dynamics.rollout import Rollout, rollout
from algorithms.penalties import PENALTIES
from algorithms.randomness import (
    generator_states,
    randint,
    randint_below,
    randn,
    seed_generators,
    set_generator_states,
)
from algorithms.sac import (
    SACNetworks,
    SACOptimizers,
    StepNoise,
    StepStatistics,
    gradient_step,
)
from algorithms.settings import MOPOSettings
from algorithms.transitions import RingBuffer, Transition, unpack

TRAINING_STREAM, NETWORK_STREAM = 0x0FF1, 0x0FF2
SCORE_WINDOW = 10

State = dict[str, Tensor]


class OfflineTraining:
    """MOPO's inner loop (algorithm 2) on one data set, one ensemble per seed.

    Args:
        networks: actor and critics of S seeds, on `device`.
        data: the real transitions `[n]`.
        ensemble: trained dynamics of the same S seeds.
        settings: hyperparameters.
        seeds: one number per seed; each decides its own random numbers and nothing else.
        termination_fn: next_obs `[..., O]` -> done `[...]`.
        device: where everything lives.
    """

    def __init__(
        self,
        networks: SACNetworks,
        data: Transition,
        ensemble: DynamicsEnsemble,
        settings: MOPOSettings,
        seeds: Sequence[int],
        termination_fn: Callable[[Tensor], Tensor],
        device: torch.device | str = "cpu",
    ) -> None:
        assert ensemble.num_seeds == len(seeds)
        self.settings, self.seeds = settings, tuple(seeds)
        self.networks = networks.to(device)
        self.optimizers = SACOptimizers.create(networks, settings)
        self.data_NW = data.to(device).pack()
        self.ensemble = ensemble.to(device).requires_grad_(False)
        self.termination_fn = termination_fn
        rows_per_epoch = settings.rollout_batch_size * settings.rollout_length
        self.buffer = RingBuffer(
            len(seeds),
            settings.rollout_retain_epochs * rows_per_epoch,
            self.data_NW.shape[1],
            device,
        )
        self.generators = seed_generators(TRAINING_STREAM, seeds, device)
        self.epoch = 0
        self.seconds = 0.0  # wall time of training and evaluation, over all runs
        self.scores_SK = torch.full((len(seeds), SCORE_WINDOW), torch.nan)

    def train_epoch(self) -> dict[str, Tensor]:
        """Extend the model buffer, then take `gradient_steps_per_epoch` steps.

        Returns means over the epoch, one value per seed, `[S]`, on the host.
        """
        model = self._extend_buffer()
        num_real = self.settings.real_rows
        names = ("critic_loss", "actor_loss", "alpha", "entropy", "q_data", "q_model")
        sums = torch.zeros(len(names), len(self.seeds), device=self.data_NW.device)
        for batch, noise in self._batches(num_real):
            step = self._gradient_step(batch, noise)
            q_data_S = step.q_SB[:, :num_real].mean(dim=1)
            q_model_S = step.q_SB[:, num_real:].mean(dim=1)
            sums += torch.stack([*step[:4], q_data_S, q_model_S])
        self.epoch += 1
        means = sums / self.settings.gradient_steps_per_epoch
        statistics = dict(zip(names, means, strict=True))
        if num_real == 0:
            del statistics["q_data"]
        statistics |= {
            "penalty": model.penalty_S,
            "model_reward": model.reward_S,
            "rollout_terminated": model.terminated_S,
        }
        return {name: value.cpu() for name, value in statistics.items()}

    def record_scores(self, score_S: Tensor) -> None:
        """Enter the normalised scores of an evaluation, the newest last."""
        self.scores_SK = torch.cat([self.scores_SK[:, 1:], score_S.float()[:, None]], dim=1)

    def run_score(self) -> Tensor:
        """Mean of the last `SCORE_WINDOW` evaluations, or of as many as there are, `[S]`.

        Never the best one: a run's score may not be chosen after the fact. A seed
        whose policy turned NaN has no score, however well it did before.
        """
        unfilled_SK = self.scores_SK.isnan().long().cumprod(dim=1).bool()  # slots before the first
        total_S = self.scores_SK.masked_fill(unfilled_SK, 0.0).sum(dim=1)
        return total_S / (~unfilled_SK).sum(dim=1)

    def _extend_buffer(self) -> Rollout:
        """Rollouts with the current policy from random real states, into the ring buffer."""
        settings = self.settings
        start = randint(self.generators, self.data_NW.shape[0], settings.rollout_batch_size)
        model = rollout(
            self.ensemble,
            self.networks.policy,
            self.data_NW[start, : self.networks.obs_dim],
            self.generators,
            length=settings.rollout_length,
            penalty=PENALTIES[settings.penalty],
            penalty_coef=settings.penalty_coef,
            termination_fn=self.termination_fn,
        )
        self.buffer.add(model.rows_SNW, model.keep_SN)
        return model

    def _batches(self, num_real: int) -> Iterator[tuple[Transition, StepNoise]]:
        """The epoch's batches `[S, B]`, real rows first, and their noise; drawn all at once."""
        steps, batch_size = self.settings.gradient_steps_per_epoch, self.settings.batch_size
        obs_dim, action_dim = self.networks.obs_dim, self.networks.action_dim
        real_SNB = randint(self.generators, self.data_NW.shape[0], steps, num_real)
        model_SNB = randint_below(self.generators, self.buffer.size_S, steps, batch_size - num_real)
        noise_SN2BA = randn(self.generators, steps, 2, batch_size, action_dim)
        seed_S1 = torch.arange(len(self.seeds), device=self.data_NW.device)[:, None]
        for n in range(steps):
            rows = torch.cat(
                [self.data_NW[real_SNB[:, n]], self.buffer.rows_SNW[seed_S1, model_SNB[:, n]]],
                dim=1,
            )
            noise = StepNoise(noise_SN2BA[:, n, 0], noise_SN2BA[:, n, 1])
            yield unpack(rows, obs_dim, action_dim), noise

    def _gradient_step(self, batch: Transition, noise: StepNoise) -> StepStatistics:
        return gradient_step(self.networks, self.optimizers, self.settings, batch, noise)

    def state_dict(self) -> State:
        """All that training changes, as flat tensors; the seed axis is first in all but 0-d ones.

        Rows of the buffer that were never written are left out.
        """
        filled = int(self.buffer.size_S.max())
        state = {f"networks/{k}": v.detach() for k, v in self.networks.state_dict().items()}
        for name, optimizer in self.optimizers._asdict().items():
            for index, values in optimizer.state_dict()["state"].items():
                state |= {f"optimizers/{name}/{index}/{k}": v for k, v in values.items()}
        return {
            **state,
            "buffer/rows": self.buffer.rows_SNW[:, :filled],
            "buffer/size": self.buffer.size_S,
            "buffer/position": self.buffer.position_S,
            "generators": generator_states(self.generators),
            "scores": self.scores_SK,
            "epoch": torch.tensor(self.epoch),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.networks.load_state_dict(_below(state, "networks/"))
        for name, optimizer in self.optimizers._asdict().items():
            values: dict[int, dict[str, Any]] = {}
            for key, value in _below(state, f"optimizers/{name}/").items():
                index, field = key.split("/")
                values.setdefault(int(index), {})[field] = value.clone()
            optimizer.load_state_dict(
                {"state": values, "param_groups": optimizer.state_dict()["param_groups"]}
            )
        rows = state["buffer/rows"]
        self.buffer.rows_SNW[:, : rows.shape[1]] = rows.to(self.data_NW.device)
        self.buffer.size_S.copy_(state["buffer/size"])
        self.buffer.position_S.copy_(state["buffer/position"])
        set_generator_states(self.generators, state["generators"])
        self.scores_SK = state["scores"].cpu().clone()
        self.epoch = int(state["epoch"])
        self.seconds = float(state["seconds"])


def select_seeds(state: State, positions: Sequence[int]) -> State:
    """The state of some seeds of a stack, in the given order."""
    index = torch.tensor(list(positions))
    return {
        k: v if v.dim() == 0 else v.index_select(0, index.to(v.device)) for k, v in state.items()
    }


def _below(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
