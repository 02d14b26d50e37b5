"""The package's policies, and in which shares they make a bundled data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


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
    training: dict[str, Any]  # `algorithms.online.training.OnlineSettings`
    levels: dict[str, Level]


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


def policies_folder(name: str) -> Traversable:
    """The package's folder of one set of policies."""
    return files("algorithms.data.bundled") / "policies" / name


def level_file(name: str, level: str) -> Path:
    """The file with the weights of one level of a set."""
    return Path(str(policies_folder(name) / policy_set(name).levels[level].file))


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
