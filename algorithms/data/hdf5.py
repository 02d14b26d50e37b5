"""Offline data in D4RL's layout, in memory and as HDF5 (Fu et al. 2020, arXiv 2004.07219).

Transitions lie in the order in which they were made. An episode ends where
`terminals` (the task's end) or `timeouts` (a time limit, or the end of recording)
is true. `next_observations` is what followed the action, which at an episode's
end is not the next row's observation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from algorithms.environments.table import ENVIRONMENTS, normalized_score
from algorithms.errors import UserError
from algorithms.storage import is_file


class OfflineDataset(NamedTuple):
    """`n` transitions as C-contiguous arrays."""

    obs: np.ndarray  # [n, O] float32
    action: np.ndarray  # [n, A] float32
    reward: np.ndarray  # [n] float32
    next_obs: np.ndarray  # [n, O] float32
    terminal: np.ndarray  # [n] float32, 1 where the task ended
    timeout: np.ndarray  # [n] bool

    @property
    def episode_ends(self) -> np.ndarray:
        """Row after the last of every complete episode, `[episodes]`."""
        return np.flatnonzero((self.terminal > 0) | self.timeout) + 1

    @property
    def initial_obs(self) -> np.ndarray:
        """First observation of every episode, `[episodes, O]`."""
        starts = np.concatenate([[0], self.episode_ends])
        return self.obs[starts[starts < len(self.obs)]]

    def episode_returns(self) -> np.ndarray:
        """Undiscounted return of every complete episode, `[episodes]`."""
        total = np.concatenate([[0.0], self.reward.cumsum(dtype=np.float64)])
        return np.diff(total[self.episode_ends], prepend=0.0)

    def behaviour_score(self, env_id: str) -> float:
        """Mean normalised score of the complete episodes: what the data's policies reach."""
        return float(normalized_score(env_id, self.episode_returns()).mean())


KEYS = {
    "obs": "observations",
    "action": "actions",
    "reward": "rewards",
    "next_obs": "next_observations",
    "terminal": "terminals",
    "timeout": "timeouts",
}


def read(path: Path, env_id: str) -> OfflineDataset:
    """Read and check a file of data from `env_id`.

    Raises:
        UserError: no such file, not HDF5, a missing key, a shape that does not fit the
            others or the environment, NaN or infinite values, or no episode end at all.
    """
    env = ENVIRONMENTS[env_id]
    with _open(path) as file:
        missing = [key for key in KEYS.values() if not isinstance(file.get(key), h5py.Dataset)]
        if missing:
            raise UserError(
                f"{path} has no {' and no '.join(missing)}: D4RL's layout needs "
                f"{', '.join(KEYS.values())}"
            )
        arrays = {name: _array(path, file[key]) for name, key in KEYS.items()}
    rows = len(arrays["obs"])
    if rows == 0:
        raise UserError(f"{path} holds no transitions")
    columns = {"obs": (env.obs_dim,), "action": (env.action_dim,), "next_obs": (env.obs_dim,)}
    for name, array in arrays.items():
        shape = (rows, *columns.get(name, ()))
        if array.shape != shape:
            raise UserError(
                f"{path}: {KEYS[name]} has shape {array.shape}, but {rows} observations "
                f"of {env_id} need {shape}"
            )
        bad = np.flatnonzero(~np.isfinite(array.reshape(rows, -1)).all(axis=1))
        if len(bad):
            raise UserError(
                f"{path}: {KEYS[name]} holds NaN or infinite values in {len(bad)} of {rows} rows, "
                f"first in row {bad[0]}"
            )
    if env.rescaled_actions:
        arrays["action"] = env.to_unit_actions(arrays["action"]).astype(np.float32)
    terminal = (arrays["terminal"] != 0).astype(np.float32)
    data = OfflineDataset(**arrays | {"terminal": terminal, "timeout": arrays["timeout"] != 0})
    if not len(data.episode_ends):
        raise UserError(f"{path}: neither terminals nor timeouts is ever true, so no episode ends")
    return data


def read_env_id(path: Path) -> str | None:
    """The environment that a file says it is from, if it does.

    Looked for, in this order: `env`, `env_id` or `env_name` as an attribute of the
    file, the same in its `metadata` group, and the same in the JSON of an `info` attribute.
    """
    with _open(path) as file:
        sources: list[Mapping[str, Any]] = [dict(file.attrs)]
        metadata = file.get("metadata")
        if isinstance(metadata, h5py.Group):
            values = {k: v[()] for k, v in metadata.items() if isinstance(v, h5py.Dataset)}
            sources += [dict(metadata.attrs), values]
    try:
        info = json.loads(_text(sources[0].get("info", "{}")))
    except ValueError:
        info = None  # free text
    if isinstance(info, dict):
        sources.append(info)
    for source in sources:
        for key in ("env", "env_id", "env_name"):
            if key in source:
                return _text(source[key])
    return None


def read_attribute(path: Path, name: str) -> str | None:
    """A text attribute of the file, if it has it."""
    with _open(path) as file:
        return _text(file.attrs[name]) if name in file.attrs else None


def encode(
    data: OfflineDataset,
    attributes: Mapping[str, str | int | float],
    infos: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """The bytes of a file in D4RL's layout; `infos` are further columns, such as `qpos`."""
    content = BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs.update(attributes)
        for name, array in data._asdict().items():
            file[KEYS[name]] = array.astype(bool) if name == "terminal" else array
        for name, array in (infos or {}).items():
            file[f"infos/{name}"] = array
    return content.getvalue()


def arrays_sha256(data: OfflineDataset) -> str:
    """SHA-256 (hex) of the values, in the order of the fields."""
    digest = hashlib.sha256()
    for array in data:
        digest.update(array.tobytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    if not is_file(path):
        raise UserError(f"no file {path}: give file: and the path of an HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:  # h5py raises either for damaged bytes
        raise UserError(f"{path} cannot be read as HDF5: {error}") from error


def _array(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # what exceeds float32 is reported as infinite
            return np.ascontiguousarray(dataset[()], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {dataset.name[1:]} does not hold numbers: {error}") from error


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
