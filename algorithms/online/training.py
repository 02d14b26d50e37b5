"""Online SAC: the policies from which the bundled data sets are rolled out.

The same `sac.gradient_step` that the offline algorithms use, fed from a real
environment instead of a data set. Levels (actor weights with their measured
return) are written along the way; the training resumes from its checkpoint.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from algorithms.environments.episodes import Evaluator
from algorithms.environments.table import make_env, normalized_score
from algorithms.errors import UserError
from algorithms.sac.agent import SACOptimizers, StepNoise, gradient_step
from algorithms.sac.networks import SACNetworks
from algorithms.settings import SACSettings
from algorithms.stack.randomness import stream_seed
from algorithms.stack.transitions import RingBuffer, Transition, unpack

log = logging.getLogger(__name__)
ONLINE_STREAM = 0x0B1E


@dataclass(frozen=True)
class OnlineSettings:
    """One online training. Steps are environment steps unless said otherwise."""

    env_id: str = "Hopper-v4"
    seed: int = 0
    total_steps: int = 1_000_000
    num_envs: int = 4
    updates_per_step: float = 0.5
    batch_size: int = 128
    learning_starts: int = 10_000
    level_every: int = 20_000
    level_episodes: int = 20
    checkpoint_every_s: float = 300.0
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    alpha_lr: float = 3e-4


def train_online(settings: OnlineSettings, folder: Path) -> None:
    """Train until `total_steps`, continuing from `folder/checkpoint.pt` where there is one.

    Writes `folder/level-<steps>.safetensors` (the actor) and one line per level to
    `folder/levels.jsonl`.

    Raises:
        UserError: the checkpoint is of a training with other settings; only `total_steps` may grow.
    """
    folder.mkdir(parents=True, exist_ok=True)
    training = _OnlineTraining(settings)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["settings"] | {"total_steps": 0} != asdict(settings) | {"total_steps": 0}:
            raise UserError(f"{folder} holds a training with other settings: choose another")
        training.load_state_dict(state)
        log.info("continuing at %d steps", training.steps)
    last_checkpoint = time.monotonic()
    next_level = (training.steps // settings.level_every + 1) * settings.level_every
    with Evaluator(settings.env_id, 1, settings.level_episodes) as evaluator:
        while training.steps < settings.total_steps:
            training.advance()
            if training.steps >= next_level:
                next_level += settings.level_every
                _write_level(training, evaluator, folder)
            if time.monotonic() - last_checkpoint > settings.checkpoint_every_s:
                _save(training, checkpoint)
                last_checkpoint = time.monotonic()
    _save(training, checkpoint)


class _OnlineTraining:
    def __init__(self, settings: OnlineSettings) -> None:
        self.settings = settings
        self.sac = SACSettings(
            actor_lr=settings.actor_lr, critic_lr=settings.critic_lr, alpha_lr=settings.alpha_lr
        )
        self.envs: Any = gymnasium.vector.SyncVectorEnv(
            [lambda: make_env(settings.env_id)] * settings.num_envs,
            autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
        )
        self.obs_dim = self.envs.single_observation_space.shape[0]  # type: ignore[index]
        self.action_dim = self.envs.single_action_space.shape[0]  # type: ignore[index]
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.networks = SACNetworks(self.obs_dim, self.action_dim, self.sac, [self.generator])
        self.optimizers = SACOptimizers.create(self.networks, self.sac)
        width = 2 * self.obs_dim + self.action_dim + 2
        self.buffer = RingBuffer(1, 1_000_000, width, "cpu")
        self.steps = 0
        self.updates = 0
        self.obs = self._reset()

    def _reset(self) -> Tensor:
        words = (ONLINE_STREAM, self.settings.seed, self.steps)
        obs, _ = self.envs.reset(
            seed=[stream_seed(*words, e) for e in range(self.settings.num_envs)]
        )
        return torch.from_numpy(obs.astype(np.float32))

    def advance(self) -> None:
        """One step of every environment, then the gradient steps that have become due."""
        num_envs = self.settings.num_envs
        if self.steps < self.settings.learning_starts:
            action = torch.empty(num_envs, self.action_dim).uniform_(
                -1, 1, generator=self.generator
            )
        else:
            noise = torch.randn(1, num_envs, self.action_dim, generator=self.generator)
            with torch.no_grad():
                action = self.networks.policy(self.obs[None]).sample(noise)[0][0]
        next_obs, reward, terminated, truncated, info = self.envs.step(action.numpy())
        final_obs = np.array(next_obs, dtype=np.float32)
        for e in np.flatnonzero(terminated | truncated):
            final_obs[e] = info["final_obs"][e]
        rows = Transition(
            self.obs,
            action,
            torch.from_numpy(reward.astype(np.float32)),
            torch.from_numpy(final_obs),
            torch.from_numpy(terminated.astype(np.float32)),
        ).pack()
        self.buffer.add(rows[None], torch.ones(1, num_envs, dtype=torch.bool))
        self.obs = torch.from_numpy(next_obs.astype(np.float32))
        self.steps += num_envs
        due = int((self.steps - self.settings.learning_starts) * self.settings.updates_per_step)
        while self.updates < due:
            self._update()

    def _update(self) -> None:
        size, batch_size = int(self.buffer.size_S[0]), self.settings.batch_size
        index = torch.randint(size, (batch_size,), generator=self.generator)
        batch = unpack(self.buffer.rows_SNW[:, index], self.obs_dim, self.action_dim)
        noise = torch.randn(2, 1, batch_size, self.action_dim, generator=self.generator)
        gradient_step(self.networks, self.optimizers, self.sac, batch, StepNoise(*noise))
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        filled = int(self.buffer.size_S[0])
        return {
            "settings": asdict(self.settings),
            "networks": self.networks.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "rows": self.buffer.rows_SNW[:, :filled].clone(),
            "position": self.buffer.position_S,
            "steps": self.steps,
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.networks.load_state_dict(state["networks"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        self.generator.set_state(state["generator"])
        filled = state["rows"].shape[1]
        self.buffer.rows_SNW[:, :filled] = state["rows"]
        self.buffer.size_S.fill_(filled)
        self.buffer.position_S = state["position"]
        self.steps, self.updates = state["steps"], state["updates"]
        self.obs = self._reset()  # a simulator's inner state is not kept: episodes start anew


def _write_level(training: _OnlineTraining, evaluator: Evaluator, folder: Path) -> None:
    def policy(obs_SBO: Tensor) -> Tensor:
        return training.networks.policy(obs_SBO).mode()

    returns = evaluator.returns(policy, evaluation=training.steps)
    name = f"level-{training.steps:07d}"
    actor = {k: v.detach().clone() for k, v in training.networks.actor.state_dict().items()}
    save_file(actor, folder / f"{name}.safetensors")
    line = {
        "name": name,
        "steps": training.steps,
        "gradient_steps": training.updates,
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "normalized_score": float(normalized_score(training.settings.env_id, returns.mean())),
        "alpha": float(training.networks.log_alpha_S.detach().exp()),
    }
    with (folder / "levels.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    log.info("%(name)s return %(return_mean).0f +- %(return_std).0f", line)


def _save(training: _OnlineTraining, path: Path) -> None:
    aside = path.with_suffix(".tmp")
    torch.save(training.state_dict(), aside)
    aside.replace(path)
