"""Any data set that can be read, written for other programs: D4RL's layout, or Minari's."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np

from algorithms.data import hdf5
from algorithms.data.columns import one_line
from algorithms.data.dataset import OfflineDataset
from algorithms.data.minari import minari_package
from algorithms.data.spec import MINARI_PREFIX, DatasetSpec
from algorithms.environments.table import ENVIRONMENTS, make_env
from algorithms.errors import UserError
from algorithms.identity import code_version

SUFFIXES = (".hdf5", ".h5")


def write_d4rl(data: OfflineDataset, spec: DatasetSpec, path: Path) -> None:
    """Write an HDF5 file in D4RL's layout, actions in the environment's units.

    Raises:
        UserError: there is a file already, or it cannot be written.
    """
    refuse_unusable(str(path))
    write_new(path, hdf5.encode(_own_actions(data, spec), _provenance(spec)))


def refuse_unusable(out: str) -> None:
    """Raises a UserError for a target that cannot be written, before any work is done for it.

    Args:
        out: a new file whose name ends in `.hdf5`, or `minari/` and an id with a version.
    """
    if out.startswith(MINARI_PREFIX):
        minari_package()
        from minari.dataset.minari_dataset import parse_dataset_id

        name = out.removeprefix(MINARI_PREFIX)
        try:
            _, dataset, version = parse_dataset_id(name)
            gone = version is None or not dataset
        except (ValueError, TypeError):
            gone = True
        if gone:
            raise UserError(f"{out}: give minari/ and an id such as mine/hopper-v0")
        return
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{out}: give a file whose name ends in .hdf5, or minari/ID")
    try:
        exists = path.exists()
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    if exists:
        raise UserError(f"{out} is there already: remove it, or give another name")


def write_new(path: Path, content: bytes) -> None:
    """Write a file that is not there yet, whole or not at all."""
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("xb") as file:
            file.write(content)
        os.link(aside, path)  # atomic, and fails where there is a file
    except FileExistsError:
        refuse_unusable(str(path))
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def write_minari(data: OfflineDataset, spec: DatasetSpec, dataset_id: str) -> None:
    """Write a data set of Minari's into its local folder, under `minari/ID`.

    Raises:
        UserError: the package is missing, or refuses the id.
    """
    minari = minari_package()
    from minari.data_collector import EpisodeBuffer

    refuse_unusable(dataset_id)
    data = _own_actions(data, spec)
    buffers = [
        EpisodeBuffer(
            id=index,
            observations=np.concatenate([data.obs[start:end], data.next_obs[end - 1 : end]]),
            actions=data.action[start:end],
            rewards=data.reward[start:end].astype(np.float64),
            terminations=data.terminal[start:end] > 0,
            truncations=_truncations(data, start, end),
            infos={},
        )
        for index, (start, end) in enumerate(_episodes(data))
    ]
    env = make_env(spec.env_id)
    try:
        minari.create_dataset_from_buffers(
            dataset_id.removeprefix(MINARI_PREFIX),
            buffer=buffers,
            env=env.spec,
            observation_space=env.observation_space,
            action_space=env.unwrapped.action_space,
            data_format="hdf5",
            description="; ".join(f"{key}: {value}" for key, value in _provenance(spec).items()),
        )
    except (ValueError, AssertionError, OSError) as error:
        raise UserError(f"{dataset_id} cannot be written: {one_line(error)}") from error
    finally:
        env.close()


def _episodes(data: OfflineDataset) -> list[tuple[int, int]]:
    """First row and row after the last of every episode, an unfinished one at the end included."""
    edges = [0, *data.episode_ends.tolist()]
    if edges[-1] < len(data.reward):
        edges.append(len(data.reward))
    return list(pairwise(edges))


def _truncations(data: OfflineDataset, start: int, end: int) -> np.ndarray:
    """A recording that stops inside an episode truncates it."""
    truncations = data.timeout[start:end].copy()
    truncations[-1] |= data.terminal[end - 1] == 0
    return truncations


def _own_actions(data: OfflineDataset, spec: DatasetSpec) -> OfflineDataset:
    env = ENVIRONMENTS[spec.env_id]
    if not env.rescaled_actions:
        return data
    return data._replace(action=env.from_unit_actions(data.action).astype(np.float32))


def _provenance(spec: DatasetSpec) -> dict[str, str]:
    provenance = {
        "env": spec.env_id,
        "converted_from": spec.id,
        "version": spec.version,
        "content": spec.content_hash,
        "notes": "; ".join((*spec.notes, *spec.silenced)),
        "code": code_version(),
    }
    return {key: value for key, value in provenance.items() if value}
