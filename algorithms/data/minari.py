"""Minari's data sets by name: `minari/mujoco/hopper/medium-v0`.

Where they lie and how they are downloaded is the package's business (the extra `minari`). Their
HDF5 files are read as any other; those that Minari keeps in Arrow are read through it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import Progress

from algorithms.data import hdf5
from algorithms.data.columns import Columns, one_line
from algorithms.data.dataset import OfflineDataset
from algorithms.data.file import read_files, specify, transitions
from algorithms.data.source import refuse_size
from algorithms.data.spec import MINARI_PREFIX, Choices, DataFile, DatasetSpec
from algorithms.environments.table import ENVIRONMENTS
from algorithms.errors import UserError, expected
from algorithms.identity import file_sha256
from algorithms.offline import is_offline
from algorithms.storage import Storage

if TYPE_CHECKING:
    from minari import MinariDataset

HDF5_FILE, METADATA = "main_data.hdf5", "metadata.json"


def resolve(dataset_id: str, choices: Choices, storage: Storage | None) -> DatasetSpec:
    """Download the data set where it is not there yet, understand it, and check it."""
    del storage
    refuse_size(dataset_id, choices.size)
    dataset = _open(dataset_id)
    env_id = choices.env or (dataset.env_spec.id if dataset.env_spec else "")
    if env_id not in ENVIRONMENTS:
        raise UserError(f"{dataset_id}: {expected('env', env_id, ENVIRONMENTS)}; env may be given")
    spec = specify(dataset_id, env_id, [_columns(dataset)], _files(dataset), choices)
    version = f"{dataset_id.rpartition('-')[2]}, written by minari {dataset.minari_version}"
    return spec.model_copy(update={"version": version})


def missing(spec: DatasetSpec, storage: Storage) -> None:
    """Nothing ever is: what is not there is downloaded when it is loaded."""
    del spec, storage


def at_hand(spec: DatasetSpec, storage: Storage) -> bool:
    del storage
    return _data_path(spec.id).is_dir()


def to_download(spec: DatasetSpec, storage: Storage) -> int:
    del spec, storage
    return 0


def load(spec: DatasetSpec, storage: Storage, progress: Progress | None) -> OfflineDataset:
    """Raises: UserError: this machine has another version of it."""
    del storage, progress
    dataset = _open(spec.id)
    found, planned = [[f.sha256 for f in files] for files in (_files(dataset), spec.files)]
    if found != planned:
        raise UserError(
            f"{spec.id} in {dataset.storage.data_path} is not the one that was planned: "
            "run the command again, or delete the folder to download it anew"
        )
    return transitions([_columns(dataset)], spec)


def minari_package() -> Any:
    """The package. Raises: UserError: it is not installed."""
    try:
        import minari
    except ModuleNotFoundError as error:
        if error.name != "minari":
            raise
        raise UserError(
            "data sets of Minari need its package: pip install 'orchestrator-rl[minari]'"
        ) from None
    return minari


def _data_path(dataset_id: str) -> Path:
    minari_package()
    from minari.storage import get_dataset_path

    return Path(get_dataset_path(dataset_id.removeprefix(MINARI_PREFIX))) / "data"


def _open(dataset_id: str) -> MinariDataset:
    path = _data_path(dataset_id)
    if not path.is_dir() and is_offline():
        raise UserError(f"{dataset_id} is not in {path}, and nothing is downloaded while offline")
    try:
        return minari_package().load_dataset(dataset_id.removeprefix(MINARI_PREFIX), download=True)
    except Exception as error:  # of any of the libraries and services that it uses
        raise UserError(f"{dataset_id} cannot be had from Minari: {one_line(error)}") from error


def _files(dataset: MinariDataset) -> tuple[DataFile, ...]:
    """All that holds values; the description beside them says when they were fetched."""
    folder = Path(dataset.storage.data_path)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != METADATA)
    return tuple(DataFile(path=str(path), sha256=file_sha256(path)) for path in paths)


def _columns(dataset: MinariDataset) -> Columns:
    path = Path(dataset.storage.data_path) / HDF5_FILE
    if path.is_file():
        return read_files([path])[0]
    parts: dict[str, list[np.ndarray]] = {}
    for episode in dataset.iterate_episodes():
        where = f"{dataset.id}: episode {episode.id}"
        if not isinstance(episode.observations, np.ndarray):
            raise UserError(
                f"{where} has observations of several parts: environments whose observations are "
                "one vector can be used"
            )
        for key, array in hdf5.transitions_of_episode(where, vars(episode)).items():
            parts.setdefault(key, []).append(array)
    return Columns(dataset.id, {key: np.concatenate(arrays) for key, arrays in parts.items()})
