"""Which data sets there are, and what one is: `CATALOG` has one entry per data set.

Resolving a name of the catalogue needs no data: bundled data is identified by
the recipe from which it is rolled out, D4RL's by the pinned hash of its file. A
file of one's own is identified by its bytes. This module does not import torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from algorithms.data import hdf5
from algorithms.environments.table import ENVIRONMENTS
from algorithms.errors import UserError, expected

FILE_PREFIX = "file:"
D4RL_PREFIX, D4RL_VERSION = "d4rl/", "-v2"
# D4RL's locomotion tasks, by which the papers' hyperparameters are listed: task -> env_id.
TASKS: dict[str, str] = {
    f"{robot}-{level}": env_id
    for robot, env_id in (
        ("hopper", "Hopper-v4"),
        ("walker2d", "Walker2d-v4"),
        ("halfcheetah", "HalfCheetah-v4"),
    )
    for level in ("medium", "medium-replay", "medium-expert")
}
# Part of every recipe: raise it when the same recipe would give other transitions.
GENERATOR_VERSION = 1
DEFAULT_SIZE, MIN_SIZE, MAX_SIZE = 100_000, 1_000, 1_000_000


class Level(BaseModel):
    """A policy in `policies/<name>/policies.json`: how it came about and what it reaches."""

    model_config = ConfigDict(frozen=True)

    file: str
    sha256: str  # of the file
    steps: int  # environment steps of training behind it
    gradient_steps: int
    episodes: int  # on which it was measured, with deterministic actions
    return_mean: float
    return_std: float
    normalized_score: float


class PolicySet(BaseModel):
    """`policies/<name>/policies.json`: the levels of one training, weakest training first."""

    model_config = ConfigDict(frozen=True)

    env_id: str
    dtype: str  # of the stored weights; measured and run as stored
    training: dict[str, Any]  # `algorithms.online.OnlineSettings`
    levels: dict[str, Level]


class Part(BaseModel):
    """`size` transitions of one level."""

    model_config = ConfigDict(frozen=True)

    level: str
    sha256: str  # of the policy's weights
    size: Annotated[int, Field(ge=1)]


class Recipe(BaseModel):
    """All that decides the content of a bundled data set."""

    model_config = ConfigDict(frozen=True)

    generator_version: int
    env_id: str
    policies: str  # folder name of a `PolicySet`
    parts: tuple[Part, ...]
    seed: int

    @property
    def content_hash(self) -> str:
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class DatasetSpec(BaseModel):
    """What a data set is: small, picklable, hashable; `datasets.load` turns it into arrays.

    Attributes:
        id: `bundled/...`, `d4rl/...`, or `file:` and an absolute path.
        env_id: a key of `ENVIRONMENTS`.
        content_hash: SHA-256 (hex) of a file's bytes, or of the recipe of bundled data.
        size: number of transitions; None for a file of D4RL's, which need not be there yet.
        recipe: of bundled data.
        task: a key of `TASKS`, the one that the data are or stand in for. Presets look
            hyperparameters up by it; it is no part of the data's identity.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    env_id: str
    content_hash: str
    size: int | None = None
    recipe: Recipe | None = None
    task: str | None = None

    @property
    def slug(self) -> str:
        """The name as part of a file name: `d4rl-hopper-medium-v2`, or a file's own name."""
        if self.id.startswith(FILE_PREFIX):
            return Path(self.id).stem
        return self.id.replace("/", "-")


Mixture = Callable[[Mapping[str, Level]], dict[str, float]]


def equal(*names: str) -> Mixture:
    """The named levels in equal shares."""
    return lambda _levels: dict.fromkeys(names, 1.0)


def replay(until: str) -> Mixture:
    """All levels from the untrained one to `until`, as they would fill a replay buffer.

    D4RL's `medium-replay` is the buffer of a training that reached the medium
    level: every policy is in it for as many steps as it was in use. Here each level
    stands for the training steps that are nearest to its own, so its share is the
    half-way distance to its neighbours.
    """

    def shares(levels: Mapping[str, Level]) -> dict[str, float]:
        used = sorted((level.steps, name) for name, level in levels.items())
        used = used[: used.index((levels[until].steps, until)) + 1]
        steps = [step for step, _ in used]
        edges = [
            steps[0],
            *((a + b) / 2 for a, b in pairwise(steps)),
            steps[-1],
        ]
        return {name: edges[i + 1] - edges[i] for i, (_, name) in enumerate(used)}

    return shares


@dataclass(frozen=True)
class Bundled:
    """Rolled out on first use from policies that the package contains."""

    env_id: str
    policies: str
    mixture: Mixture
    task: str | None = None

    def resolve(self, dataset_id: str, size: int, seed: int = 0) -> DatasetSpec:
        levels = policy_set(self.policies).levels
        shares = self.mixture(levels)
        parts = tuple(
            Part(level=name, sha256=levels[name].sha256, size=rows)
            for name, rows in zip(shares, apportion(shares.values(), size), strict=True)
            if rows > 0
        )
        recipe = Recipe(
            generator_version=GENERATOR_VERSION,
            env_id=self.env_id,
            policies=self.policies,
            parts=parts,
            seed=seed,
        )
        return DatasetSpec(
            id=dataset_id,
            env_id=self.env_id,
            content_hash=recipe.content_hash,
            size=size,
            recipe=recipe,
            task=self.task,
        )


@dataclass(frozen=True)
class D4RL:
    """A file of D4RL's (Fu et al. 2020): not shipped, and known by its length and hash."""

    bytes: int
    sha256: str

    def resolve(self, dataset_id: str) -> DatasetSpec:
        task = dataset_id.removeprefix(D4RL_PREFIX).removesuffix(D4RL_VERSION)
        return DatasetSpec(id=dataset_id, env_id=TASKS[task], content_hash=self.sha256, task=task)


CATALOG: dict[str, Bundled | D4RL] = {
    "bundled/hopper-medium": Bundled("Hopper-v4", "hopper", equal("medium"), "hopper-medium"),
    "bundled/hopper-medium-replay": Bundled(
        "Hopper-v4", "hopper", replay(until="medium"), "hopper-medium-replay"
    ),
    "bundled/hopper-medium-expert": Bundled(
        "Hopper-v4", "hopper", equal("medium", "expert"), "hopper-medium-expert"
    ),
    # Bytes and hashes as TensorFlow Datasets records them: d4rl/d4rl_mujoco_*/checksums.tsv.
    "d4rl/hopper-medium-v2": D4RL(
        152_756_557, "5bdf1bc4a713c82941de44633df669b36c89850b652a25985166796d25cf71a0"
    ),
    "d4rl/hopper-medium-replay-v2": D4RL(
        75_854_457, "e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b"
    ),
    "d4rl/hopper-medium-expert-v2": D4RL(
        304_537_315, "9d51ad87f8c905be3880d84c6140bcdb7fbf39a19e046a237f238ba34fec9e26"
    ),
    "d4rl/walker2d-medium-v2": D4RL(
        232_254_996, "cf00f43add04c17fdfc2958dd581dea0851b2e5bedbe6fda073758a8f841aeda"
    ),
    "d4rl/walker2d-medium-replay-v2": D4RL(
        86_323_963, "e75de96a4f77acf7d4e0d6fdf0d7ccb177c26c44bb4388e4fd99f543ccfa18db"
    ),
    "d4rl/walker2d-medium-expert-v2": D4RL(
        462_197_079, "6b8d7f868c45bbaedf460be797fb7271b46dee6ebe45fe7a64319f2005b59a04"
    ),
}


def resolve(
    dataset_id: str,
    *,
    env: str | None = None,
    size: int | None = None,
    task: str | None = None,
) -> DatasetSpec:
    """The data set of that name; a file of one's own is read and checked.

    Nothing is generated, and a file of D4RL's need not be there: `datasets.missing` tells.

    Args:
        dataset_id: a key of `CATALOG`, or `file:PATH` of an HDF5 file in D4RL's layout.
        env: environment of a file that does not name its own.
        size: transitions of bundled data, 1,000 to 1,000,000 (default 100,000).
        task: the key of `TASKS` that a file of one's own stands in for; no part of its identity.

    Raises:
        UserError: unknown name, environment or task, or a file that is missing, damaged or
            not in D4RL's layout.
    """
    if env is not None and env not in ENVIRONMENTS:
        raise UserError(expected("env", env, ENVIRONMENTS))
    if task is not None and task not in TASKS:
        raise UserError(expected("task", task, TASKS))
    own_file = dataset_id.startswith(FILE_PREFIX)
    if not own_file and dataset_id not in CATALOG:
        raise UserError(expected("data set", dataset_id, [*CATALOG, f"{FILE_PREFIX}PATH"]))
    entry = CATALOG.get(dataset_id)
    if size is not None and not isinstance(entry, Bundled):
        raise UserError(f"size applies to bundled data sets only: remove it from {dataset_id}")
    if entry is None:
        return _resolve_file(Path(dataset_id.removeprefix(FILE_PREFIX)), env, task)
    if isinstance(entry, Bundled):
        size = DEFAULT_SIZE if size is None else size
        if not MIN_SIZE <= size <= MAX_SIZE:
            raise UserError(f"size {size} of {dataset_id}: give {MIN_SIZE:,} to {MAX_SIZE:,}")
        spec = entry.resolve(dataset_id, size)
    else:
        spec = entry.resolve(dataset_id)
    if env not in (None, spec.env_id):
        raise UserError(f"{dataset_id} is of env {spec.env_id}, not {env}: remove env")
    if task is not None:
        raise UserError(
            f"task may be given for {FILE_PREFIX} data only: remove it from {dataset_id}, "
            f"whose task is {spec.task}"
        )
    return spec


def _resolve_file(path: Path, env: str | None, task: str | None) -> DatasetSpec:
    path = path.expanduser().absolute()
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
        task=task,
    )


def policies_folder(name: str) -> Traversable:
    """The package's folder of one set of policies."""
    return files("algorithms.data") / "policies" / name


@cache
def policy_set(name: str) -> PolicySet:
    """The description of one set of policies of the package."""
    return PolicySet.model_validate_json((policies_folder(name) / "policies.json").read_bytes())


def apportion(shares: Iterable[float], total: int) -> list[int]:
    """Whole numbers in proportion to `shares` that sum to `total` (largest remainders)."""
    shares = list(shares)
    exact = [total * share / sum(shares) for share in shares]
    counts = [int(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
