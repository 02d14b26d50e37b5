"""Rolling a policy out in pieces, on worker processes.

A shard's transitions follow from the shard alone, so the result does not depend on how many
processes there are or which of them does what.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np
from pydantic import BaseModel, ConfigDict

SHARD_SIZE = 10_000


class Shard(BaseModel):
    """One piece of work: at least `size` transitions in whole episodes, decided by this alone."""

    model_config = ConfigDict(frozen=True)

    env_id: str
    policy: Path  # as `online.rollout.load_policy` reads it
    seed_words: tuple[int, ...]  # the first names the stream of random numbers
    size: int
    output: Path  # npz: `OfflineDataset`'s arrays, and with `states` also qpos and qvel
    deterministic: bool = False  # the policy's mode instead of a sampled action
    states: bool = False  # record MuJoCo's state before each action, in an environment of MuJoCo's


def divide(shard: Shard) -> list[Shard]:
    """The same work in equal pieces of about `SHARD_SIZE`, each with seeds of its own."""
    count = math.ceil(shard.size / SHARD_SIZE)
    return [
        shard.model_copy(
            update={
                "seed_words": (*shard.seed_words, index),
                "size": math.ceil(shard.size / count),
                "output": shard.output.with_name(f"{shard.output.name}-{index}.npz"),
            }
        )
        for index in range(count)
    ]


def read(shards: Sequence[Shard]) -> dict[str, np.ndarray]:
    """What the shards hold, one after the other."""
    columns: dict[str, list[np.ndarray]] = {}
    for shard in shards:
        with np.load(shard.output) as arrays:
            for name, array in arrays.items():
                columns.setdefault(name, []).append(array)
    return {name: np.concatenate(arrays) for name, arrays in columns.items()}


def run(
    shards: Sequence[Shard], advance: Callable[[int], None], processes: int | None = None
) -> None:
    """Hand the shards to worker processes until all are done.

    Not `multiprocessing`: its spawned processes run the user's main script again, which a
    script without a main guard does not survive, and forked ones do not survive Ray's threads.

    Args:
        shards: the work.
        advance: called, from several threads, with a number of new transitions.
        processes: at most this many; by default one per core.
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
