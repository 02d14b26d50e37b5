"""Rolling a policy out in MuJoCo: the work of one process of `data.bundled.shards.run`.

    python -m algorithms.online.rollout

reads one `Shard` as JSON per line of standard input, writes each shard's
episodes to a file of its own, and reports on standard output: the number of
transitions after every episode, and `done` after every shard.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from algorithms.data.bundled.shards import Shard
from algorithms.data.dataset import OfflineDataset
from algorithms.environments.table import ENVIRONMENTS, make_env
from algorithms.sac.networks import SACNetworks
from algorithms.settings import SACSettings
from algorithms.stack.randomness import stream_seed

# Environments per process, stepped together so that one pass of the policy serves all;
# fewer for a shard that so many episodes of full length would overfill.
LOCKSTEP, FULL_LENGTH = 10, 1000
DTYPES = {"timeout": bool, "qpos": np.float64, "qvel": np.float64}  # all else is float32


def load_policy(path: Path, env_id: str) -> SACNetworks:
    """SAC networks (S = 1) whose actor has the stored weights, in float32."""
    env = ENVIRONMENTS[env_id]
    networks = SACNetworks(env.obs_dim, env.action_dim, SACSettings(), [torch.Generator()])
    networks.actor.load_state_dict(load_file(path))
    return networks


def load_exported(path: Path, env_id: str) -> Callable[[Tensor], Tensor]:
    """A policy that `orchestrator export` wrote: `[B, O] -> [B, A]`, actions in [-1, 1]."""
    row = ENVIRONMENTS[env_id]
    program = torch.export.load(path).module()
    if not row.rescaled_actions:
        return cast("Callable[[Tensor], Tensor]", program)
    return lambda obs: torch.from_numpy(row.to_unit_actions(program(obs).numpy())).float()


def _actions(shard: Shard) -> Callable[[Tensor], Tensor]:
    """The shard's policy, `[B, O] -> [B, A]`; unless deterministic, its actions are sampled."""
    if shard.policy.suffix != ".safetensors":
        return load_exported(shard.policy, shard.env_id)
    networks = load_policy(shard.policy, shard.env_id)
    generator = torch.Generator().manual_seed(stream_seed(*shard.seed_words))

    def act(obs: Tensor) -> Tensor:
        distribution = networks.policy(obs[None])
        if shard.deterministic:
            return distribution.mode()[0]
        noise = torch.randn(1, len(obs), networks.action_dim, generator=generator)
        return distribution.sample(noise)[0][0]

    return act


@torch.inference_mode()
def roll_out(shard: Shard) -> dict[str, np.ndarray]:
    """Whole episodes in the order of their starts, together just over `shard.size` transitions.

    An environment that falls free starts another episode only if those running, at the mean
    length so far, do not suffice; what is started is finished and kept, so short episodes gain
    no weight.

    Returns:
        The arrays of an `OfflineDataset`; with `shard.states` also `qpos` `[n, nq]` and `qvel`
        `[n, nv]` before each action (float64), unless the environment is not MuJoCo's.
    """
    act = _actions(shard)
    lockstep = min(LOCKSTEP, math.ceil(shard.size / FULL_LENGTH))
    envs = [make_env(shard.env_id) for _ in range(lockstep)]
    obs_BO = np.zeros((lockstep, ENVIRONMENTS[shard.env_id].obs_dim), dtype=np.float32)
    states = shard.states and hasattr(envs[0].unwrapped, "set_state")
    episodes: list[list[tuple[object, ...]]] = []  # rows in the order of `names`, below
    running: dict[int, int] = {}  # environment -> episode
    steps, mean_length = 0, 0.0
    while True:
        for e, env in enumerate(envs):
            if e in running:
                continue
            awaited = sum(max(mean_length, len(episodes[i])) for i in running.values())
            if steps + awaited < shard.size:
                seed = stream_seed(*shard.seed_words, len(episodes))
                obs_BO[e], _ = env.reset(seed=seed)
                running[e] = len(episodes)
                episodes.append([])
        if not running:
            break
        action_BA = act(torch.from_numpy(obs_BO)).numpy()
        for e, i in list(running.items()):
            obs, action = obs_BO[e].copy(), action_BA[e].copy()
            state = _state(envs[e]) if states else ()
            obs_BO[e], reward, terminated, truncated, _ = envs[e].step(action)
            timeout = truncated and not terminated
            row = (obs, action, reward, obs_BO[e].copy(), terminated, timeout)
            episodes[i].append((*row, *state))
            if terminated or truncated:
                del running[e]
                steps += len(episodes[i])
                mean_length = steps / (len(episodes) - len(running))
                print(len(episodes[i]), flush=True)  # noqa: T201 - the protocol
    names = OfflineDataset._fields + (("qpos", "qvel") if states else ())
    columns = zip(*(row for episode in episodes for row in episode), strict=True)
    return {
        name: np.array(column, DTYPES.get(name, np.float32))
        for name, column in zip(names, columns, strict=True)
    }


def _state(env: gymnasium.Env[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    data = cast("Any", env.unwrapped).data
    return data.qpos.copy(), data.qvel.copy()


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        shard = Shard.model_validate_json(line)
        arrays: dict[str, Any] = dict(roll_out(shard))
        np.savez(shard.output, **arrays)
        print("done", flush=True)  # noqa: T201 - the protocol


if __name__ == "__main__":
    main()
