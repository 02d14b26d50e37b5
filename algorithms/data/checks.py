"""Plausibility of data, before anything trains: `CHECKS` has one row for each check.

An offline result is worth what its data are. Each check looks for one way in which data of this
field go wrong without any error: another action range, flags with another meaning, next
observations of another row. `allow` in a sweep silences one by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from algorithms.data.columns import ALIASES, ATOL, FLAGS, RTOL, Columns
from algorithms.data.dataset import OfflineDataset
from algorithms.environments.table import ENVIRONMENTS, Environment
from algorithms.errors import UserError, expected

Severity = Literal["error", "warning"]

REPLAYED_ROWS = 200
MIN_ROWS = 256  # a batch at its default size
RANGE_TOLERANCE = 1e-3  # of half the range of actions: float32 and squashing round
MANY_MISMATCHES = 0.01  # of the rows inside episodes
MANY_TERMINALS = 0.5  # of all rows
UNUSUAL_SCORE, IMPOSSIBLE_SCORE = 200.0, 1000.0  # normalised; published experts stay below 200
SHOWN_COLUMNS = 5


class Finding(NamedTuple):
    """What a check has to say of a data set: number, first row, remedy, in one sentence."""

    check: str
    severity: Severity
    sentence: str


class Evidence(NamedTuple):
    """What the checks look at."""

    data: OfflineDataset  # actions in the environment's units, as read
    columns: Sequence[Columns]  # as stored
    derived: Collection[str]  # columns that no file held
    env_id: str

    @property
    def env(self) -> Environment:
        return ENVIRONMENTS[self.env_id]

    @property
    def rows(self) -> int:
        return len(self.data.reward)

    @property
    def ends(self) -> np.ndarray:
        """Where an episode ends, `[rows]` booleans."""
        return (self.data.terminal > 0) | self.data.timeout

    @property
    def continues(self) -> np.ndarray:
        """Which next observations are the next row's observation, `[rows - 1]` booleans."""
        equal = np.isclose(self.data.next_obs[:-1], self.data.obs[1:], RTOL, ATOL)
        return equal.all(axis=1)


Told = Iterator[tuple[Severity, str]]


def error(sentence: str) -> tuple[Severity, str]:
    return "error", sentence


def warning(sentence: str) -> tuple[Severity, str]:
    return "warning", sentence


class Check(NamedTuple):
    """One row of the table in docs/data.md."""

    looks_for: str
    find: Callable[[Evidence], Told]


def too_few_rows(evidence: Evidence) -> Told:
    if evidence.rows < MIN_ROWS:
        yield error(
            f"{evidence.rows} transitions are fewer than a batch of {MIN_ROWS}, and leave nothing "
            "for the dynamics model's holdout: collect more",
        )


def flags(evidence: Evidence) -> Told:
    for part in evidence.columns:
        for name, array in part.arrays.items():
            if ALIASES.get(name, name) not in FLAGS:
                continue
            odd = np.flatnonzero((array != 0) & (array != 1))
            if len(odd):
                yield error(
                    f"{name} holds values other than 0 and 1 in {_share(len(odd), len(array))}, "
                    f"first {array[odd[0]]} in row {odd[0]}, and every value but 0 counts as an "
                    "end: write 0 and 1",
                )


def action_range(evidence: Evidence) -> Told:
    low, high = evidence.env.action_bounds
    slack = RANGE_TOLERANCE * (high - low) / 2
    action = evidence.data.action
    beyond = np.any((action < low - slack) | (action > high + slack), axis=1)
    if beyond.any():
        largest = np.abs(action).max()
        yield error(
            f"actions lie outside [{low:g}, {high:g}], the bounds of {evidence.env_id}, in "
            f"{_share(beyond.sum(), len(beyond))}, first in row {beyond.argmax()}, the largest "
            f"{largest:.4g}: say actions: clip or actions: rescale, or name the right environment",
        )


def next_observations(evidence: Evidence) -> Told:
    if "next_observations" in evidence.derived or evidence.rows < 2:
        return
    inside = ~evidence.ends[:-1]
    wrong = inside & ~evidence.continues
    if wrong.any():
        tell = error if wrong.sum() > MANY_MISMATCHES * inside.sum() else warning
        yield tell(
            f"next_observations is not the next row's observation in "
            f"{_share(wrong.sum(), inside.sum())} inside episodes, first in row {wrong.argmax()}: "
            "rows are shifted or sorted otherwise, or an episode's end is not marked; without the "
            "column it is derived",
        )
    breaks = evidence.data.timeout[:-1] & ~evidence.continues
    if "timeouts" in evidence.derived and breaks.any():
        yield warning(
            f"in {_share(breaks.sum(), evidence.rows)}, first in row {breaks.argmax()}, "
            "next_observations is not the next row's observation, and episodes are taken to end "
            "there, because no timeouts are given"
        )


def reset_state(evidence: Evidence) -> Told:
    if "next_observations" in evidence.derived or evidence.rows < 2:
        return
    ends = evidence.ends[:-1]
    if "timeouts" in evidence.derived:  # some of which are where rows do not continue
        ends = evidence.data.terminal[:-1] > 0
    wrong = ends & evidence.continues
    if wrong.sum() >= 2 and wrong.sum() > ends.sum() / 2:
        yield error(
            f"next_observations is the state that the next episode was reset to at "
            f"{wrong.sum():,} of {ends.sum():,} ends of episodes, first in row {wrong.argmax()}: "
            "write what followed the action, or leave the column out, and it is derived",
        )


def terminal_share(evidence: Evidence) -> Told:
    terminal = evidence.data.terminal > 0
    if terminal.mean() > MANY_TERMINALS:
        yield error(
            f"terminals is true in {_share(terminal.sum(), len(terminal))}, so that episodes last "
            f"{len(terminal) / terminal.sum():.1f} steps on average: it must be true where the "
            "task ended, and nowhere else",
        )


def terminal_at_timeout(evidence: Evidence) -> Told:
    terminal, timeout = evidence.data.terminal > 0, evidence.data.timeout
    both = terminal & timeout
    if "timeouts" not in evidence.derived and both.sum() >= 2 and both.sum() == timeout.sum():
        yield error(
            f"terminals is true at every one of {timeout.sum():,} timeouts, first in row "
            f"{both.argmax()}: a time limit is no end of the task, and values beyond it would be "
            "learned as 0",
        )
        return
    limit = evidence.env.max_episode_steps
    lengths = np.diff(evidence.data.episode_ends, prepend=0)
    at_limit = (lengths == limit) & terminal[evidence.data.episode_ends - 1]
    if at_limit.sum() >= 2 and at_limit.sum() == (lengths == limit).sum():
        yield error(
            f"terminals is true at the end of all {at_limit.sum():,} episodes of {limit} steps, "
            f"the time limit of {evidence.env_id}: a time limit is no end of the task, and belongs "
            "into timeouts",
        )


def episode_length(evidence: Evidence) -> Told:
    limit = evidence.env.max_episode_steps
    lengths = np.diff(evidence.data.episode_ends, prepend=0)
    if (lengths > limit).any():
        worst = int(lengths.argmax())
        yield warning(
            f"{_share((lengths > limit).sum(), len(lengths), 'episodes')} are longer than "
            f"{evidence.env_id}'s limit of {limit} steps, the longest {lengths[worst]:,}, from row "
            f"{evidence.data.episode_ends[worst] - lengths[worst]}: some ends may not be marked",
        )


def returns(evidence: Evidence) -> Told:
    scores = evidence.env.normalized_score(evidence.data.episode_returns())
    odd = np.abs(scores) > UNUSUAL_SCORE
    if odd.any():
        worst = scores[np.abs(scores).argmax()]
        tell = error if abs(worst) > IMPOSSIBLE_SCORE else warning
        yield tell(
            f"{_share(odd.sum(), len(odd), 'episodes')} have normalised scores beyond "
            f"{UNUSUAL_SCORE:g} ({evidence.env_id}'s expert has 100), the largest {worst:,.0f}: "
            "rewards may be scaled or of another environment",
        )


def constant_columns(evidence: Evidence) -> Told:
    for name, array in (("observations", evidence.data.obs), ("actions", evidence.data.action)):
        constant = np.flatnonzero(array.min(axis=0) == array.max(axis=0))
        if len(constant) and evidence.rows > 1:
            yield warning(f"{name} never change in dimension {_columns(constant)}")


def duplicate_columns(evidence: Evidence) -> Told:
    for name, array in (("observations", evidence.data.obs), ("actions", evidence.data.action)):
        totals = array.sum(axis=0, dtype=np.float64)
        same = [
            f"{a} and {b}"
            for a, b in combinations(range(array.shape[1]), 2)
            if totals[a] == totals[b]  # cheap, before all values are compared
            and (array[:, a] == array[:, b]).all()
            and array[:, a].min() != array[:, a].max()
        ]
        if same:
            yield warning(f"{name} are the same in dimensions {_columns(same)}")


def physics(evidence: Evidence) -> Told:
    """A sample of transitions, replayed in MuJoCo where observations tell the state."""
    from algorithms.data.verify import Verdict, replay  # Gymnasium and MuJoCo: a second

    env = evidence.env
    if env.state_of is None:
        return
    action = evidence.data.action
    unit = env.to_unit_actions(action) if env.rescaled_actions else action
    data = evidence.data._replace(action=unit.astype(np.float32))
    try:
        found = replay(data, evidence.env_id, rows=REPLAYED_ROWS)
    except UserError:  # no row's observation tells the state
        return
    if found.verdict is not Verdict.AGREES:
        tell = error if found.verdict is Verdict.CONTRADICTS else warning
        yield tell(
            f"{found}: {evidence.env_id} may be another environment than the data's, or a column "
            "another one"
        )


# By name, in the order in which they are told.
CHECKS: dict[str, Check] = {
    "too_few_rows": Check("fewer rows than a batch", too_few_rows),
    "flags": Check("terminals or timeouts other than 0 and 1", flags),
    "action_range": Check("actions beyond the environment's bounds", action_range),
    "next_observations": Check(
        "next observations that are not the next row's inside an episode", next_observations
    ),
    "reset_state": Check("next observations of the state after the reset", reset_state),
    "terminal_share": Check("every or almost every row terminal", terminal_share),
    "terminal_at_timeout": Check("time limits marked as ends of the task", terminal_at_timeout),
    "episode_length": Check("episodes longer than the time limit", episode_length),
    "returns": Check("returns far beyond the environment's", returns),
    "constant_columns": Check("dimensions that never change", constant_columns),
    "duplicate_columns": Check("dimensions that are the same", duplicate_columns),
    "physics": Check("transitions that the environment's physics contradicts", physics),
}
LAST = ("physics",)  # takes a second, and adds nothing where another check found an error


class Verdict(NamedTuple):
    """What the checks found; errors that nobody allowed are raised instead."""

    warnings: tuple[str, ...]
    silenced: tuple[str, ...]  # sentences of checks that were allowed


def warnings_of(where: str, evidence: Evidence) -> tuple[str, ...]:
    """All that the checks have to say of data that are taken as they are, whatever they say."""
    return tuple(
        f"{where}: {name}: {sentence}"
        for name, check in CHECKS.items()
        for _, sentence in check.find(evidence)
    )


def judge(where: str, evidence: Evidence, allow: Collection[str]) -> Verdict:
    """Run all checks.

    Args:
        where: the data set, for the message.
        evidence: what is looked at.
        allow: names of checks that are silenced.

    Raises:
        UserError: a check found an error that is not allowed; or `allow` names no check.
    """
    refuse_unknown_checks(allow)
    found: list[Finding] = []
    for name, check in CHECKS.items():
        if name in LAST:
            _raise_errors(where, found, allow)
        found += [Finding(name, *told) for told in check.find(evidence)]
    _raise_errors(where, found, allow)
    return Verdict(
        tuple(f"{where}: {f.sentence}" for f in found if f.check not in allow),
        tuple(f"{where}: {f.check} is allowed: {f.sentence}" for f in found if f.check in allow),
    )


def _raise_errors(where: str, found: Sequence[Finding], allow: Collection[str]) -> None:
    errors = [f for f in found if f.severity == "error" and f.check not in allow]
    if errors:
        names = ", ".join(dict.fromkeys(f.check for f in errors))
        sentences = "; ".join(f.sentence for f in errors)
        raise UserError(f"{where}: {sentences} (allow: [{names}] takes it as it is)")


def refuse_unknown_checks(allow: Collection[str]) -> None:
    """Raises a UserError for a name that is not in `CHECKS`."""
    for name in allow:
        if name not in CHECKS:
            raise UserError(expected("check in allow", name, CHECKS))


def _share(count: int, of: int, what: str = "rows") -> str:
    return f"{count:,} of {of:,} {what} ({count / of:.1%})"


def _columns(columns: Sequence[object] | np.ndarray) -> str:
    shown = ", ".join(map(str, columns[:SHOWN_COLUMNS]))
    more = len(columns) - SHOWN_COLUMNS
    return f"{shown} and {more} more" if more > 0 else shown
