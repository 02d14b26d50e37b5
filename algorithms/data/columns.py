"""From the named columns of files to transitions: what is converted, derived, or refused.

Files name their columns as D4RL does (Fu et al. 2020, arXiv 2004.07219) or as Minari does, and
leave some out. What is done about it is written down as a note, one sentence each, and stands
beside every number that the data lead to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from rich.filesize import decimal

from algorithms.data.dataset import OfflineDataset
from algorithms.environments.table import Environment
from algorithms.errors import UserError

REQUIRED = ("observations", "actions", "rewards")
FLAGS = ("terminals", "timeouts")
# Other names of a column: Gymnasium's and Minari's.
ALIASES = {"terminations": "terminals", "truncations": "timeouts"}
RTOL, ATOL = 1e-4, 1e-5  # of equal observations: float32 that went through text or another program
MANY_BREAKS = 0.1  # of all rows: an average episode of ten steps
# Of the machine's memory: the columns as stored, their float32 copies and the result must fit.
MOST_OF_MEMORY = 0.3
NAMES = (*REQUIRED, "next_observations", *FLAGS, *ALIASES)


class Columns(NamedTuple):
    """What a file holds, as it is stored: an array `[rows, ...]` of any type by name."""

    where: str  # the file, for messages
    arrays: Mapping[str, np.ndarray]
    env_id: str | None = None  # that the file names
    notes: tuple[str, ...] = ()


class Understood(NamedTuple):
    """Transitions, and what was done to the columns to have them."""

    data: OfflineDataset
    notes: tuple[str, ...]
    derived: tuple[str, ...]  # columns that no file held


def understand(parts: Sequence[Columns], env: Environment, env_id: str) -> Understood:
    """The transitions of all files, one file after the other.

    Actions stay in the files' units.

    Raises:
        UserError: a column is missing, holds no numbers, NaN or infinite values, or has a shape
            that fits neither the others nor the environment; or no episode ends.
    """
    read = [_transitions(part, env, env_id, is_one_of_many=len(parts) > 1) for part in parts]
    data = OfflineDataset(*map(np.concatenate, zip(*(one.data for one in read), strict=True)))
    notes = [note for part in parts for note in part.notes]
    notes += [note for one in read for note in one.notes]
    derived = {name: None for one in read for name in one.derived}
    return Understood(data, tuple(dict.fromkeys(notes)), tuple(derived))


def _transitions(
    columns: Columns, env: Environment, env_id: str, *, is_one_of_many: bool
) -> Understood:
    where = columns.where
    arrays = _under_one_name(where, columns.arrays)
    _check_shapes(where, arrays, env, env_id)
    notes: list[str] = []
    numbers = {name: _float32(where, name, array, notes) for name, array in arrays.items()}
    terminal = (arrays["terminals"] != 0) if "terminals" in arrays else _none(numbers)
    timeout = (arrays["timeouts"] != 0) if "timeouts" in arrays else _none(numbers)
    derived = []
    if "terminals" not in arrays:
        derived.append("terminals")
        notes.append(f"{where} has no terminals: no transition ends the task")
    if "timeouts" not in arrays or not (terminal | timeout).any():
        derived.append("timeouts")
        limit = env.max_episode_steps
        breaks = _breaks(numbers) & ~terminal
        timeout = _time_limits(terminal | breaks, limit) | breaks
        why = "has no timeouts" if "timeouts" not in arrays else "marks no end of an episode"
        where_else = " and where next_observations does not continue in the next row"
        notes.append(
            f"{where} {why}: episodes end after {limit} steps, {env_id}'s limit"
            f"{f',{where_else} ({breaks.sum():,} rows)' if breaks.any() else ''}"
        )
    if not (terminal | timeout).any():
        raise UserError(
            f"{where}: no episode ends: neither terminals nor timeouts is ever true, and "
            f"{len(terminal)} rows are fewer than the {env.max_episode_steps} steps of an episode "
            f"of {env_id}"
        )
    if "next_observations" not in arrays:
        derived.append("next_observations")
        kept, next_obs, ends = _next_observations(numbers["observations"], terminal | timeout)
        notes.append(
            f"{where} has no next_observations: derived from the rows that follow, so the last "
            f"row of each episode is dropped ({len(terminal) - len(kept):,} of {len(terminal):,}), "
            "and with it whether the task ended"
        )
        if not ends.any():
            raise UserError(f"{where}: no episode of two rows or more is complete")
        numbers = {name: array[kept] for name, array in numbers.items()}
        numbers["next_observations"] = next_obs
        terminal, timeout = np.zeros(len(kept), dtype=bool), ends
    if is_one_of_many and not (terminal[-1] or timeout[-1]):
        timeout = timeout.copy()
        timeout[-1] = True
        notes.append(f"{where} ends inside an episode: its last row is taken as a time limit")
    data = OfflineDataset(
        obs=numbers["observations"],
        action=numbers["actions"],
        reward=numbers["rewards"],
        next_obs=numbers["next_observations"],
        terminal=terminal.astype(np.float32),
        timeout=timeout,
    )
    return Understood(data, tuple(notes), tuple(derived))


def _under_one_name(where: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for given, array in arrays.items():
        name = ALIASES.get(given, given)
        if name in found and not np.array_equal(found[name] != 0, array != 0):
            raise UserError(f"{where} has {name} and {given}, which differ: leave one of them out")
        found.setdefault(name, array)
    return found


def _check_shapes(
    where: str, arrays: Mapping[str, np.ndarray], env: Environment, env_id: str
) -> None:
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise UserError(
            f"{where} has no {' and no '.join(missing)}: needed are {', '.join(REQUIRED)}, and of "
            f"next_observations, {', '.join(FLAGS)} what there is"
        )
    learned = env.termination is None
    for name in ("terminals", "next_observations"):  # without the latter, rows that end are dropped
        if learned and name not in arrays:
            raise UserError(
                f"{where} has no {name}, and which states end an episode of {env_id} is learned "
                "from them: give the environment a termination function"
            )
    for name, array in arrays.items():
        if array.ndim == 0:
            raise UserError(f"{where}: {name} is a single value, not a column")
    rows = len(arrays["observations"])
    if rows == 0:
        raise UserError(f"{where} holds no transitions")
    sizes = {
        "observations": (env.obs_dim,),
        "actions": (env.action_dim,),
        "next_observations": (env.obs_dim,),
    }
    for name, array in arrays.items():
        shape = (rows, *sizes.get(name, ()))
        if array.shape != shape:
            raise UserError(
                f"{where}: {name} has shape {array.shape}, but {rows} observations "
                f"of {env_id} need {shape}"
            )


def _float32(where: str, name: str, array: np.ndarray, notes: list[str]) -> np.ndarray:
    """The values in float32, C-contiguous; what the type was is noted if it says something."""
    if array.dtype.kind not in "fiub":
        raise UserError(f"{where}: {name} does not hold numbers, but {array.dtype}")
    with np.errstate(over="ignore"):  # what exceeds float32 is reported as infinite
        values = np.ascontiguousarray(array, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise UserError(
            f"{where}: {name} holds NaN or infinite values in {len(bad)} of {len(values)} rows, "
            f"first in row {bad[0]}"
        )
    if name in FLAGS:
        return values
    if array.dtype.kind in "iub":
        notes.append(f"{where}: {name} is of type {array.dtype}, read as float32")
    elif array.dtype.kind == "f" and array.dtype.itemsize > 4:
        notes.append(f"{where}: {name} is rounded from {array.dtype} to float32")
    return values


def _none(numbers: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.zeros(len(numbers["observations"]), dtype=bool)


def _breaks(numbers: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows after which the next row is of another episode, as its observation tells, `[rows]`.

    None, where that would end most of them: then the column itself is wrong, which the checks say.
    """
    breaks = _none(numbers)
    if "next_observations" in numbers:
        led_to, found = numbers["next_observations"][:-1], numbers["observations"][1:]
        breaks[:-1] = ~np.isclose(led_to, found, RTOL, ATOL).all(axis=1)
    return breaks if breaks.mean() < MANY_BREAKS else _none(numbers)


def _time_limits(ends: np.ndarray, limit: int) -> np.ndarray:
    """Where episodes, which end at `ends` at the latest, run into the limit, `[rows]`."""
    edges = [0, *(np.flatnonzero(ends) + 1), len(ends)]
    timeout = np.zeros(len(ends), dtype=bool)
    for start, end in pairwise(edges):
        timeout[start + limit - 1 : end : limit] = True
    return timeout & ~ends


def _next_observations(
    obs: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that another of their episode follows, what they lead to, and which are the last.

    The last row of an episode leads to a state that was not written down: what stands below it
    is where the next episode was reset to.
    """
    followed = ~ends
    followed[-1] = False
    kept = np.flatnonzero(followed)
    last = ~followed[kept + 1]
    # Rows of an episode that was cut off by the end of the file end nothing.
    last &= ends[np.minimum(kept + 1, len(ends) - 1)]
    return kept, np.ascontiguousarray(obs[kept + 1]), last


# --- what every reader of a format needs


def refuse_beyond_memory(where: str, size: int) -> None:
    """Raises a UserError for columns of so many bytes that reading them would exhaust memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > MOST_OF_MEMORY * memory:
        raise UserError(
            f"{where} holds {decimal(size)}, and this machine has {decimal(memory)} of memory, "
            f"of which data may take {MOST_OF_MEMORY:.0%}: give a part of it"
        )


def one_line(error: Exception) -> str:
    """What an error of a library says, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
