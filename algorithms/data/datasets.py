"""From a `DatasetSpec` to arrays. Like the catalogue, this module does not import torch."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress

from algorithms.data import bundled, d4rl, hdf5
from algorithms.data.catalog import FILE_PREFIX, DatasetSpec
from algorithms.data.hdf5 import OfflineDataset
from algorithms.errors import UserError

__all__ = ["OfflineDataset", "at_hand", "load", "missing"]


def load(spec: DatasetSpec, storage: Path, progress: Progress | None = None) -> OfflineDataset:
    """The transitions of a data set; bundled data is made on first use and kept in `storage`.

    Args:
        spec: from `catalog.resolve`.
        storage: the root folder of all that is kept between runs.
        progress: display to add a bar to where data must be made; by default a new one on stderr.

    Raises:
        UserError: a file that is missing, or is not the one that `spec` says.
    """
    if spec.recipe is not None:
        return bundled.load(spec, storage, progress)
    if not spec.id.startswith(FILE_PREFIX):
        return d4rl.load(spec, storage)
    path = Path(spec.id.removeprefix(FILE_PREFIX))
    data = hdf5.read(path, spec.env_id)
    if hdf5.file_sha256(path) != spec.content_hash:
        raise UserError(f"{path} has changed since it was planned: run the command again")
    return data


def missing(spec: DatasetSpec, storage: Path) -> str | None:
    """None if `load` can have the data, else one sentence: which file to put where.

    Cheap: no file is opened, so its hash is left to `load`.
    """
    if spec.recipe is not None:
        return None
    if not spec.id.startswith(FILE_PREFIX):
        return d4rl.missing(spec, storage)
    path = Path(spec.id.removeprefix(FILE_PREFIX))
    return None if path.is_file() else f"no file {path}: it was there when it was planned"


def at_hand(spec: DatasetSpec, storage: Path) -> bool:
    """Whether `load` only has to read, with nothing to generate first."""
    if spec.recipe is not None:
        return bundled.cache_path(spec, storage).is_file()
    return missing(spec, storage) is None
