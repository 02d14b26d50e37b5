"""Model-based offline training without Ray: one epoch is rollouts, then gradient steps.

`OfflineTraining` owns everything that lives on the device, for S seeds at once, and asks an
agent for all that is an algorithm's own. Python touches no tensor's value inside an epoch:
statistics come to the host once, at its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from algorithms.dynamics.rollout import PENALTY_QUANTILES, Rollout, rollout
from algorithms.sac.agent import SAC
from algorithms.sac.networks import SACNetworks
from algorithms.stack.cuda_graphs import Replayed
from algorithms.stack.randomness import (
    generator_states,
    randint,
    randint_below,
    seed_generators,
    set_generator_states,
)
from algorithms.stack.state import State, replace_seeds
from algorithms.stack.transitions import RingBuffer, Transition, unpack

TRAINING_STREAM, NETWORK_STREAM = 0x0FF1, 0x0FF2
SCORE_WINDOW = 10
DIVERGED_Q = 10.0  # times the largest |Q| that the rewards allow
DESCRIBED_ROWS = 2_000  # of a rollout's last step, whose Q is reported


class OfflineTraining:
    """The inner loop of MOPO (algorithm 2) and COMBO (algorithm 1), one ensemble per seed.

    Args:
        agent: actor and critics of S seeds, how they learn from a batch, and their ensemble.
        data: the real transitions `[n]`.
        seeds: one number per seed; each decides its own random numbers and nothing else.
        termination_fn: next_obs `[..., O]` -> done `[...]`.
    """

    def __init__(
        self,
        agent: SAC,
        data: Transition,
        seeds: Sequence[int],
        termination_fn: Callable[[Tensor], Tensor],
    ) -> None:
        device = agent.networks.log_alpha_S.device
        settings = agent.settings
        self.agent, self.settings, self.seeds = agent, settings, tuple(seeds)
        self.data_NW = data.to(device).packed_in_place()
        self.termination_fn = termination_fn
        self.ensemble = agent.ensemble if settings.uses_model else None
        if settings.uses_model:
            assert self.ensemble is not None
            assert self.ensemble.num_seeds == len(seeds)
        rows_per_epoch = settings.rollout_batch_size * settings.rollout_length
        capacity = settings.rollout_retain_epochs * rows_per_epoch if settings.uses_model else 0
        self.buffer = RingBuffer(len(seeds), capacity, self.data_NW.shape[1], device)
        self._seed_S1 = torch.arange(len(seeds), device=device)[:, None]
        self.generators = seed_generators(TRAINING_STREAM, seeds, device)
        self.epoch = 0
        self.seconds = 0.0  # wall time of training and evaluation, over all runs
        self.scores_SK = torch.full((len(seeds), SCORE_WINDOW), torch.nan)
        self.diverged_S = torch.zeros(len(seeds), dtype=torch.bool)

    @property
    def networks(self) -> SACNetworks:
        return self.agent.networks

    def train_epoch(self) -> dict[str, Tensor]:
        """Extend the model buffer, then take `gradient_steps_per_epoch` steps.

        A seed whose Q turns non-finite or exceeds `DIVERGED_Q` times what the rewards allow
        has diverged: it keeps the networks it had before that epoch, for good. Seeds share
        nothing, so the others do not notice.

        Returns means over the epoch, one value per seed, `[S]`, on the host; NaN for a
        seed that has diverged.
        """
        before = {k: v.clone() for k, v in self.agent.state_dict().items()}
        self.agent.begin_epoch(self._actor_lr())
        model = self._extend_buffer() if self.settings.uses_model else None
        statistics, largest_q_S = self._gradient_steps()
        if model is not None:
            statistics |= self._describe(model)
        self.epoch += 1
        statistics = {name: value.cpu() for name, value in statistics.items()}
        usable_S = torch.stack(list(statistics.values())).isfinite().all(dim=0)
        bound_S = DIVERGED_Q * self.agent.largest_q(statistics)
        usable_S &= largest_q_S.cpu() <= bound_S  # false for NaN
        if self.settings.uses_model:
            usable_S &= (self.buffer.size_S > 0).cpu()
        self.diverged_S |= ~usable_S
        if self.diverged_S.any():
            self.agent.load_state_dict(
                replace_seeds(self.agent.state_dict(), before, self.diverged_S)
            )
        for value in statistics.values():
            value[self.diverged_S] = torch.nan
        return {**statistics, "diverged": self.diverged_S.float()}

    def _autocast(self) -> torch.autocast:
        """Within it, matrix products are of `matmul_dtype`."""
        return torch.autocast(
            self.data_NW.device.type,
            dtype=torch.bfloat16,
            enabled=self.settings.matmul_dtype == "bfloat16",
            cache_enabled=False,  # it would keep weights from before a step
        )

    def _actor_lr(self) -> float:
        settings = self.settings
        if settings.actor_lr_schedule == "constant":
            return settings.actor_lr
        return settings.actor_lr * 0.5 * (1.0 + math.cos(math.pi * self.epoch / settings.epochs))

    def _gradient_steps(self) -> tuple[dict[str, Tensor], Tensor]:
        """The epoch's steps; means over them, and the largest mean |Q| of a batch, `[S]` each."""
        num_real, batch_size = self.settings.real_rows, self.settings.batch_size
        parts = {"q_data": slice(0, num_real), "q_model": slice(num_real, batch_size)}
        parts = {name: part for name, part in parts.items() if part.start < part.stop}
        sums: dict[str, Tensor] = {}
        largest_q_S = torch.zeros(len(self.seeds), device=self.data_NW.device)

        def gradient_step(real_SB: Tensor, model_SB: Tensor, *noise: Tensor) -> None:
            step = self.agent.gradient_step(self._batch(real_SB, model_SB), noise)
            q = {name: step.q_SB[:, part].mean(dim=1) for name, part in parts.items()}
            means = step.means | q
            if not sums:
                sums.update((name, torch.zeros_like(value)) for name, value in means.items())
            torch._foreach_add_(list(sums.values()), list(means.values()))
            torch.maximum(largest_q_S, step.q_SB.abs().mean(dim=1), out=largest_q_S)

        step = Replayed(gradient_step, lambda: self.agent.phase)
        with self._autocast():
            for draw in self._draws(num_real):
                step(*draw)
                self.agent.steps += 1
        steps = self.settings.gradient_steps_per_epoch
        return {name: value / steps for name, value in sums.items()}, largest_q_S

    @torch.no_grad()
    def _describe(self, model: Rollout) -> dict[str, Tensor]:
        """What the epoch's rollouts were like, and what the critics now think of their ends."""
        obs_dim, action_dim = self.networks.obs_dim, self.networks.action_dim
        stride = -(-model.last_keep_SN.shape[1] // DESCRIBED_ROWS)
        last = unpack(model.last_rows_SNW[:, ::stride], obs_dim, action_dim)
        kept_SN = model.last_keep_SN[:, ::stride]
        q_SN = self.networks.q(last.obs, last.action).mean(dim=1)
        q_last_S = torch.where(kept_SN, q_SN, 0.0).sum(dim=1) / kept_SN.sum(dim=1).clamp(min=1)
        return {
            "q_last_step": q_last_S,
            "model_reward": model.reward_S,
            "rollout_terminated": model.terminated_S,
            **self.agent.describe_rollout(model),
        }

    def record_scores(self, score_S: Tensor) -> None:
        """Enter the normalised scores of an evaluation, the newest last."""
        self.scores_SK = torch.cat([self.scores_SK[:, 1:], score_S.float()[:, None]], dim=1)

    def run_score(self, diverged_S: Tensor | None = None) -> Tensor:
        """Mean of the last `SCORE_WINDOW` evaluations, or of as many as there are, `[S]`.

        Never the best one: a run's score may not be chosen after the fact. A seed
        that diverged has no score, however well it did before.

        Args:
            diverged_S: the seeds that had diverged when the last evaluation was; by default
                those that have diverged by now.
        """
        if diverged_S is None:
            diverged_S = self.diverged_S
        unfilled_SK = self.scores_SK.isnan().long().cumprod(dim=1).bool()  # slots before the first
        total_S = self.scores_SK.masked_fill(unfilled_SK, 0.0).sum(dim=1)
        score_S = total_S / (~unfilled_SK).sum(dim=1)
        return score_S.masked_fill(diverged_S, torch.nan)

    def _extend_buffer(self) -> Rollout:
        """Rollouts with the current policy from random real states, into the ring buffer."""
        assert self.ensemble is not None
        settings, agent = self.settings, self.agent
        start = randint(self.generators, self.data_NW.shape[0], settings.rollout_batch_size)
        with self._autocast():
            model = rollout(
                self.ensemble,
                self.networks.policy,
                self.data_NW[start, : self.networks.obs_dim],
                self.generators,
                length=settings.rollout_length,
                penalty=agent.penalty.formula,
                penalty_coef_S=agent.penalty_coef_S,
                termination_fn=self.termination_fn,
                own_member_only=agent.penalty.own_member_only,
                quantiles=PENALTY_QUANTILES,
                call=agent.call,
            )
        self.buffer.add(model.rows_SNW, model.keep_SN)
        return model

    def _draws(self, num_real: int) -> Iterator[tuple[Tensor, ...]]:
        """What every step of the epoch draws: real rows, the model's rows, the step's noise."""
        settings = self.settings
        num_model = settings.batch_size - num_real
        steps_per_draw = self.agent.steps_per_draw
        for begin in range(0, settings.gradient_steps_per_epoch, steps_per_draw):
            steps = min(steps_per_draw, settings.gradient_steps_per_epoch - begin)
            real_SNB = randint(self.generators, self.data_NW.shape[0], steps, num_real)
            model_SNB = randint_below(self.generators, self.buffer.size_S, steps, num_model)
            noise = self.agent.draw_noise(self.generators, steps)
            for n in range(steps):
                yield real_SNB[:, n], model_SNB[:, n], *(x[:, n] for x in noise)

    def _batch(self, real_SB: Tensor, model_SB: Tensor) -> Transition:
        """The batch `[S, B]` of these rows of the data and of the buffer, real rows first."""
        rows = self.data_NW[real_SB]
        if model_SB.shape[1]:
            model_rows = self.buffer.rows_SNW[self._seed_S1, model_SB]
            rows = torch.cat([rows, model_rows], dim=1)
        return unpack(rows, self.networks.obs_dim, self.networks.action_dim)

    def state_dict(self) -> State:
        """All that training changes, as flat tensors; the seed axis is first in all but 0-d ones.

        Rows of the buffer that were never written are left out.
        """
        filled = int(self.buffer.size_S.max())
        return {
            **self.agent.state_dict(),
            "buffer/rows": self.buffer.rows_SNW[:, :filled],
            "buffer/size": self.buffer.size_S,
            "buffer/position": self.buffer.position_S,
            "generators": generator_states(self.generators),
            "scores": self.scores_SK,
            "diverged": self.diverged_S,
            "epoch": torch.tensor(self.epoch),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.agent.load_state_dict(state)
        rows = state["buffer/rows"]
        self.buffer.rows_SNW[:, : rows.shape[1]] = rows.to(self.data_NW.device)
        self.buffer.size_S.copy_(state["buffer/size"])
        self.buffer.position_S.copy_(state["buffer/position"])
        set_generator_states(self.generators, state["generators"])
        self.scores_SK = state["scores"].cpu().clone()
        self.diverged_S = state["diverged"].cpu().clone()
        self.epoch = int(state["epoch"])
        self.seconds = float(state["seconds"])
