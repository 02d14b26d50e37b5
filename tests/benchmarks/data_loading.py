"""A data set of 2,000,000 rows: seconds to read it, and the memory of four processes that hold it.

Made-up rows of hopper's sizes in D4RL's layout. `read` parses the file, as every process would
have to; `map, first` does so and writes the rows that are shared; `map` finds them. Memory is the
proportional set size (PSS) that a process gains, summed over four that hold the data at once, in
rows as a learner on a CPU packs them: pages that they share count once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from harness import Series, Setup

from algorithms.data import mapped, source
from algorithms.data.checks import CHECKS
from algorithms.data.source import load, resolve
from algorithms.data.spec import DatasetSpec
from algorithms.stack.transitions import Transition
from algorithms.storage import Storage

ROWS, PROCESSES = 2_000_000, 4


def measure(setup: Setup) -> list[Series]:
    rows = ROWS // 2 if setup.quick else ROWS
    with tempfile.TemporaryDirectory(prefix="benchmark-data-") as folder:
        path = Path(folder) / "data.hdf5"
        _write(path, rows)
        began = time.perf_counter()
        spec = resolve(f"file:{path}", env="Hopper-v4", allow=list(CHECKS))
        resolved = time.perf_counter() - began
        series = [Series(f"plan: read, hash and check {rows:,} rows", "s", [resolved])]
        for shared in (False, True):
            storage = Path(folder) / f"storage-{shared}"
            name = "map" if shared else "read"
            if shared:
                first = _in_processes(spec, storage, shared=shared, count=1)
                series.append(Series("map, first process", "s", [first[0]["seconds"]]))
            found = _in_processes(spec, storage, shared=shared, count=PROCESSES)
            seconds = [process["seconds"] for process in found]
            gained = sum(process["pss_mb"] for process in found)
            series.append(Series(f"{name}, each of {PROCESSES} processes", "s", seconds))
            series.append(Series(f"{name}, {PROCESSES} processes together", "MB", [gained]))
    return series


def _write(path: Path, rows: int) -> None:
    random = np.random.default_rng(0)
    states = random.normal(size=(rows + 1, 11)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["observations"], file["next_observations"] = states[:-1], states[1:]
        file["actions"] = random.uniform(-1, 1, size=(rows, 3)).astype(np.float32)
        file["rewards"] = random.normal(size=rows).astype(np.float32)
        file["terminals"] = np.zeros(rows, dtype=bool)
        file["timeouts"] = np.arange(rows) % 1000 == 999


def _in_processes(
    spec: DatasetSpec, storage: Path, *, shared: bool, count: int
) -> list[dict[str, float]]:
    """Each loads the data, says so, and measures once all have."""
    arguments = [spec.model_dump_json(), str(storage), json.dumps(shared)]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    for process in processes:
        process.stdout.readline()
    found = []
    for process in processes:
        process.stdin.write("measure\n")
        process.stdin.flush()
        found.append(json.loads(process.stdout.readline()))
    for process in processes:
        process.communicate("end\n")
    return found


def hold(spec: DatasetSpec, storage: Storage, *, shared: bool) -> None:
    before = _pss_mb()
    began = time.perf_counter()
    if not shared:
        mapped.MAPPED_ABOVE = sys.maxsize
    data = load(spec, storage)
    rows = Transition.from_numpy(data).packed_in_place()
    del data  # the learner keeps the rows alone
    seconds = time.perf_counter() - began
    checksum = float(rows.sum())  # every page is touched
    print("loaded", flush=True)
    sys.stdin.readline()
    print(json.dumps({"seconds": seconds, "pss_mb": _pss_mb() - before, "sum": checksum}))
    sys.stdout.flush()
    sys.stdin.readline()


def _pss_mb() -> float:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1000
    raise RuntimeError("the kernel does not tell Pss")


if __name__ == "__main__":
    source.source_of("file:x")  # imported before memory is counted
    arguments = sys.argv[1:]
    hold(
        DatasetSpec.model_validate_json(arguments[0]),
        Storage(arguments[1]),
        shared=json.loads(arguments[2]),
    )
