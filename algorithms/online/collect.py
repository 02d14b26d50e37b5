"""Collecting data: any exported policy, or a level of the package's, rolled out in MuJoCo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from algorithms.data import hdf5
from algorithms.data.bundled import shards
from algorithms.data.bundled.recipe import level_file, policies_folder, policy_set
from algorithms.data.bundled.shards import Shard
from algorithms.data.dataset import OfflineDataset
from algorithms.environments.table import ENVIRONMENTS
from algorithms.errors import UserError, expected
from algorithms.identity import code_version, file_sha256
from algorithms.storage import is_file

COLLECTION_STREAM = 0xC011


@dataclass(frozen=True)
class Collection:
    """What was collected, and how.

    Attributes:
        env_id: of the environment.
        data: the transitions, whole episodes in the order of their starts.
        infos: `qpos` `[n, nq]` and `qvel` `[n, nv]` before each action, float64, as `verify`
            needs them; empty where the environment is not MuJoCo's.
        attributes: environment, policy and its SHA-256, seed, versions.
    """

    env_id: str
    data: OfflineDataset
    infos: dict[str, np.ndarray]
    attributes: dict[str, str | int]

    def encode(self) -> bytes:
        """The bytes of a file in D4RL's layout, actions in the environment's own units."""
        env = ENVIRONMENTS[self.env_id]
        data = self.data
        if env.rescaled_actions:
            own = env.from_unit_actions(data.action).astype(np.float32)
            data = data._replace(action=own)
        return hdf5.encode(data, self.attributes, self.infos)


@dataclass(frozen=True)
class _Named:
    name: str
    path: Path
    env_id: str | None  # of a level: where it was trained


def collect(
    policy: Path | str,
    env_id: str | None,
    size: int,
    seed: int = 0,
    *,
    deterministic: bool = False,
    processes: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Collection:
    """Roll a policy out for `size` transitions; the same arguments give the same arrays.

    The last episode is cut where the size is reached, and marked as a timeout there.

    Args:
        policy: a file of `orchestrator export`, or a level of the package: `hopper/medium`.
        env_id: a key of `ENVIRONMENTS`; may be None for a level, which has its own.
        size: number of transitions.
        seed: of initial states and actions.
        deterministic: take the policy's mode instead of a sampled action; an exported policy
            has nothing else.
        processes: at most this many; by default one per core.
        advance: called, from several threads, with a number of new transitions.

    Raises:
        UserError: no such policy or environment, they do not fit each other, the policy has no
            actions to sample or gives some that are not finite, or `size` is below 1.
    """
    found = _find(policy)
    env_id = _environment(found, env_id)
    if size < 1:
        raise UserError(f"size {size}: give at least 1")
    if found.env_id is None:
        if not deterministic:
            raise UserError(
                f"{policy} was exported as one action for each state, so there is nothing to "
                "sample: say that deterministic actions are wanted"
            )
        _check_exported(found.path, env_id)
    sha256 = file_sha256(found.path)
    with TemporaryDirectory(prefix="orchestrator-data-") as folder:
        work = shards.divide(
            Shard(
                env_id=env_id,
                policy=found.path.absolute(),
                seed_words=(COLLECTION_STREAM, seed, int(sha256[:8], 16)),
                size=size,
                output=Path(folder) / "shard",
                deterministic=deterministic,
                states=True,
            )
        )
        shards.run(work, advance, processes)
        arrays = {name: array[:size] for name, array in shards.read(work).items()}
    data = OfflineDataset(**{name: arrays.pop(name) for name in OfflineDataset._fields})
    if not np.isfinite(data.action).all():
        raise UserError(f"{policy} gave actions that are not finite in {env_id}")
    data.timeout[-1] |= data.terminal[-1] == 0
    attributes: dict[str, str | int] = {
        "env": env_id,
        "policy": found.name,
        "policy_sha256": sha256,
        "actions": "deterministic" if deterministic else "sampled",
        "seed": seed,
        "mujoco": version("mujoco"),
        "gymnasium": version("gymnasium"),
        "code": code_version(),
    }
    return Collection(env_id, data, arrays, attributes)


def _find(policy: Path | str) -> _Named:
    """A file if there is one of that name, else a level."""
    if is_file(Path(policy)):
        return _Named(Path(policy).name, Path(policy), None)
    levels = bundled_levels()
    if str(policy) not in levels:
        raise UserError(expected("policy", str(policy), [*levels, "the path of an exported file"]))
    name, level = str(policy).split("/")
    return _Named(str(policy), level_file(name, level), policy_set(name).env_id)


def bundled_levels() -> list[str]:
    """The package's policies, `hopper/medium` for example, by set and amount of training."""
    folders = policies_folder("").iterdir()
    names = sorted(f.name for f in folders if (f / "policies.json").is_file())
    return [f"{name}/{level}" for name in names for level in policy_set(name).levels]


def _environment(found: _Named, env_id: str | None) -> str:
    if env_id is None and found.env_id is None:
        raise UserError(f"{found.name} does not say where it acts: give env")
    if env_id is not None and env_id not in ENVIRONMENTS:
        raise UserError(expected("env", env_id, ENVIRONMENTS))
    if None not in (env_id, found.env_id) and env_id != found.env_id:
        raise UserError(f"{found.name} was trained in {found.env_id}, not {env_id}: remove env")
    return str(env_id or found.env_id)


def _check_exported(path: Path, env_id: str) -> None:
    """Raises a UserError unless the file maps the environment's observations to its actions."""
    import torch

    from algorithms.online.rollout import load_exported

    env = ENVIRONMENTS[env_id]
    try:
        policy = load_exported(path, env_id)
    except Exception as error:  # zipfile's, json's or torch's own, by what the bytes are
        raise UserError(
            f"{path} is not a policy as orchestrator export writes it: {type(error).__name__}"
        ) from error
    try:
        shape = tuple(policy(torch.zeros(2, env.obs_dim)).shape)
    except Exception as error:
        raise UserError(
            f"{path} does not take observations of {env_id}, which have {env.obs_dim} values"
        ) from error
    if shape != (2, env.action_dim):
        raise UserError(
            f"{path} gives actions of {shape[-1]} values, but {env_id} takes {env.action_dim}"
        )
