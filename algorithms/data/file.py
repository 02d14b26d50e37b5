"""Files of one's own, in every layout that `hdf5` and `tables` read, known by their bytes.

`file:PATH` is a file, a folder of Minari's, or a pattern such as `runs/*.npz`; several of these
are joined by ` + `. All together are one data set, in the order of their names.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from rich.progress import Progress

from algorithms.data import hdf5, tables
from algorithms.data.catalog import TASKS
from algorithms.data.checks import Evidence, judge, refuse_unknown_checks
from algorithms.data.columns import (
    Columns,
    Understood,
    one_line,
    refuse_beyond_memory,
    understand,
)
from algorithms.data.dataset import OfflineDataset
from algorithms.data.source import refuse_size
from algorithms.data.spec import (
    FILE_PREFIX,
    FILE_SEPARATOR,
    ActionChoice,
    Choices,
    DataFile,
    DatasetSpec,
)
from algorithms.environments.table import ENVIRONMENTS, Environment
from algorithms.errors import UserError, expected
from algorithms.identity import file_sha256
from algorithms.storage import Storage, is_dir, is_file


class Format(NamedTuple):
    """How files of a kind are read, and how large what is in them will be."""

    read: Callable[[Path], Columns]
    declared_bytes: Callable[[Path], int]


# By how a file's name ends.
FORMATS: dict[str, Format] = {
    ".hdf5": Format(hdf5.read, hdf5.declared_bytes),
    ".h5": Format(hdf5.read, hdf5.declared_bytes),
    ".npz": Format(tables.read_npz, tables.npz_bytes),
    ".parquet": Format(tables.read_parquet, tables.parquet_bytes),
}
Value = TypeVar("Value")
MINARI_FILES = ("data/main_data.hdf5", "main_data.hdf5")  # in a data set's folder
# Part of the content of data that is not just as its file has it: raise it when the same files
# would be understood otherwise.
READING_VERSION = 1


def resolve(dataset_id: str, choices: Choices, storage: Storage | None) -> DatasetSpec:
    """Read the files, understand them, and check them."""
    del storage
    refuse_size(dataset_id, choices.size)
    refuse_unknown_checks(choices.allow)
    given = absolute_paths(dataset_id)
    columns = read_files(found_files(given))
    where = FILE_SEPARATOR.join(map(str, given))
    env_id = _env_id(where, columns, choices.env)
    if choices.task is not None and TASKS[choices.task] != env_id:
        fitting = ", ".join(name for name, env_of_task in TASKS.items() if env_of_task == env_id)
        raise UserError(
            f"task {choices.task} is of env {TASKS[choices.task]}, but {where} is of {env_id}: "
            f"{fitting or 'there is none of it'}"
        )
    files = tuple(
        DataFile(path=part.where, sha256=file_sha256(Path(part.where))) for part in columns
    )
    same = {file.sha256: file.path for file in files}
    if len(same) < len(files):
        twice = next(file for file in files if same[file.sha256] != file.path)
        raise UserError(f"{twice.path} and {same[twice.sha256]} hold the same: leave one out")
    return specify(f"{FILE_PREFIX}{where}", env_id, columns, files, choices)


def specify(
    dataset_id: str,
    env_id: str,
    columns: Sequence[Columns],
    files: tuple[DataFile, ...],
    choices: Choices,
) -> DatasetSpec:
    """What the data set of these columns is.

    Args:
        dataset_id: with absolute paths.
        env_id: of `ENVIRONMENTS`.
        columns: of each file.
        files: by which the content is known.
        choices: what the user says beside the paths.

    Raises:
        UserError: the columns cannot be understood, or a check found an error.
    """
    env = ENVIRONMENTS[env_id]
    where = dataset_id.removeprefix(FILE_PREFIX)
    understood = understand(columns, env, env_id)
    data, changed = _bounded(understood.data, env, choices.actions)
    notes = [*understood.notes, *([f"{where}: {changed}"] if changed else [])]
    evidence = Evidence(data, columns, understood.derived, env_id)
    verdict = judge(where, evidence, choices.allow)
    return DatasetSpec(
        id=dataset_id,
        env_id=env_id,
        content_hash=content_hash(files, understood, env, choices.actions if changed else None),
        size=len(data.reward),
        action_bounds=env.action_bounds,
        task=choices.task,
        files=files,
        actions=choices.actions if changed else None,
        notes=tuple(notes),
        warnings=verdict.warnings,
        silenced=verdict.silenced,
    )


def missing(spec: DatasetSpec, storage: Storage) -> str | None:
    del storage
    gone = [file.path for file in spec.files if not is_file(Path(file.path))]
    return f"no file {gone[0]}: it was there when it was planned" if gone else None


def at_hand(spec: DatasetSpec, storage: Storage) -> bool:
    return missing(spec, storage) is None


def to_download(spec: DatasetSpec, storage: Storage) -> int:
    del spec, storage
    return 0


def load(spec: DatasetSpec, storage: Storage, progress: Progress | None) -> OfflineDataset:
    """Raises: UserError: a file has changed since the spec was made."""
    del storage, progress
    columns = read_files([Path(file.path) for file in spec.files])
    for file in spec.files:
        if file_sha256(Path(file.path)) != file.sha256:
            raise UserError(f"{file.path} has changed since it was planned: run the command again")
    return transitions(columns, spec)


def transitions(columns: Sequence[Columns], spec: DatasetSpec) -> OfflineDataset:
    """What `specify` has found plausible, once more: actions in [-1, 1], as policies act."""
    env = ENVIRONMENTS[spec.env_id]
    understood = understand(columns, env, spec.env_id)
    return _in_units(_bounded(understood.data, env, spec.actions)[0], env)


# --- paths


def absolute_paths(dataset_id: str, folder: Path | None = None) -> list[Path]:
    """The paths of an id; patterns stay.

    Args:
        dataset_id: `file:PATH`, or several joined by ` + `.
        folder: that relative paths begin at; by default the working directory.

    Raises:
        UserError: one begins with the home of somebody who has none.
    """
    paths = []
    whole = dataset_id.removeprefix(FILE_PREFIX)
    several = FILE_SEPARATOR in whole and not is_file((folder or Path()) / whole)
    for given in whole.split(FILE_SEPARATOR) if several else [whole]:
        path = Path(given.removeprefix(FILE_PREFIX))
        try:
            path = path.expanduser() if str(path).startswith("~") else path
        except RuntimeError as error:
            raise UserError(f"{dataset_id}: {error} Give a path without ~.") from None
        paths.append((folder or Path()).absolute() / path)
    return paths


def absolute_id(dataset_id: str, folder: Path | None = None) -> str:
    """The id with absolute paths; one of another source as it is."""
    if not dataset_id.startswith(FILE_PREFIX):
        return dataset_id
    paths = absolute_paths(dataset_id, folder)
    return FILE_PREFIX + FILE_SEPARATOR.join(map(str, paths))


def found_files(given: Sequence[Path]) -> list[Path]:
    """The files of paths, folders of Minari's and patterns, each once.

    Raises:
        UserError: a file or folder is not there, or is of no kind that can be read.
    """
    found: dict[Path, None] = {}
    for path in given:
        if is_file(path):
            found[path] = None
        elif is_dir(path):
            inside = [path / name for name in MINARI_FILES if is_file(path / name)]
            if not inside:
                raise UserError(
                    f"{path} is a folder without Minari's {MINARI_FILES[0]}: give a file, or a "
                    f"pattern such as {path}/*.hdf5"
                )
            found[inside[0]] = None
        else:
            matches = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - absolute
            matches = [match for match in matches if is_file(match)]
            if not matches:
                kind = "no file matches" if glob.has_magic(str(path)) else "no file"
                raise UserError(f"{kind} {path}: give file: and the path of a data set")
            found |= dict.fromkeys(matches)
    return list({path.resolve(): path for path in found}.values())


def read_files(paths: Sequence[Path]) -> list[Columns]:
    """The columns of each file.

    Raises:
        UserError: the name of one ends as that of no kind, it cannot be read, or all together
            would not fit into memory, which is told before any is read.
    """
    for path in paths:
        if path.suffix.lower() not in FORMATS:
            raise UserError(
                f"{path}: files whose names end in {', '.join(FORMATS)} can be read, "
                f"not in {path.suffix or 'nothing'}"
            )
    where = str(paths[0]) if len(paths) == 1 else f"{len(paths)} files from {paths[0]} on"
    formats = [FORMATS[path.suffix.lower()] for path in paths]
    pairs = list(zip(formats, paths, strict=True))
    refuse_beyond_memory(where, sum(_carefully(kind.declared_bytes, path) for kind, path in pairs))
    return [_carefully(kind.read, path) for kind, path in pairs]


def _carefully(function: Callable[[Path], Value], path: Path) -> Value:
    """A file may hold anything: whatever a library raises is one sentence."""
    try:
        return function(path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error


def _env_id(where: str, columns: Sequence[Columns], given: str | None) -> str:
    named = {part.env_id: part.where for part in columns if part.env_id is not None}
    if given is not None:
        return given
    if not named:
        raise UserError(
            f"{where} does not name its environment: give env, one of {', '.join(ENVIRONMENTS)}"
        )
    if len(named) > 1:
        told = " and ".join(f"{path} of {env_id}" for env_id, path in named.items())
        raise UserError(f"the files are of different environments, {told}: give env")
    (env_id,) = named
    if env_id not in ENVIRONMENTS:
        raise UserError(f"{where}: {expected('env', env_id, ENVIRONMENTS)}; env may be given")
    return env_id


# --- actions


def _bounded(
    data: OfflineDataset, env: Environment, choice: ActionChoice | None
) -> tuple[OfflineDataset, str | None]:
    """Actions in the environment's units, changed as chosen; and what was done, None if nothing."""
    if choice is None:
        return data, None
    middle, half = (env.action_high + env.action_low) / 2, (env.action_high - env.action_low) / 2
    size = np.abs((data.action - middle) / half)  # 1 at the bounds
    if choice == "clip":
        beyond = (size > 1.0).any(axis=1).sum()
        action = data.action.clip(env.action_low, env.action_high)
        said = f"actions are clipped to the bounds in {beyond:,} of {len(action):,} rows"
        return (data._replace(action=action), said) if beyond else (data, None)
    largest = size.max()
    if largest == 0.0:
        return data, None
    action = (middle + (data.action - middle) / largest).astype(np.float32)
    said = f"actions are divided by {largest:.6g}, so that the largest is at the bound"
    return data._replace(action=action), said


def _in_units(data: OfflineDataset, env: Environment) -> OfflineDataset:
    """Actions in [-1, 1], as policies act."""
    if not env.rescaled_actions:
        return data
    return data._replace(action=env.to_unit_actions(data.action).astype(np.float32))


# --- identity


def content_hash(
    files: Sequence[DataFile], understood: Understood, env: Environment, actions: str | None
) -> str:
    """A single file that is taken as it is has its own hash, whatever its layout."""
    if len(files) == 1 and not understood.derived and actions is None:
        return files[0].sha256
    content = {
        "reading": READING_VERSION,
        "files": [file.sha256 for file in files],
        "derived": understood.derived,
        "limit": env.max_episode_steps if "timeouts" in understood.derived else None,
        "actions": actions,
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
