"""Where data come from: `SOURCES` has one row for each kind, chosen by how an id begins.

A source is a module with the functions of `DataSource`. Like the catalogue, this module does not
import torch, and a source is imported when the first id of its kind is met.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Protocol, cast, get_args

from rich.progress import Progress

from algorithms.data.catalog import CATALOG, D4RL_PREFIX, TASKS, full_id
from algorithms.data.dataset import OfflineDataset
from algorithms.data.mapped import load_shared
from algorithms.data.spec import FILE_PREFIX, ActionChoice, Choices, DatasetSpec
from algorithms.environments.table import ENVIRONMENTS
from algorithms.errors import UserError, expected
from algorithms.storage import Storage

SOURCES = {
    "bundled/": "algorithms.data.bundled.source",
    "d4rl/": "algorithms.data.d4rl",
    "minari/": "algorithms.data.minari",
    FILE_PREFIX: "algorithms.data.file",
}
CATALOGUED = ("bundled/", "d4rl/")  # all whose names `CATALOG` has


class DataSource(Protocol):
    """What a kind of data has to say; the functions below say what each of these means."""

    def resolve(
        self, dataset_id: str, choices: Choices, storage: Storage | None
    ) -> DatasetSpec: ...

    def missing(self, spec: DatasetSpec, storage: Storage) -> str | None: ...

    def at_hand(self, spec: DatasetSpec, storage: Storage) -> bool: ...

    def to_download(self, spec: DatasetSpec, storage: Storage) -> int: ...

    def load(
        self, spec: DatasetSpec, storage: Storage, progress: Progress | None
    ) -> OfflineDataset: ...


def source_of(dataset_id: str) -> DataSource:
    """The source of an id.

    Raises:
        UserError: no source has such ids, or the catalogue does not know the name.
    """
    for prefix, module in SOURCES.items():
        if dataset_id.startswith(prefix) and (dataset_id in CATALOG or prefix not in CATALOGUED):
            return cast("DataSource", import_module(module))
    ours = [name for name in CATALOG if not name.startswith(D4RL_PREFIX)]
    nearest = get_close_matches(dataset_id, CATALOG.keys() - ours, n=3, cutoff=0.0)
    sentence = expected(
        "data set", dataset_id, [*ours, *nearest, "minari/ID", f"{FILE_PREFIX}PATH"]
    )
    raise UserError(f"{sentence}, or another of D4RL's")


def resolve(
    dataset_id: str,
    *,
    env: str | None = None,
    size: int | None = None,
    task: str | None = None,
    actions: ActionChoice | None = None,
    allow: Sequence[str] = (),
    storage: Storage | None = None,
) -> DatasetSpec:
    """The data set of that name; files of one's own are read and checked.

    Nothing is generated, and a file of D4RL's need not be there, unless its hash is not known:
    then it is downloaded.

    Args:
        dataset_id: a key of `CATALOG`, one of D4RL's own names (`hopper-medium-v2`),
            `minari/ID`, or `file:PATH` of files of one's own.
        env: environment of files that do not name their own.
        size: transitions of bundled data, 1,000 to 1,000,000 (default 100,000).
        task: the key of `TASKS` that files of one's own stand in for; no part of their identity.
        actions: what is done to actions beyond the environment's bounds; by default they are
            refused.
        allow: names of `checks.CHECKS` that are silenced.
        storage: where files are downloaded to; by default $ORCHESTRATOR_STORAGE.

    Raises:
        UserError: unknown name, environment or task; files that are missing, damaged, in no
            layout that can be read, or implausible.
    """
    if actions not in (None, *get_args(ActionChoice)):
        raise UserError(expected("actions", actions, get_args(ActionChoice)))
    choices = Choices(env=env, size=size, task=task, actions=actions, allow=tuple(allow))
    if env is not None and env not in ENVIRONMENTS:
        raise UserError(expected("env", env, ENVIRONMENTS))
    if task is not None and task not in TASKS:
        raise UserError(expected("task", task, TASKS))
    dataset_id = full_id(dataset_id)
    return source_of(dataset_id).resolve(dataset_id, choices, storage)


def load(spec: DatasetSpec, storage: Storage, progress: Progress | None = None) -> OfflineDataset:
    """The transitions of a data set.

    Bundled data is made on first use, D4RL's downloaded, and kept in `storage`.

    A large one is mapped into memory, so that processes share it.

    Args:
        spec: from `resolve`.
        storage: where all is that is kept between runs.
        progress: display to add a bar to where data must be made or downloaded; by default a new
            one on stderr.

    Raises:
        UserError: a file that is missing, or is not the one that `spec` says.
    """
    source = source_of(spec.id)
    return load_shared(spec, storage, lambda: source.load(spec, storage, progress))


def missing(spec: DatasetSpec, storage: Storage) -> str | None:
    """None if `load` can have the data, else one sentence: which file to put where.

    Cheap: no file is opened, so its hash is left to `load`.
    """
    return source_of(spec.id).missing(spec, storage)


def at_hand(spec: DatasetSpec, storage: Storage) -> bool:
    """Whether `load` only has to read, with nothing to generate or download first."""
    return source_of(spec.id).at_hand(spec, storage)


def to_download(spec: DatasetSpec, storage: Storage) -> int:
    """Bytes that `load` has to download first; 0 where it has nothing to."""
    return source_of(spec.id).to_download(spec, storage)


def of_catalog(dataset_id: str, spec: DatasetSpec, choices: Choices) -> DatasetSpec:
    """`spec`, if what was said beside its name does not contradict the catalogue.

    Raises:
        UserError: it does.
    """
    if choices.env not in (None, spec.env_id):
        raise UserError(f"{dataset_id} is of env {spec.env_id}, not {choices.env}: remove env")
    if choices.task is not None:
        raise UserError(
            f"task may be given for {FILE_PREFIX} data only: remove it from {dataset_id}, "
            f"whose task is {spec.task}"
        )
    for name in ("actions", "allow"):
        if getattr(choices, name):
            raise UserError(
                f"{name} may be given for data of one's own only: remove it from {dataset_id}"
            )
    return spec


def refuse_size(dataset_id: str, size: int | None) -> None:
    """Raises a UserError if a size was given, which bundled data alone has."""
    if size is not None:
        raise UserError(f"size applies to bundled data sets only: remove it from {dataset_id}")
