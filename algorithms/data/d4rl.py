"""D4RL's own files: where they are looked for, and whether one is what it should be."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from rich.progress import Progress

from algorithms.data import hdf5
from algorithms.data.catalog import CATALOG, D4RL, D4RL_PREFIX, D4RL_VERSION, TASKS
from algorithms.data.columns import understand
from algorithms.data.dataset import OfflineDataset
from algorithms.data.source import of_catalog, refuse_size
from algorithms.data.spec import Choices, DatasetSpec
from algorithms.environments.table import ENVIRONMENTS
from algorithms.errors import UserError
from algorithms.identity import file_sha256
from algorithms.storage import Storage, is_file

# Plain HTTP: what comes from there is trusted for its hash alone.
ORIGIN = "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2"


def resolve(dataset_id: str, choices: Choices) -> DatasetSpec:
    refuse_size(dataset_id, choices.size)
    entry = CATALOG[dataset_id]
    assert isinstance(entry, D4RL)
    own = dataset_id.removeprefix(D4RL_PREFIX).removesuffix(D4RL_VERSION)
    spec = DatasetSpec(id=dataset_id, env_id=TASKS[own], content_hash=entry.sha256, task=own)
    return of_catalog(dataset_id, spec, choices)


def folders(storage: Storage) -> list[Path]:
    """Where a file may lie, first come first served: the storage, then d4rl's own places."""
    candidates = [storage.path("data/d4rl")]
    if named := os.environ.get("D4RL_DATASET_DIR"):
        candidates.append(Path(named))
    with suppress(RuntimeError):  # a container's user need not have a home
        candidates.append(Path("~/.d4rl/datasets").expanduser())
    return candidates


def file_name(spec: DatasetSpec) -> str:
    """D4RL's name of the file: `hopper_medium_replay-v2.hdf5`."""
    task = spec.id.removeprefix(D4RL_PREFIX).removesuffix(D4RL_VERSION)
    return f"{task.replace('-', '_')}{D4RL_VERSION}.hdf5"


def find(spec: DatasetSpec, storage: Storage) -> Path:
    """The first file of that name and length.

    Raises:
        UserError: there is none.
    """
    entry = CATALOG[spec.id]
    assert isinstance(entry, D4RL)
    name = file_name(spec)
    paths = [path for folder in folders(storage) if is_file(path := folder / name)]
    for path in paths:
        if path.stat().st_size == entry.bytes:
            return path
    if paths:
        raise UserError(
            f"{paths[0]} has {paths[0].stat().st_size:,} bytes, but {spec.id} has "
            f"{entry.bytes:,}: it is cut off or another file, so replace it"
        )
    raise UserError(
        f"{spec.id} needs {name} ({entry.bytes:,} bytes, SHA-256 {spec.content_hash[:12]}...): "
        f"put it into {folders(storage)[0]}, from {ORIGIN}/{name}"
    )


def missing(spec: DatasetSpec, storage: Storage) -> str | None:
    """None if the file is there with its right length, else the sentence of `find`."""
    try:
        find(spec, storage)
    except UserError as error:
        return str(error)
    return None


def at_hand(spec: DatasetSpec, storage: Storage) -> bool:
    return missing(spec, storage) is None


def load(spec: DatasetSpec, storage: Storage, progress: Progress | None) -> OfflineDataset:
    """Read the file, if it is D4RL's.

    Raises:
        UserError: it is missing, cut off, or another file.
    """
    del progress
    path = find(spec, storage)
    status = path.stat()
    sha256 = _sha256(path, status.st_size, status.st_mtime_ns)
    if sha256 != spec.content_hash:
        raise UserError(
            f"{path} has SHA-256 {sha256[:12]}..., but {spec.id} has "
            f"{spec.content_hash[:12]}...: it is damaged or another file, so replace it"
        )
    return understand([hdf5.read(path)], ENVIRONMENTS[spec.env_id], spec.env_id).data


@cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001 - they tell versions apart
    """Once per process: half a second for the largest file."""
    return file_sha256(path)
