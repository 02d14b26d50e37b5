"""Bundled data: rolled out from the package's policies on first use, then kept.

The result follows from the recipe alone, whatever the number of processes:
a level's transitions are divided into fixed shards with seeds of their own.
(Another kind of processor may round otherwise, and a simulator amplifies it;
the data are then equal in distribution.) These are this project's own data, in
D4RL's manner and layout; scores on them do not compare with D4RL's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from algorithms.data.bundled import shards
from algorithms.data.bundled.recipe import level_file
from algorithms.data.bundled.shards import Shard
from algorithms.data.dataset import OfflineDataset
from algorithms.data.spec import Part, Recipe
from algorithms.errors import UserError
from algorithms.identity import file_sha256

BUNDLED_STREAM = 0xDA7A


def generate(
    recipe: Recipe,
    advance: Callable[[int], None],
    processes: int | None = None,
) -> tuple[OfflineDataset, dict[str, float]]:
    """Roll the policies out.

    Args:
        recipe: what to make.
        advance: called, from several threads, with a number of new transitions.
        processes: at most this many; by default one per core.

    Returns:
        The transitions, whole episodes of all levels in random order, and the mean
        normalised score of each level's complete episodes. The last episode of a level
        is cut where its share is full, and marked as a timeout there.
    """
    with TemporaryDirectory(prefix="orchestrator-data-") as folder:
        work = {part: _shards(recipe, part, Path(folder)) for part in recipe.parts}
        shards.run([shard for of_part in work.values() for shard in of_part], advance, processes)
        levels = {part: OfflineDataset(**shards.read(of_part)) for part, of_part in work.items()}
    scores = {}
    for part, level in levels.items():
        levels[part] = cut = OfflineDataset(*(array[: part.size] for array in level))
        if len(cut.episode_ends):
            scores[part.level] = cut.behaviour_score(recipe.env_id)
        cut.timeout[-1] |= cut.terminal[-1] == 0
    data = OfflineDataset(*map(np.concatenate, zip(*levels.values(), strict=True)))
    return _shuffle_episodes(data, np.random.default_rng([BUNDLED_STREAM, recipe.seed])), scores


def _shards(recipe: Recipe, part: Part, folder: Path) -> list[Shard]:
    policy = level_file(recipe.policies, part.level)
    if file_sha256(policy) != part.sha256:
        raise UserError(f"{policy} is not the policy that was planned: reinstall, and run again")
    return shards.divide(
        Shard(
            env_id=recipe.env_id,
            policy=policy,
            seed_words=(BUNDLED_STREAM, recipe.seed, int(part.sha256[:8], 16)),
            size=part.size,
            output=folder / part.level,
        )
    )


def _shuffle_episodes(data: OfflineDataset, rng: np.random.Generator) -> OfflineDataset:
    ends = data.episode_ends
    rows = np.split(np.arange(ends[-1]), ends[:-1])
    order = np.concatenate([rows[i] for i in rng.permutation(len(rows))])
    return OfflineDataset(*(array[order] for array in data))
