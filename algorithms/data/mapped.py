"""One copy of a large data set for all processes of a machine.

Above `MAPPED_ABOVE` bytes, transitions are kept in the storage once more, as the learner wants
them: one row `[obs, action, reward, next_obs, terminal]` each, which it takes without
copying. Processes map the file into memory, so that the operating system holds one copy
of it, however many jobs train on it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable

import numpy as np

from algorithms.data.dataset import OfflineDataset
from algorithms.data.spec import DatasetSpec
from algorithms.environments.table import ENVIRONMENTS
from algorithms.identity import content_key, file_sha256
from algorithms.storage import Storage

log = logging.getLogger(__name__)

MAPPED_ABOVE = 64 * 2**20
FORMAT = 1
ROWS, TIMEOUTS, DESCRIPTION = "rows.npy", "timeouts.npy", "description.json"


def load_shared(
    spec: DatasetSpec, storage: Storage, read: Callable[[], OfflineDataset]
) -> OfflineDataset:
    """The data set, mapped into memory if it is large.

    Args:
        spec: which.
        storage: where the mapped file is kept.
        read: reads it, if it is not kept yet.
    """
    if not _may_be_large(spec):
        return read()
    folder = _folder(spec)
    data = _mapped(spec, storage, folder)
    if data is not None:
        return data
    try:
        if spec.size is None:  # it is missing, perhaps: nothing is made for what is not there
            data = read()
            if data.nbytes <= MAPPED_ABOVE:
                return data
        # Of several processes one reads and writes, and the others wait for what it wrote.
        with storage.lease(folder.replace("/", "-")):
            mapped = _mapped(spec, storage, folder)
            if mapped is not None:
                return mapped
            data = data or read()
            storage.publish(folder, _encode(data), last=DESCRIPTION)
            return _mapped(spec, storage, folder) or data
    except OSError as error:  # a storage that cannot be written, or is full: it goes without
        log.warning("%s is not shared between processes: %s", spec.id, error)
    return data or read()


def _may_be_large(spec: DatasetSpec) -> bool:
    env = ENVIRONMENTS[spec.env_id]
    width = 2 * env.obs_dim + env.action_dim + 2
    return spec.size is None or spec.size * width * 4 > MAPPED_ABOVE


def _folder(spec: DatasetSpec) -> str:
    identity = {
        "format": FORMAT,
        "content": spec.content_hash,
        "action_bounds": spec.action_bounds,
    }
    return f"data/arrays/{spec.slug}-{content_key(identity)}"


def _encode(data: OfflineDataset) -> dict[str, bytes]:
    rows = np.concatenate(
        [data.obs, data.action, data.reward[:, None], data.next_obs, data.terminal[:, None]], axis=1
    )
    files = {ROWS: _npy(rows), TIMEOUTS: _npy(data.timeout)}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return files | {DESCRIPTION: json.dumps(hashes).encode()}


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def _mapped(spec: DatasetSpec, storage: Storage, folder: str) -> OfflineDataset | None:
    """The arrays of the file; None where there is none, or a damaged one, which is removed."""
    description = storage.get(f"{folder}/{DESCRIPTION}")
    if description is None:
        return None
    try:
        paths = {name: storage.fetch(f"{folder}/{name}") for name in (ROWS, TIMEOUTS)}
        if {name: file_sha256(path) for name, path in paths.items()} == json.loads(description):
            # Copy on write: torch warns of memory that cannot be written; nobody writes.
            rows = np.asarray(np.load(paths[ROWS], mmap_mode="c", allow_pickle=False))
            timeouts = np.load(paths[TIMEOUTS], mmap_mode="c", allow_pickle=False)
            return _split(spec, rows, timeouts)
    except (OSError, ValueError) as error:
        log.debug("%s", error)
    log.warning("%s/%s is damaged: making it again", storage, folder)
    storage.delete(folder)
    return None


def _split(spec: DatasetSpec, rows: np.ndarray, timeouts: np.ndarray) -> OfflineDataset:
    env = ENVIRONMENTS[spec.env_id]
    obs_dim, action_dim = env.obs_dim, env.action_dim
    sizes = [obs_dim, action_dim, 1, obs_dim, 1]
    obs, action, reward, next_obs, terminal = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
    return OfflineDataset(obs, action, reward[:, 0], next_obs, terminal[:, 0], timeouts)
