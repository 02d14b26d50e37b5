"""Files of one's own: HDF5 in D4RL's layout, known by their bytes."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress

from algorithms.data import hdf5
from algorithms.data.catalog import TASKS
from algorithms.data.hdf5 import OfflineDataset
from algorithms.data.source import refuse_size
from algorithms.data.spec import FILE_PREFIX, DatasetSpec
from algorithms.environments.table import ENVIRONMENTS
from algorithms.errors import UserError, expected
from algorithms.storage import Storage, is_file


def resolve(
    dataset_id: str,
    *,
    env: str | None,
    size: int | None,
    task: str | None,
    storage: Storage | None,
) -> DatasetSpec:
    del storage
    refuse_size(dataset_id, size)
    path = absolute_path(dataset_id)
    env_id = hdf5.read_env_id(path) if env is None else env
    if env_id is None:
        raise UserError(
            f"{path} does not name its environment: give env, one of {', '.join(ENVIRONMENTS)}"
        )
    if env_id not in ENVIRONMENTS:
        raise UserError(f"{path}: {expected('env', env_id, ENVIRONMENTS)}; env may be given")
    if task is not None and TASKS[task] != env_id:
        fitting = ", ".join(name for name, env_of_task in TASKS.items() if env_of_task == env_id)
        raise UserError(
            f"task {task} is of env {TASKS[task]}, but {path} is of {env_id}: {fitting}"
        )
    data = hdf5.read(path, env_id)
    return DatasetSpec(
        id=f"{FILE_PREFIX}{path}",
        env_id=env_id,
        content_hash=hdf5.file_sha256(path),
        size=len(data.reward),
        action_bounds=ENVIRONMENTS[env_id].action_bounds,
        task=task,
    )


def absolute_path(dataset_id: str) -> Path:
    """The file of an id.

    Raises:
        UserError: it begins with the home of somebody who has none.
    """
    given = dataset_id.removeprefix(FILE_PREFIX)
    path = Path(given)
    try:
        return (path.expanduser() if given.startswith("~") else path).absolute()
    except RuntimeError as error:
        raise UserError(f"{dataset_id}: {error} Give a path without ~.") from None


def missing(spec: DatasetSpec, storage: Storage) -> str | None:
    del storage
    path = path_of(spec)
    return None if is_file(path) else f"no file {path}: it was there when it was planned"


def at_hand(spec: DatasetSpec, storage: Storage) -> bool:
    return missing(spec, storage) is None


def to_download(spec: DatasetSpec, storage: Storage) -> int:
    del spec, storage
    return 0


def load(spec: DatasetSpec, storage: Storage, progress: Progress | None) -> OfflineDataset:
    """Raises: UserError: the file has changed since the spec was made."""
    del storage, progress
    path = path_of(spec)
    data = hdf5.read(path, spec.env_id)
    if hdf5.file_sha256(path) != spec.content_hash:
        raise UserError(f"{path} has changed since it was planned: run the command again")
    return data


def path_of(spec: DatasetSpec) -> Path:
    return Path(spec.id.removeprefix(FILE_PREFIX))
