"""Bundled data: rolled out from the package's policies on first use, then kept.

The result follows from the recipe alone, whatever the number of processes:
a level's transitions are divided into fixed shards with seeds of their own.
(Another kind of processor may round otherwise, and a simulator amplifies it;
the data are then equal in distribution.) These are this project's own data, in
D4RL's manner and layout; scores on them do not compare with D4RL's.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory

import numpy as np
from pydantic import BaseModel, ConfigDict

from algorithms.data.bundled.recipe import policies_folder, policy_set
from algorithms.data.dataset import OfflineDataset
from algorithms.data.spec import Part, Recipe
from algorithms.errors import UserError
from algorithms.identity import file_sha256

log = logging.getLogger(__name__)

BUNDLED_STREAM = 0xDA7A
SHARD_SIZE = 10_000


class Shard(BaseModel):
    """One piece of work: at least `size` transitions in whole episodes, decided by this alone."""

    model_config = ConfigDict(frozen=True)

    env_id: str
    policy: Path  # safetensors with the state dict of an actor, S = 1
    seed_words: tuple[int, ...]
    size: int
    output: Path  # npz of an `OfflineDataset`'s arrays


def generate(
    recipe: Recipe,
    advance: Callable[[int], None],
    processes: int | None = None,
) -> tuple[OfflineDataset, dict[str, float]]:
    """Roll the policies out.

    Args:
        recipe: what to make.
        advance: called, from several threads, with a number of new transitions.
        processes: at most this many; by default one per core.

    Returns:
        The transitions, whole episodes of all levels in random order, and the mean
        normalised score of each level's complete episodes. The last episode of a level
        is cut where its share is full, and marked as a timeout there.
    """
    with TemporaryDirectory(prefix="orchestrator-data-") as folder:
        shards = {part: _shards(recipe, part, Path(folder)) for part in recipe.parts}
        _run([shard for part in shards.values() for shard in part], advance, processes)
        levels = {
            part: OfflineDataset(*map(np.concatenate, zip(*map(_read_shard, of_part), strict=True)))
            for part, of_part in shards.items()
        }
    scores = {}
    for part, level in levels.items():
        levels[part] = cut = OfflineDataset(*(array[: part.size] for array in level))
        if len(cut.episode_ends):
            scores[part.level] = cut.behaviour_score(recipe.env_id)
        cut.timeout[-1] |= cut.terminal[-1] == 0
    data = OfflineDataset(*map(np.concatenate, zip(*levels.values(), strict=True)))
    return _shuffle_episodes(data, np.random.default_rng([BUNDLED_STREAM, recipe.seed])), scores


def _shards(recipe: Recipe, part: Part, folder: Path) -> list[Shard]:
    level = policy_set(recipe.policies).levels[part.level]
    policy = Path(str(policies_folder(recipe.policies) / level.file))
    if file_sha256(policy) != part.sha256:
        raise UserError(f"{policy} is not the policy that was planned: reinstall, and run again")
    count = math.ceil(part.size / SHARD_SIZE)
    return [
        Shard(
            env_id=recipe.env_id,
            policy=policy,
            seed_words=(recipe.seed, int(part.sha256[:8], 16), index),
            size=math.ceil(part.size / count),
            output=folder / f"{part.level}-{index}.npz",
        )
        for index in range(count)
    ]


def _read_shard(shard: Shard) -> list[np.ndarray]:
    with np.load(shard.output) as arrays:
        return list(arrays.values())


def _run(shards: list[Shard], advance: Callable[[int], None], processes: int | None) -> None:
    """Hand the shards to worker processes until all are done.

    Not `multiprocessing`: its spawned processes run the user's main script again, which a
    script without a main guard does not survive, and forked ones do not survive Ray's threads.
    """
    queue: SimpleQueue[Shard] = SimpleQueue()
    for shard in shards:
        queue.put(shard)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        "OMP_NUM_THREADS": "1",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "algorithms.online.rollout"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            process_group=0,  # an interrupt from the keyboard ends them below, in silence
        )
        for _ in range(min(processes or os.cpu_count() or 1, len(shards)))
    ]
    with ThreadPoolExecutor(len(workers)) as threads:
        try:
            tasks = [threads.submit(_feed, worker, queue, advance) for worker in workers]
            for task in as_completed(tasks):
                task.result()
        finally:
            for worker in workers:
                worker.terminate()
                worker.wait()


def _feed(
    worker: subprocess.Popen[str], queue: SimpleQueue[Shard], advance: Callable[[int], None]
) -> None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    with worker.stdin, worker.stdout:
        while True:
            try:
                shard = queue.get_nowait()
            except Empty:
                return
            worker.stdin.write(shard.model_dump_json() + "\n")
            worker.stdin.flush()
            for line in worker.stdout:
                if line == "done\n":
                    break
                advance(int(line))
            else:
                raise RuntimeError(f"a process that generates data ended early, in {shard}")


def _shuffle_episodes(data: OfflineDataset, rng: np.random.Generator) -> OfflineDataset:
    ends = data.episode_ends
    rows = np.split(np.arange(ends[-1]), ends[:-1])
    order = np.concatenate([rows[i] for i in rng.permutation(len(rows))])
    return OfflineDataset(*(array[order] for array in data))
