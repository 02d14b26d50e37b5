"""The environments: one row each, with all that is known of one beforehand.

To add one, write its row. A termination function says when a state ends an episode, as the
simulator decides it. A learned model predicts states, not ends; that these are known is the
usual privilege of this literature (MBPO, MOPO, COMBO). It maps next observations `[..., O]`
to `[...]` booleans with tensor methods only, so that nothing leaves the device, and so that
this module imports neither torch nor, until an environment is made, Gymnasium.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from algorithms.errors import UserError
from algorithms.registry import Registry

if TYPE_CHECKING:
    import gymnasium
    from torch import Tensor

Return = TypeVar("Return", float, np.ndarray)
Termination = Callable[["Tensor"], "Tensor"]
# Observations [n, O] -> positions [n, nq] and velocities [n, nv] of MuJoCo's state; NaN in a row
# whose observation does not tell.
StateOf = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def hopper(next_obs: Tensor) -> Tensor:
    """Alive iff finite, every |obs[1:]| < 100, height > 0.7 and |torso angle| < 0.2."""
    # The magnitude is taken before the comparison: `abs(x < 100)`, a bug of several
    # published implementations, tests nothing on the lower side.
    alive = (
        next_obs.isfinite().all(dim=-1)
        & (next_obs[..., 1:].abs() < 100).all(dim=-1)
        & (next_obs[..., 0] > 0.7)
        & (next_obs[..., 1].abs() < 0.2)
    )
    return ~alive


def walker2d(next_obs: Tensor) -> Tensor:
    """Alive iff finite, 0.8 < height < 2.0 and |torso angle| < 1.0."""
    height = next_obs[..., 0]
    alive = (
        next_obs.isfinite().all(dim=-1)
        & (height > 0.8)
        & (height < 2.0)
        & (next_obs[..., 1].abs() < 1.0)
    )
    return ~alive


def inverted_double_pendulum(next_obs: Tensor) -> Tensor:
    """Alive iff finite and the tip, of two poles of 0.6 each, is higher than 1."""
    sin, cos = next_obs[..., 1:3], next_obs[..., 3:5]
    # cos(a + b) = cos a cos b - sin a sin b, of the first angle and the second, relative one
    height = 0.6 * (cos[..., 0] + cos.prod(dim=-1) - sin.prod(dim=-1))
    return ~(next_obs.isfinite().all(dim=-1) & (height > 1.0))


def never(next_obs: Tensor) -> Tensor:
    """No state ends an episode (half-cheetah; Adroit's door, hammer and relocate)."""
    return next_obs.new_zeros(next_obs.shape[:-1]).bool()


def pen(next_obs: Tensor) -> Tensor:
    """The pen has been dropped: its height, obs[26], is below 0.075 (D4RL's `pen_v0.py`)."""
    return next_obs[..., 26] < 0.075


def planar_state(obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observations are [qpos[1:], qvel]. What is missing, x, is 0: nothing depends on it."""
    velocities = (obs.shape[1] + 1) // 2
    obs = np.asarray(obs, dtype=np.float64)
    return np.pad(obs[:, :-velocities], ((0, 0), (1, 0))), obs[:, -velocities:]


def planar_state_clipped(obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same, where velocities are observed clipped to [-10, 10] (Hopper, Walker2d)."""
    qpos, qvel = planar_state(obs)
    return qpos, np.where(np.abs(qvel) < 10.0, qvel, np.nan)


def double_pendulum_state(obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observations are [x, sines, cosines, clipped velocities, constraint forces]."""
    obs = np.asarray(obs, dtype=np.float64)
    qpos = np.concatenate([obs[:, :1], np.arctan2(obs[:, 1:3], obs[:, 3:5])], axis=1)
    qvel = obs[:, 5:8]
    return qpos, np.where(np.abs(qvel) < 10.0, qvel, np.nan)


UNIT_BOUNDS = (-1.0, 1.0)  # of policies' actions


class Environment(NamedTuple):
    """What is known of an environment beforehand.

    Policies here act in [-1, 1]^A, and data sets hold such actions once they are loaded.
    Where the environment's own bounds are others, both are rescaled: `rescaled_actions`.
    """

    obs_dim: int
    action_dim: int
    random_return: float  # undiscounted, of a policy that acts at random
    expert_return: float  # undiscounted, of a trained policy
    max_episode_steps: int  # the time limit, which is not an end of the task
    termination: Termination | None  # None: learned from the data's `terminals`
    action_low: float = -1.0  # of every dimension, in the environment's own units
    action_high: float = 1.0
    # Takes the arguments of `gymnasium.make`, in whose place it is called.
    make: Callable[..., gymnasium.Env[Any, Any]] | None = None
    state_of: StateOf | None = None  # None: an observation does not determine the physics' state

    @property
    def action_bounds(self) -> tuple[float, float]:
        return self.action_low, self.action_high

    @property
    def rescaled_actions(self) -> bool:
        """Whether the environment's own actions are not in [-1, 1] already."""
        return self.action_bounds != UNIT_BOUNDS

    def normalized_score(self, episode_return: Return) -> Return:
        """100 (return - random) / (expert - random), D4RL's normalisation."""
        spread = self.expert_return - self.random_return
        return 100.0 * (episode_return - self.random_return) / spread

    def to_unit_actions(self, action: np.ndarray) -> np.ndarray:
        """The environment's own actions in units of its bounds, [-1, 1]."""
        half = (self.action_high - self.action_low) / 2
        return (action - self.action_low) / half - 1.0

    def from_unit_actions(self, action: np.ndarray) -> np.ndarray:
        """The inverse of `to_unit_actions`."""
        half = (self.action_high - self.action_low) / 2
        return (action + 1.0) * half + self.action_low


def adroit(env_id: str, **arguments: Any) -> gymnasium.Env[Any, Any]:
    """An Adroit task as D4RL has it, of the optional package `gymnasium-robotics`."""
    from algorithms.environments.adroit import make

    return make(env_id, **arguments)


ENVIRONMENTS: Registry[Environment] = Registry("environment")
# Limits: `gymnasium.envs.mujoco`. Returns: D4RL (Fu et al. 2020, arXiv 2004.07219), d4rl/infos.py;
# the same for all its versions.
ENVIRONMENTS.add(
    "Hopper-v4", Environment(11, 3, -20.272305, 3234.3, 1000, hopper, state_of=planar_state_clipped)
)
ENVIRONMENTS.add(
    "Walker2d-v4",
    Environment(17, 6, 1.629008, 4592.3, 1000, walker2d, state_of=planar_state_clipped),
)
ENVIRONMENTS.add(
    "HalfCheetah-v4", Environment(17, 6, -280.178953, 12135.0, 1000, never, state_of=planar_state)
)
# Not D4RL's. Random: 1,000 episodes of uniform actions, 57.4 +- 0.5 (standard error); expert: TD3's
# after a million steps (Fujimoto et al. 2018, arXiv 1802.09477, table 1).
ENVIRONMENTS.add(
    "InvertedDoublePendulum-v4",
    Environment(
        11, 1, 57.44, 9337.47, 1000, inverted_double_pendulum, state_of=double_pendulum_state
    ),
)
# Limits and ends: d4rl/hand_manipulation_suite.
for _env_id, _row in {
    "AdroitHandPen-v1": Environment(45, 24, 96.262799, 3076.8331017826877, 100, pen),
    "AdroitHandHammer-v1": Environment(46, 26, -274.856578, 12794.134825156867, 200, never),
    "AdroitHandDoor-v1": Environment(39, 28, -56.512833, 2880.5693087298737, 200, never),
    "AdroitHandRelocate-v1": Environment(39, 30, -6.425911, 4233.877797728884, 200, never),
}.items():
    ENVIRONMENTS.add(_env_id, _row._replace(make=adroit))


def normalized_score(env_id: str, episode_return: Return) -> Return:
    """`Environment.normalized_score` of a row of the table."""
    return ENVIRONMENTS[env_id].normalized_score(episode_return)


def make_env(env_id: str) -> gymnasium.Env[Any, Any]:
    """A Gymnasium environment with its time limit, without Gymnasium's checks of every step.

    Its actions are in [-1, 1]^A, as those of policies and data are.

    Raises:
        UserError: Gymnasium cannot make it, it needs a package that is not there, or its sizes
            or bounds are not those of its row.
    """
    import gymnasium

    row = ENVIRONMENTS[env_id]
    with warnings.catch_warnings():
        # v4 on purpose: the physics and rewards of D4RL's tasks, which v5 changes.
        warnings.filterwarnings("ignore", ".*is out of date", DeprecationWarning)
        make = row.make or gymnasium.make
        try:
            env = make(env_id, disable_env_checker=True, max_episode_steps=row.max_episode_steps)
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"environment {env_id}: Gymnasium cannot make it: {reason}") from error
    _check_spaces(env_id, row, env)
    if row.rescaled_actions:
        env = gymnasium.wrappers.RescaleAction(env, np.float32(-1.0), np.float32(1.0))
    return env


def _check_spaces(env_id: str, row: Environment, env: gymnasium.Env[Any, Any]) -> None:
    for name, space, size in (
        ("obs_dim", env.observation_space, row.obs_dim),
        ("action_dim", env.action_space, row.action_dim),
    ):
        if space.shape != (size,):
            raise UserError(
                f"environment {env_id} has {name} {size} in its row, but Gymnasium's has "
                f"a space of shape {space.shape}: correct the row"
            )
    for name, bound in (("low", row.action_low), ("high", row.action_high)):
        found = np.unique(getattr(env.action_space, name, np.nan))
        if not np.allclose(found, bound):
            raise UserError(
                f"environment {env_id} has action_{name} {bound:g} in its row, but Gymnasium's "
                f"actions have {', '.join(f'{value:g}' for value in found)}: correct the row"
            )
