"""Whether data are what the environment's physics gives: transitions replayed in MuJoCo.

A transition is replayed by setting the simulator to the state before it and stepping with its
action. What comes out is compared with the data's next observation, reward and terminal. A shifted
column, rewards in another scale or another robot's file cannot pass it. Releases of MuJoCo whose
single steps are equal cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from algorithms.data import d4rl, hdf5
from algorithms.data.catalog import D4RL_PREFIX
from algorithms.data.dataset import OfflineDataset
from algorithms.data.spec import DatasetSpec
from algorithms.environments.table import ENVIRONMENTS, make_env
from algorithms.errors import UserError
from algorithms.storage import Storage

# Every fifth row of the sample, where there are so many, ends an episode: most mistakes are there.
SHARE_OF_ENDS = 0.2
RESOLUTION = 1e-6  # of float32 near 10, about
OUT_OF_BOUNDS = 1e12
# A foot that touches the ground to within rounding makes or misses a contact by chance, and then
# even a tiny difference is amplified to 1e-3 of a step or more: in 1 % of the rows of a walker that
# hardly moves. Rows that disagree are therefore tried again from so many states within float32's
# rounding of theirs, unless they are more than a tenth, which is no chance.
NUDGES, NUDGED_SHARE = 16, 0.1

# Thresholds of relative errors (`Replay`), measured with Hopper, Walker2d and HalfCheetah on
# thousands of transitions in float32:
#   the same physics     99th percentile up to 1.2e-5, largest 5e-5 (see `NUDGES` for contacts)
#   another physics      masses 1 % or gravity 5 % larger, more friction or damping, another
#                        integrator or cone: 99th percentile 6e-3 to 2, median up to 0.1;
#                        rewards up to 0.02 in the median, 0.2 in the 99th percentile
#   another frame skip   median 0.30 to 0.36
#   mistakes             actions halved or of other rows, next observations shifted: median 0.5
#                        and more; after a reset: 99th percentile 64; rewards x 1.1: median 0.055
ROUNDING = 3e-4
STEP_MEDIAN, STEP_99 = 0.25, 3.0
REWARD_MEDIAN, REWARD_99 = 0.05, 1.0
# Rows that may differ in whether the task ended where physics differs: none where it agrees.
TERMINALS_SHARE = 0.02


class Verdict(StrEnum):
    """What a replay shows."""

    AGREES = "agrees to rounding"
    DIFFERS = "differs a little: another version of the physics"
    CONTRADICTS = "contradicts"


class Errors(NamedTuple):
    """Absolute errors over the rows."""

    median: float
    percentile_99: float
    largest: float

    @classmethod
    def of(cls, values: np.ndarray) -> Errors:
        return cls(*np.quantile(values, [0.5, 0.99, 1.0]).tolist())


@dataclass(frozen=True)
class Replay:
    """What came of replaying a sample of transitions.

    A row's error is its largest over the dimensions. Relative errors are in units of how much a
    dimension changes in a step (root mean square over the sample, as replayed), so they are
    free of units, and an error in a slow dimension weighs as much as one in a fast one.

    Attributes:
        env_id: of the environment in which they were replayed.
        rows: transitions replayed.
        nudged: rows that agree, but only from a state within float32's rounding of the one given:
            at the edge of a contact.
        left_out: transitions drawn whose observation holds a clipped velocity, so that the
            state before them is not known.
        states: where states came from: `infos/qpos and infos/qvel`, or `observations`.
        state: relative errors of the observation of the state that was set; rounding, where
            states came from observations.
        next_obs: errors of the next observation, in its own units.
        next_obs_relative: the same, relative.
        per_dimension: largest error of each dimension of the next observation, in its units.
        reward: errors of the reward.
        reward_relative: the same, in units of the root mean square of the replayed rewards.
        terminals_differ: rows where only one of simulator and data ends the task; an end at a
            timeout does not count, since D4RL marks it as a timeout alone.
        mujoco: version of MuJoCo.
        gymnasium: version of Gymnasium, which defines observations and rewards.
        verdict: what it shows.
        reason: the number that decided, as a clause.
    """

    env_id: str
    rows: int
    nudged: int
    left_out: int
    states: str
    state: Errors
    next_obs: Errors
    next_obs_relative: Errors
    per_dimension: tuple[float, ...]
    reward: Errors
    reward_relative: Errors
    terminals_differ: int
    mujoco: str
    gymnasium: str
    verdict: Verdict
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.rows} transitions replayed in {self.env_id} (MuJoCo {self.mujoco}, "
            f"Gymnasium {self.gymnasium}): {self.verdict}; {self.reason}"
        )


def states_of(
    spec: DatasetSpec, data: OfflineDataset, storage: Storage
) -> tuple[np.ndarray, np.ndarray] | None:
    """`infos/qpos` and `infos/qvel` of a data set's single HDF5 file, if it has one of each row."""
    paths = [Path(file.path) for file in spec.files]
    if spec.id.startswith(D4RL_PREFIX):
        paths = [path for path in [d4rl.find(spec, storage)] if path is not None]
    if len(paths) != 1 or paths[0].suffix.lower() not in (".hdf5", ".h5"):
        return None
    states = hdf5.read_states(paths[0])
    return states if states is not None and len(states[0]) == len(data.obs) else None


def replay(
    data: OfflineDataset,
    env_id: str,
    *,
    rows: int = 500,
    seed: int = 0,
    qpos: np.ndarray | None = None,
    qvel: np.ndarray | None = None,
) -> Replay:
    """Replay a random sample of transitions and compare.

    About 0.3 s for 500 rows, and half a second to import Gymnasium.

    Args:
        data: actions in [-1, 1], as all loaded data are.
        env_id: a key of `ENVIRONMENTS`, all of whose state is MuJoCo's qpos and qvel.
        rows: size of the sample; a fifth of it are ends of episodes, where there are so many.
        seed: of the sample.
        qpos: `[n, nq]` before each action, with `qvel`; else states are taken from observations.
        qvel: `[n, nv]`.

    Raises:
        UserError: the state before a transition cannot be known or set, or no row is left.
    """
    state_of = ENVIRONMENTS[env_id].state_of
    if state_of is None and (qpos is None or qvel is None):
        raise UserError(
            f"{env_id}: an observation does not determine the state of its physics, so nothing "
            "can be replayed without infos/qpos and infos/qvel of every row"
        )
    drawn = _sample(data, rows, np.random.default_rng(seed))
    known = np.ones(len(drawn), dtype=bool)
    if state_of is not None:
        # Rows are left out with given states too: the replay sets of D4RL have theirs from
        # observations (scripts/generation/mujoco/fix_qpos_qvel.py), clipped velocities included.
        states, of_drawn = "observations", state_of(data.obs[drawn])
        known = np.isfinite(np.concatenate(of_drawn, axis=1)).all(axis=1)
    if qpos is not None and qvel is not None:
        if not len(qpos) == len(qvel) == len(data.obs):
            raise UserError(
                f"infos/qpos and infos/qvel have {len(qpos)} and {len(qvel)} rows beside "
                f"{len(data.obs)} observations: give one for each"
            )
        states, of_drawn = "infos/qpos and infos/qvel", (qpos[drawn], qvel[drawn])
    sample = OfflineDataset(*(array[drawn[known]] for array in data))
    if not len(sample.obs):
        raise UserError(
            f"{env_id}: all {len(drawn)} transitions drawn hold a clipped velocity in their "
            "observation, so none can be replayed: draw more rows"
        )
    positions, velocities = (array[known] for array in of_drawn)
    with _simulator(env_id) as env:
        found = _step_all(env, env_id, sample.action, positions, velocities)
        scale = _scale(found)
        found, nudged = _nudge(env, env_id, sample, positions, velocities, found, scale)
    full = _ends_of_full_episodes(data, ENVIRONMENTS[env_id].max_episode_steps)[drawn[known]]
    result = _compare(env_id, sample, found, scale, full)
    result = replace(result, nudged=nudged, left_out=int((~known).sum()), states=states)
    if state_of is None and result.state.median > ROUNDING:
        raise UserError(
            f"{env_id}: infos/qpos and infos/qvel do not determine the state of its physics "
            "(they do not give the observations of their rows), so nothing can be replayed"
        )
    return result


class _Replayed(NamedTuple):
    obs: np.ndarray  # [n, O] float64, of the state that was set
    next_obs: np.ndarray  # [n, O] float64
    reward: np.ndarray  # [n] float64
    terminal: np.ndarray  # [n] bool


def _sample(data: OfflineDataset, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct rows in ascending order, some of them ends of episodes."""
    end = (data.terminal > 0) | data.timeout
    ends, inside = np.flatnonzero(end), np.flatnonzero(~end)
    of_ends = min(len(ends), max(int(rows * SHARE_OF_ENDS), rows - len(inside)))
    of_inside = min(len(inside), rows - of_ends)
    return np.sort(
        np.concatenate(
            [rng.choice(ends, of_ends, replace=False), rng.choice(inside, of_inside, replace=False)]
        )
    )


@contextmanager
def _simulator(env_id: str) -> Iterator[Any]:
    """The environment; MuJoCo's warnings of impossible states do not become a log file here."""
    import mujoco

    env = make_env(env_id)
    if not hasattr(env.unwrapped, "set_state"):
        raise UserError(f"{env_id} is not an environment of MuJoCo's whose state can be set")
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda _message: None)
    try:
        yield env
    finally:
        mujoco.set_mju_user_warning(before)
        env.close()


def _step_all(
    env: Any, env_id: str, action: np.ndarray, qpos: np.ndarray, qvel: np.ndarray
) -> _Replayed:
    model = env.unwrapped.model
    for name, array, size in (("qpos", qpos, model.nq), ("qvel", qvel, model.nv)):
        if array.shape[1:] != (size,):
            raise UserError(
                f"{name} of {env_id} has {size} values in a row, but the data's have shape "
                f"{array.shape[1:]}"
            )
    columns: list[tuple[Any, ...]] = []
    for i in range(len(action)):
        # A reset first: the solver starts from its last solution, and so from the row before.
        env.reset(seed=0)
        env.unwrapped.set_state(qpos[i], qvel[i])
        obs = env.unwrapped._get_obs()  # noqa: SLF001 - no public name gives it without a step
        next_obs, reward, terminal, _, _ = env.step(action[i])
        columns.append((obs, next_obs, reward, terminal))
    return _Replayed(*(np.array(column) for column in zip(*columns, strict=True)))


def _scale(found: _Replayed) -> np.ndarray:
    """How much each dimension changes in a step, `[O]`."""
    scale = _rms(found.next_obs - found.obs)
    # A dimension that never changes (a target's position) may still differ by float32's rounding.
    return np.maximum(scale, RESOLUTION * (1.0 + _rms(found.next_obs)))


def _nudge(
    env: Any,
    env_id: str,
    data: OfflineDataset,
    qpos: np.ndarray,
    qvel: np.ndarray,
    found: _Replayed,
    scale: np.ndarray,
) -> tuple[_Replayed, int]:
    """Rows that disagree, from the best of `NUDGES` states; and how many agree then."""
    rng = np.random.default_rng(0)

    def far(of: _Replayed) -> np.ndarray:
        error = _distance(data.next_obs, of.next_obs) / scale
        return np.flatnonzero(error.max(axis=1) > ROUNDING)

    first = far(found)
    if len(first) > NUDGED_SHARE * len(qpos):
        return found, 0
    found = _Replayed(*(array.copy() for array in found))
    for _ in range(NUDGES):
        rows = far(found)
        if not len(rows):
            break
        spacing = np.spacing(np.maximum(np.abs(qpos[rows]), 1).astype(np.float32))
        nudged = qpos[rows] + rng.uniform(-1, 1, spacing.shape) * spacing
        tried = _step_all(env, env_id, data.action[rows], nudged, qvel[rows])
        error = _distance(data.next_obs[rows], tried.next_obs) / scale
        better = error.max(axis=1) <= ROUNDING
        for array, new in zip(found, tried, strict=True):
            array[rows[better]] = new[better]
    return found, len(first) - len(far(found))


def _ends_of_full_episodes(data: OfflineDataset, max_episode_steps: int) -> np.ndarray:
    """Which rows are the last that the time limit allows, `[n]`."""
    ends = data.episode_ends
    full = np.zeros(len(data.obs), dtype=bool)
    full[ends[np.diff(ends, prepend=0) >= max_episode_steps] - 1] = True
    return full


def _compare(
    env_id: str,
    data: OfflineDataset,
    found: _Replayed,
    scale: np.ndarray,
    full: np.ndarray,
) -> Replay:
    error = _distance(data.next_obs, found.next_obs)
    reward_error = _distance(data.reward, found.reward)
    # At a timeout an end may be hidden: D4RL marks a full episode's last row as a timeout alone.
    hidden = found.terminal & data.timeout & full
    result = Replay(
        env_id=env_id,
        rows=len(data.obs),
        nudged=0,
        left_out=0,
        states="observations",
        state=Errors.of((_distance(data.obs, found.obs) / scale).max(axis=1)),
        next_obs=Errors.of(error.max(axis=1)),
        next_obs_relative=Errors.of((error / scale).max(axis=1)),
        per_dimension=tuple(error.max(axis=0).tolist()),
        reward=Errors.of(reward_error),
        reward_relative=Errors.of(reward_error / max(float(_rms(found.reward)), RESOLUTION)),
        terminals_differ=int(((found.terminal != (data.terminal > 0)) & ~hidden).sum()),
        mujoco=version("mujoco"),
        gymnasium=version("gymnasium"),
        verdict=Verdict.AGREES,
        reason="",
    )
    verdict, reason = _judge(result)
    return replace(result, verdict=verdict, reason=reason)


def _rms(values: np.ndarray) -> np.ndarray:
    """Root mean square over the rows that are finite."""
    finite = values[np.isfinite(values).reshape(len(values), -1).all(axis=1)]
    return np.sqrt(np.square(finite).sum(axis=0) / max(len(finite), 1))


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Absolute differences; `OUT_OF_BOUNDS` where a simulation gave no finite number."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(a - b)
    return np.minimum(np.nan_to_num(difference, nan=OUT_OF_BOUNDS), OUT_OF_BOUNDS)


def _judge(result: Replay) -> tuple[Verdict, str]:
    """The verdict, and the figures that decided it."""
    next_obs, reward = result.next_obs_relative, result.reward_relative
    of_next_obs = (
        f"the next observation is off by {next_obs.median:.2g} of what a step changes in the "
        f"median row, {next_obs.percentile_99:.2g} in the 99th percentile"
    )
    of_reward = (
        f"the reward is off by {reward.median:.2g} of its size in the median row, "
        f"{reward.percentile_99:.2g} in the 99th percentile"
    )
    rounding = max(next_obs.percentile_99, reward.percentile_99) < ROUNDING
    if result.state.median > ROUNDING:
        return (
            Verdict.CONTRADICTS,
            "infos/qpos and infos/qvel do not give the observations of their rows",
        )
    if next_obs.median > STEP_MEDIAN or next_obs.percentile_99 > STEP_99:
        return Verdict.CONTRADICTS, of_next_obs
    if reward.median > REWARD_MEDIAN or reward.percentile_99 > REWARD_99:
        return Verdict.CONTRADICTS, of_reward
    if result.terminals_differ > (0 if rounding else TERMINALS_SHARE * result.rows):
        count = f"{result.terminals_differ} of {result.rows} rows"
        return Verdict.CONTRADICTS, f"whether the task ended differs in {count}"
    if rounding:
        return Verdict.AGREES, of_next_obs
    return Verdict.DIFFERS, of_next_obs if next_obs.percentile_99 >= ROUNDING else of_reward
