"""From a `DatasetSpec` to arrays."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress

from algorithms.data import bundled, hdf5
from algorithms.data.catalog import FILE_PREFIX, DatasetSpec
from algorithms.data.hdf5 import OfflineDataset
from algorithms.errors import UserError

__all__ = ["OfflineDataset", "load"]


def load(spec: DatasetSpec, storage: Path, progress: Progress | None = None) -> OfflineDataset:
    """The transitions of a data set; bundled data is made on first use and kept in `storage`.

    Args:
        spec: from `catalog.resolve`.
        storage: the root folder of all that is kept between runs.
        progress: display to add a bar to where data must be made; by default a new one on stderr.

    Raises:
        UserError: a file that is gone, or is no longer what it was when it was resolved.
    """
    if spec.recipe is not None:
        return bundled.load(spec, storage, progress)
    path = Path(spec.id.removeprefix(FILE_PREFIX))
    data = hdf5.read(path, spec.env_id)
    if hdf5.file_sha256(path) != spec.content_hash:
        raise UserError(f"{path} has changed since it was planned: run the command again")
    return data
