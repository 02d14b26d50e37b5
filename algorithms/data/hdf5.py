"""HDF5 files, in D4RL's layout and in Minari's, read without trusting them.

D4RL (Fu et al. 2020, arXiv 2004.07219) has one array per column: `observations`, `actions`, ...
Minari has a group per episode, `episode_0`, ..., whose `observations` are one more than its steps.
What a file claims about its size is compared with the bytes that it has before anything is read,
and nothing is read that lies in another file, because a hash of this one would not cover it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from rich.filesize import decimal

from algorithms.data.columns import NAMES, Columns, one_line
from algorithms.data.dataset import OfflineDataset
from algorithms.errors import UserError
from algorithms.storage import is_file

KEYS = {
    "obs": "observations",
    "action": "actions",
    "reward": "rewards",
    "next_obs": "next_observations",
    "terminal": "terminals",
    "timeout": "timeouts",
}
STATES = ("infos/qpos", "infos/qvel")  # the simulator's, before each action
EPISODE_NAMES = ("observations", "actions", "rewards", "terminations", "truncations")  # Minari's
ENV_KEYS = ("env", "env_id", "env_name")
# Deflate makes 1032 bytes of one at most: columns that claim more were never written.
MOST_COMPRESSED = 1032


def read(path: Path) -> Columns:
    """The columns of a file, as they are stored.

    Raises:
        UserError: no such file, not HDF5, columns that lie in another file, or that claim more
            rows than the file can hold or this machine has memory for.
    """
    with _open(path) as file:
        if episodes := _episodes(path, file):
            return _read_minari(path, file, episodes)
        arrays = _read_columns(path, file, NAMES)
        return Columns(str(path), arrays, _env_id(path, file))


def declared_bytes(path: Path) -> int:
    """The size of all columns, as the file declares it; nothing is read.

    Raises:
        UserError: as `read`.
    """
    with _open(path) as file:
        episodes = _episodes(path, file)
        groups, names = (episodes, EPISODE_NAMES) if episodes else ([file], NAMES)
        return sum(
            _check_size(path, list(_columns(path, group, names).values())) for group in groups
        )


def read_states(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The simulator's positions `[n, nq]` and velocities `[n, nv]` before each action.

    In float64; None where the file does not hold both.
    """
    with _open(path) as file:
        arrays = _read_columns(path, file, STATES)
    if len(arrays) < len(STATES):
        return None
    qpos, qvel = (arrays[name].astype(np.float64) for name in STATES)
    return qpos, qvel


def read_attribute(path: Path, name: str) -> str | None:
    """A text attribute of the file, if it has it."""
    with _open(path) as file:
        return _text(file.attrs[name]) if name in file.attrs else None


def encode(
    data: OfflineDataset,
    attributes: Mapping[str, str | int | float],
    infos: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """The bytes of a file in D4RL's layout.

    Args:
        data: the transitions.
        attributes: of the file.
        infos: further columns below `infos/`, such as `qpos` and `qvel`.
    """
    content = BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs.update(attributes)
        for name, array in data._asdict().items():
            file[KEYS[name]] = array.astype(bool) if name == "terminal" else array
        for name, array in (infos or {}).items():
            file[f"infos/{name}"] = array
    return content.getvalue()


# --- D4RL's layout


def _read_columns(path: Path, group: h5py.Group, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {name: _read(path, column) for name, column in _columns(path, group, names).items()}


def _columns(path: Path, group: h5py.Group, names: tuple[str, ...]) -> dict[str, h5py.Dataset]:
    found = {name: column for name in names if (column := _column(path, group, name)) is not None}
    _check_size(path, list(found.values()))
    return found


def _column(path: Path, group: h5py.Group, name: str) -> h5py.Dataset | None:
    """A column, None where there is none.

    Raises:
        UserError: it or its bytes lie in another file.
    """
    node: Any = group
    for part in name.split("/"):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            raise UserError(
                f"{path}: {name} is a link into another file, {link.filename}: copy it into this "
                "one, whose content is what results are known by"
            )
        node = node.get(part) if isinstance(node, h5py.Group) else None
        if node is not None and node.file.filename != group.file.filename:  # through other links
            raise UserError(f"{path}: {name} lies in another file: copy it into this one")
    if not isinstance(node, h5py.Dataset):
        if isinstance(node, h5py.Group) and name == "observations":
            raise UserError(
                f"{path}: observations are a group of {', '.join(sorted(node))}: "
                "environments whose observations are one vector can be used"
            )
        return None
    if node.is_virtual or node.external:
        raise UserError(
            f"{path}: the values of {name} lie in another file: copy them into this one, "
            "whose content is what results are known by"
        )
    return node


def _check_size(path: Path, columns: list[h5py.Dataset]) -> int:
    """What columns declare, in bytes; one that declares more than it can hold is refused."""
    declared = 0
    for column in columns:
        if column.shape is None or column.shape == ():
            raise UserError(f"{path}: {column.name.lstrip('/')} does not hold numbers")
        size = column.size * column.dtype.itemsize
        stored = column.id.get_storage_size()
        if size > MOST_COMPRESSED * stored + 4096:
            raise UserError(
                f"{path}: {column.name.lstrip('/')} declares {len(column):,} rows "
                f"({decimal(size)}), but the file holds {decimal(stored)} of them: it is "
                "damaged, or was never written to the end"
            )
        declared += size
    return int(declared)


def _read(path: Path, column: h5py.Dataset) -> np.ndarray:
    if column.dtype.kind not in "fiubc":
        raise UserError(f"{path}: {column.name.lstrip('/')} does not hold numbers")
    try:
        return np.asarray(column[()])
    except (OSError, ValueError, TypeError, MemoryError) as error:
        raise UserError(
            f"{path}: {column.name.lstrip('/')} cannot be read: {one_line(error)}"
        ) from error


# --- Minari's layout


def _episodes(path: Path, file: h5py.File) -> list[h5py.Group]:
    """The groups `episode_0`, `episode_1`, ... in the order of their numbers."""
    numbers = [
        int(m[1]) for name in file if (m := re.fullmatch(r"episode_(0|[1-9]\d{0,11})", name))
    ]
    found = []
    for number in sorted(numbers):
        episode = file.get(f"episode_{number}")
        if isinstance(episode, h5py.Group):
            if episode.file.filename != file.filename:
                raise UserError(
                    f"{path}: episode_{number} lies in another file: copy it into this one"
                )
            found.append(episode)
    return found


def _read_minari(path: Path, file: h5py.File, episodes: list[h5py.Group]) -> Columns:
    parts: dict[str, list[np.ndarray]] = {}
    for episode in episodes:
        name = episode.name.lstrip("/")
        arrays = _read_columns(path, episode, EPISODE_NAMES)
        missing = [key for key in EPISODE_NAMES if key not in arrays]
        if missing:
            raise UserError(f"{path}: {name} has no {' and no '.join(missing)}")
        for key, array in transitions_of_episode(f"{path}: {name}", arrays).items():
            parts.setdefault(key, []).append(array)
    try:
        joined = {key: np.concatenate(arrays) for key, arrays in parts.items()}
    except ValueError as error:
        raise UserError(f"{path}: its episodes do not fit each other: {one_line(error)}") from error
    note = f"{path} is in Minari's layout: {len(episodes):,} episodes"
    return Columns(str(path), joined, _env_id(path, file) or _minari_env_id(path), (note,))


def transitions_of_episode(where: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An episode of Minari's, `T + 1` observations and `T` of the rest, as columns of T rows.

    An episode that neither terminated nor was truncated ends where its recording does.

    Raises:
        UserError: the lengths do not fit.
    """
    steps = len(arrays["actions"])
    if len(arrays["observations"]) != steps + 1:
        raise UserError(
            f"{where} has {len(arrays['observations'])} observations and {steps} actions: "
            "Minari's layout has one observation more"
        )
    columns = {
        "observations": arrays["observations"][:-1],
        "next_observations": arrays["observations"][1:],
        "actions": arrays["actions"],
        "rewards": arrays["rewards"],
        "terminals": arrays["terminations"],
        "timeouts": arrays["truncations"],
    }
    if steps and not (columns["terminals"][-1] or columns["timeouts"][-1]):
        timeouts = columns["timeouts"].copy()
        timeouts[-1] = 1
        columns["timeouts"] = timeouts
    return columns


def _minari_env_id(path: Path) -> str | None:
    """From the `metadata.json` that Minari writes beside its file."""
    try:
        metadata = json.loads((path.parent / "metadata.json").read_text())
        return env_id_of_spec(metadata["env_spec"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def env_id_of_spec(spec: str | Mapping[str, Any]) -> str | None:
    """The id in a Gymnasium environment's specification, which may be JSON."""
    parsed = json.loads(spec) if isinstance(spec, str) else spec
    return parsed.get("id")


# --- both


def _env_id(path: Path, file: h5py.File) -> str | None:
    """The environment that a file says it is from, if it does.

    Looked for, in this order: `env`, `env_id` or `env_name` as an attribute of the
    file, the same in its `metadata` group, and the same in the JSON of an `info` attribute; then
    the `env_spec` that older versions of Minari keep as an attribute.
    """
    sources: list[Mapping[str, Any]] = [dict(file.attrs)]
    metadata = file.get("metadata")
    if isinstance(metadata, h5py.Group):
        values = {key: _column(path, file, f"metadata/{key}") for key in ENV_KEYS}
        short = {key: v[()] for key, v in values.items() if v is not None and v.shape == ()}
        sources += [dict(metadata.attrs), short]
    try:
        info = json.loads(_text(sources[0].get("info", "{}")))
    except ValueError:
        info = None  # free text
    if isinstance(info, dict):
        sources.append(info)
    for source in sources:
        for key in ENV_KEYS:
            if key in source:
                return _text(source[key])
    try:
        return env_id_of_spec(_text(sources[0]["env_spec"]))
    except (KeyError, ValueError, AttributeError):
        return None


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    if not is_file(path):
        raise UserError(f"no file {path}: give file: and the path of a data set")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:  # h5py raises either for damaged bytes
        raise UserError(f"{path} cannot be read as HDF5: {one_line(error)}") from error


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
