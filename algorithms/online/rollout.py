"""Rolling a policy out in MuJoCo: the work of one process of `data.bundled.generate`.

    python -m algorithms.online.rollout

reads one `Shard` as JSON per line of standard input, writes each shard's
episodes to a file of its own, and reports on standard output: the number of
transitions after every episode, and `done` after every shard.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from algorithms.data.bundled.generate import BUNDLED_STREAM, Shard
from algorithms.data.dataset import OfflineDataset
from algorithms.environments.table import ENVIRONMENTS, make_env
from algorithms.sac.networks import SACNetworks
from algorithms.settings import SACSettings
from algorithms.stack.randomness import stream_seed

# Environments per process, stepped together so that one pass of the policy serves all;
# fewer for a shard that so many episodes of full length would overfill.
LOCKSTEP, FULL_LENGTH = 10, 1000


def load_policy(path: Path, env_id: str) -> SACNetworks:
    """SAC networks (S = 1) whose actor has the stored weights, in float32."""
    env = ENVIRONMENTS[env_id]
    networks = SACNetworks(env.obs_dim, env.action_dim, SACSettings(), [torch.Generator()])
    networks.actor.load_state_dict(load_file(path))
    return networks


@torch.inference_mode()
def roll_out(shard: Shard) -> OfflineDataset:
    """Whole episodes in the order of their starts, together just over `shard.size` transitions.

    Actions are sampled from the policy, as in D4RL's medium data. An environment that
    falls free starts another episode only if those running, at the mean length so far,
    do not suffice; what is started is finished and kept, so short episodes gain no weight.
    """
    networks = load_policy(shard.policy, shard.env_id)
    generator = torch.Generator().manual_seed(stream_seed(BUNDLED_STREAM, *shard.seed_words))
    lockstep = min(LOCKSTEP, math.ceil(shard.size / FULL_LENGTH))
    envs = [make_env(shard.env_id) for _ in range(lockstep)]
    obs_1BO = np.zeros((1, lockstep, networks.obs_dim), dtype=np.float32)
    episodes: list[list[tuple[object, ...]]] = []  # rows in the order of `OfflineDataset`
    running: dict[int, int] = {}  # environment -> episode
    steps, mean_length = 0, 0.0
    while True:
        for e, env in enumerate(envs):
            if e in running:
                continue
            awaited = sum(max(mean_length, len(episodes[i])) for i in running.values())
            if steps + awaited < shard.size:
                seed = stream_seed(BUNDLED_STREAM, *shard.seed_words, len(episodes))
                obs_1BO[0, e], _ = env.reset(seed=seed)
                running[e] = len(episodes)
                episodes.append([])
        if not running:
            break
        noise = torch.randn(1, lockstep, networks.action_dim, generator=generator)
        action_BA = networks.policy(torch.from_numpy(obs_1BO)).sample(noise)[0][0].numpy()
        for e, i in list(running.items()):
            obs, action = obs_1BO[0, e].copy(), action_BA[e].copy()
            obs_1BO[0, e], reward, terminated, truncated, _ = envs[e].step(action)
            timeout = truncated and not terminated
            episodes[i].append((obs, action, reward, obs_1BO[0, e].copy(), terminated, timeout))
            if terminated or truncated:
                del running[e]
                steps += len(episodes[i])
                mean_length = steps / (len(episodes) - len(running))
                print(len(episodes[i]), flush=True)  # noqa: T201 - the protocol
    columns = zip(*(row for episode in episodes for row in episode), strict=True)
    arrays = OfflineDataset(*(np.array(column, dtype=np.float32) for column in columns))
    return arrays._replace(timeout=arrays.timeout > 0)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        shard = Shard.model_validate_json(line)
        np.savez(shard.output, *roll_out(shard))
        print("done", flush=True)  # noqa: T201 - the protocol


if __name__ == "__main__":
    main()
