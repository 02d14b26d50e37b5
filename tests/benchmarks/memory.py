"""Peak memory of an epoch of each configuration, in a process of its own.

The model buffer is full, as after five epochs, and the epoch's rollouts are at their full
size; of its gradient steps a few are taken. `imports alone` is what is left without a training.

    python tests/benchmarks/memory.py '["MOPO", 1, "eager"]' cpu 1

prints the MB of one configuration. On a GPU they are torch's own there, the CUDA context not
among them.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from gradient_steps import SEEDS
from harness import Series, Setup
from hopper import DATA_ROWS, ROLLOUT_ROWS, transitions
from ours import ALGORITHMS, change, draw_in_blocks, fill_buffer, offline_training, runs

from algorithms.dynamics.training import EnsembleTraining
from algorithms.settings import EnsembleSettings

ENSEMBLE = "ensemble training"


def measure(setup: Setup) -> list[Series]:
    names = list(runs(setup.device))
    seeds = SEEDS[:1] if setup.quick else SEEDS
    wanted = [[a, n, name] for a in ALGORITHMS for n in seeds for name in names]
    configurations = [[], [ENSEMBLE, 1, names[-1]], *wanted]
    # Nothing is timed here, so they may run side by side.
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as threads:
        peaks = list(threads.map(lambda c: _in_a_process(c, setup), configurations))
    return [
        Series(f"{c[0]} S={c[1]} {c[2]}" if c else "imports alone", "MB", [peak])
        for c, peak in zip(configurations, peaks, strict=True)
    ]


def _in_a_process(configuration: list[str | int], setup: Setup) -> float:
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(configuration), setup.device, str(setup.threads)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


def train(algorithm: str, num_seeds: int, run_name: str, device: str) -> None:
    run = runs(device)[run_name]
    if algorithm == ENSEMBLE:
        training = EnsembleTraining(
            transitions(DATA_ROWS), EnsembleSettings(), range(num_seeds), device, run
        )
        training.rows_SEN = training.rows_SEN[..., :10_000]
        training.train_epoch()
        return
    offline = offline_training(
        algorithm,
        num_seeds,
        run,
        device,
        rollout_batch_size=ROLLOUT_ROWS,
    )
    fill_buffer(offline)
    draw_in_blocks(offline)
    change(offline, gradient_steps_per_epoch=5)
    offline.train_epoch()


def peak_mb(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage, which counts what this process was before exec
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    configuration, device, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    if chosen := json.loads(configuration):
        train(*chosen, device)
    print(peak_mb(device))


if __name__ == "__main__":
    main()
