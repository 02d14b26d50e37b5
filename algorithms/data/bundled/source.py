"""Bundled data as a source: resolved from recipes, made on first use, kept in the storage."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from rich.console import Console
from rich.progress import Progress

from algorithms.data import hdf5
from algorithms.data.bundled.generate import generate
from algorithms.data.bundled.recipe import apportion, policy_set
from algorithms.data.catalog import CATALOG, Bundled
from algorithms.data.columns import understand
from algorithms.data.dataset import OfflineDataset, arrays_sha256
from algorithms.data.source import of_catalog
from algorithms.data.spec import DEFAULT_SIZE, Choices, DatasetSpec, Part, Recipe
from algorithms.environments.table import ENVIRONMENTS
from algorithms.errors import UserError
from algorithms.storage import Storage

log = logging.getLogger(__name__)

# Part of every recipe: raise it when the same recipe would give other transitions.
GENERATOR_VERSION = 1
MIN_SIZE, MAX_SIZE = 1_000, 1_000_000


def resolve(dataset_id: str, choices: Choices, storage: Storage | None) -> DatasetSpec:
    del storage
    entry = CATALOG[dataset_id]
    assert isinstance(entry, Bundled)
    size = DEFAULT_SIZE if choices.size is None else choices.size
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise UserError(f"size {size} of {dataset_id}: give {MIN_SIZE:,} to {MAX_SIZE:,}")
    recipe = make_recipe(entry, size)
    spec = DatasetSpec(
        id=dataset_id,
        env_id=entry.env_id,
        content_hash=recipe.content_hash,
        size=size,
        recipe=recipe,
        task=entry.task,
        version=f"generator {GENERATOR_VERSION}",
    )
    return of_catalog(dataset_id, spec, choices)


def make_recipe(entry: Bundled, size: int, seed: int = 0) -> Recipe:
    """What decides the content of that many transitions."""
    levels = policy_set(entry.policies).levels
    shares = entry.mixture(levels)
    parts = tuple(
        Part(level=name, sha256=levels[name].sha256, size=rows)
        for name, rows in zip(shares, apportion(shares.values(), size), strict=True)
        if rows > 0
    )
    return Recipe(
        generator_version=GENERATOR_VERSION,
        env_id=entry.env_id,
        policies=entry.policies,
        parts=parts,
        seed=seed,
    )


def missing(spec: DatasetSpec, storage: Storage) -> None:
    """Nothing ever is: what is not there is made."""
    del spec, storage


def at_hand(spec: DatasetSpec, storage: Storage) -> bool:
    return storage.path(cache_name(spec)).is_file()


def cache_name(spec: DatasetSpec) -> str:
    """Where the generated data set is kept in a storage."""
    return f"data/{spec.slug}-{spec.content_hash[:12]}.hdf5"


def to_download(spec: DatasetSpec, storage: Storage) -> int:
    del spec, storage
    return 0


def load(spec: DatasetSpec, storage: Storage, progress: Progress | None) -> OfflineDataset:
    """The data set from the cache, else generated; of several processes one generates."""
    assert spec.recipe is not None
    name = cache_name(spec)
    with storage.lease(name.replace("/", "-")):
        data = _read_cached(spec, storage)
        if data is None:
            with _advancing(spec, progress) as advance:
                data, scores = generate(spec.recipe, advance)
            attributes = {
                "id": spec.id,
                "env": spec.env_id,
                "content_hash": spec.content_hash,
                "arrays_sha256": arrays_sha256(data),
                "recipe": spec.recipe.model_dump_json(),
                "level_scores": json.dumps(scores),
            }
            storage.put(name, hdf5.encode(data, attributes))
    return data


def _read_cached(spec: DatasetSpec, storage: Storage) -> OfflineDataset | None:
    if not at_hand(spec, storage):
        return None
    path = storage.fetch(cache_name(spec))
    try:
        data = understand([hdf5.read(path)], ENVIRONMENTS[spec.env_id], spec.env_id).data
        if hdf5.read_attribute(path, "arrays_sha256") == arrays_sha256(data):
            return data
    except UserError as error:
        log.debug("%s", error)
    log.warning("%s is damaged: generating %s again", path, spec.id)
    return None


@contextmanager
def _advancing(spec: DatasetSpec, progress: Progress | None) -> Iterator[Callable[[int], None]]:
    """Shows progress: a bar on a terminal, a line elsewhere."""
    description = f"generating {spec.id}, {spec.size:,} transitions"
    display: AbstractContextManager[Progress]
    if progress is not None:
        display = nullcontext(progress)
    else:
        console = Console(stderr=True)
        display = Progress(console=console, disable=not console.is_terminal)
        if not console.is_terminal:
            console.print(description, highlight=False, soft_wrap=True)
    with display as shown:
        yield partial(shown.advance, shown.add_task(description, total=spec.size))
