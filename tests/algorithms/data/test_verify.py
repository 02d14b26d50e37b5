"""Replaying data in MuJoCo tells data of this physics from all else."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from algorithms.data import hdf5, verify
from algorithms.data.bundled.generate import generate
from algorithms.data.bundled.source import make_recipe
from algorithms.data.catalog import CATALOG
from algorithms.data.columns import understand
from algorithms.data.dataset import OfflineDataset
from algorithms.data.verify import Verdict, replay
from algorithms.environments.table import ENVIRONMENTS, make_env
from algorithms.errors import UserError

SHARED = Path(__file__).parents[4] / "shared" / "data"


def transitions(path, env_id):
    """What a file holds, whatever the checks say of it."""
    return understand([hdf5.read(path)], ENVIRONMENTS[env_id], env_id).data


def random_data(env_id: str, rows: int = 400) -> OfflineDataset:
    """Uniform actions in the environment, written down as MuJoCo gives it."""
    env, rng = make_env(env_id), np.random.default_rng(0)
    columns, obs = [], env.reset(seed=0)[0]
    while len(columns) < rows:
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        next_obs, reward, terminal, timeout, _ = env.step(action)
        columns.append((obs, action, reward, next_obs, terminal, timeout))
        obs = env.reset()[0] if terminal or timeout else next_obs
    data = OfflineDataset(*(np.array(c, dtype=np.float32) for c in zip(*columns, strict=True)))
    return data._replace(timeout=data.timeout > 0)


@pytest.fixture(scope="module")
def hopper():
    """Bundled data, of which wrong copies are made below."""
    recipe = make_recipe(CATALOG["bundled/hopper-medium"], 2000)
    return generate(recipe, lambda _: None)[0]


@pytest.fixture(scope="module")
def cheetah():
    return random_data("HalfCheetah-v4")


def test_bundled_data_agree(hopper):
    result = replay(hopper, "Hopper-v4")
    assert result.verdict is Verdict.AGREES
    assert result.states == "observations"
    assert result.rows + result.left_out == 500
    assert result.left_out > 0  # velocities that the observation clips
    assert result.terminals_differ == result.nudged == 0
    assert result.next_obs.median <= result.next_obs.percentile_99 <= result.next_obs.largest
    assert max(result.per_dimension) == result.next_obs.largest


@pytest.mark.parametrize("env_id", ["Walker2d-v4", "HalfCheetah-v4"])
def test_other_robots_agree(env_id):
    assert replay(random_data(env_id), env_id, rows=200).verdict is Verdict.AGREES


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the development data beside the repository")
@pytest.mark.parametrize(
    ("name", "env_id"), [("hopper-mixture", "Hopper-v4"), ("walker2d-medium", "Walker2d-v4")]
)
def test_files_rolled_out_elsewhere_agree(name, env_id):
    data = transitions(SHARED / f"{name}.hdf5", env_id)
    assert replay(data, env_id).verdict is Verdict.AGREES


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the development data beside the repository")
def test_a_contact_within_rounding_is_no_difference():
    """These rows put a foot within 1e-8 m of the ground: alone, each disagrees by 1e-3."""
    data = transitions(SHARED / "walker2d-medium.hdf5", "Walker2d-v4")
    rows = np.r_[800:860, 2000:2060]
    result = replay(OfflineDataset(*(a[rows] for a in data)), "Walker2d-v4", rows=len(rows))
    assert result.verdict is Verdict.AGREES
    assert result.nudged > 0
    assert result.next_obs.largest < 1e-5


def reset_next_obs(data: OfflineDataset) -> OfflineDataset:
    """What follows an episode's last action is the next episode's first observation."""
    last = data.episode_ends[:-1] - 1
    next_obs = data.next_obs.copy()
    next_obs[last] = data.obs[last + 1]
    return data._replace(next_obs=next_obs)


def one_column_in_degrees(data: OfflineDataset) -> OfflineDataset:
    next_obs = data.next_obs.copy()
    next_obs[:, 1] *= 180 / np.pi
    return data._replace(next_obs=next_obs)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d._replace(next_obs=np.roll(d.next_obs, -1, axis=0)),
        lambda d: d._replace(next_obs=np.roll(d.next_obs, -7, axis=0)),
        lambda d: d._replace(next_obs=d.obs),
        lambda d: d._replace(reward=2 * d.reward),
        lambda d: d._replace(reward=d.reward - 1),
        lambda d: d._replace(action=d.action / 2),
        lambda d: d._replace(action=np.roll(d.action, 1, axis=0)),
        lambda d: d._replace(terminal=np.zeros_like(d.terminal)),
        lambda d: d._replace(terminal=np.ones_like(d.terminal)),
        reset_next_obs,
        one_column_in_degrees,
    ],
    ids=[
        "next-obs-1-later",
        "next-obs-7-later",
        "next-obs-are-obs",
        "rewards-doubled",
        "rewards-without-the-alive-bonus",
        "actions-halved",
        "actions-of-the-row-before",
        "no-terminal",
        "all-terminal",
        "next-obs-after-reset",
        "degrees",
    ],
)
def test_mistakes_contradict(hopper, change):
    result = replay(change(hopper), "Hopper-v4")
    assert result.verdict is Verdict.CONTRADICTS, result


def test_another_robots_data_contradict(cheetah):
    assert replay(cheetah, "Walker2d-v4").verdict is Verdict.CONTRADICTS


def heavier(model):
    model.body_mass[:] *= 1.05


def gravity(model):
    model.opt.gravity[:] *= 1.05


@pytest.mark.parametrize("change", [heavier, gravity])
def test_another_physics_differs_a_little(hopper, monkeypatch, change):
    def other_env(env_id):
        env = make_env(env_id)
        change(env.unwrapped.model)
        return env

    monkeypatch.setattr(verify, "make_env", other_env)
    assert replay(hopper, "Hopper-v4").verdict is Verdict.DIFFERS


def test_another_frame_skip_contradicts(hopper, monkeypatch):
    def other_env(env_id):
        env = make_env(env_id)
        env.unwrapped.frame_skip = 5
        return env

    monkeypatch.setattr(verify, "make_env", other_env)
    assert replay(hopper, "Hopper-v4").verdict is Verdict.CONTRADICTS


def test_a_sample_is_the_seeds(hopper):
    first, again, other = (replay(hopper, "Hopper-v4", rows=50, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first.per_dimension != other.per_dimension


def test_an_end_that_the_time_limit_hides_is_no_difference(hopper, monkeypatch):
    """D4RL marks the last row of a full episode as a timeout even where the robot fell there."""
    ends = hopper.terminal > 0
    as_timeouts = hopper._replace(
        terminal=np.zeros_like(hopper.terminal), timeout=hopper.timeout | ends
    )
    assert replay(as_timeouts, "Hopper-v4").verdict is Verdict.CONTRADICTS
    row = ENVIRONMENTS["Hopper-v4"]
    monkeypatch.setitem(ENVIRONMENTS, "Hopper-v4", row._replace(max_episode_steps=1))
    assert replay(as_timeouts, "Hopper-v4").terminals_differ == 0


def test_states_of_other_rows_contradict(cheetah):
    state_of = ENVIRONMENTS["HalfCheetah-v4"].state_of
    qpos, qvel = state_of(cheetah.obs)
    assert replay(cheetah, "HalfCheetah-v4", qpos=qpos, qvel=qvel).verdict is Verdict.AGREES
    after = np.roll(qpos, -1, axis=0), np.roll(qvel, -1, axis=0)
    result = replay(cheetah, "HalfCheetah-v4", qpos=after[0], qvel=after[1])
    assert result.verdict is Verdict.CONTRADICTS
    assert "infos/qpos" in result.reason


def test_a_state_that_nothing_tells(cheetah, monkeypatch):
    row = ENVIRONMENTS["HalfCheetah-v4"]
    monkeypatch.setitem(ENVIRONMENTS, "HalfCheetah-v4", row._replace(state_of=None))
    with pytest.raises(UserError, match="does not determine the state"):
        replay(cheetah, "HalfCheetah-v4")
    qpos, qvel = row.state_of(cheetah.obs)
    assert replay(cheetah, "HalfCheetah-v4", qpos=qpos, qvel=qvel).verdict is Verdict.AGREES
    with pytest.raises(UserError, match="do not determine the state"):
        replay(cheetah, "HalfCheetah-v4", qpos=qpos + 0.1, qvel=qvel)


def test_states_that_do_not_fit(cheetah):
    qpos, qvel = ENVIRONMENTS["HalfCheetah-v4"].state_of(cheetah.obs)
    with pytest.raises(UserError, match="have 399 and 400 rows beside 400 observations"):
        replay(cheetah, "HalfCheetah-v4", qpos=qpos[1:], qvel=qvel)
    with pytest.raises(UserError, match="qpos of HalfCheetah-v4 has 9 values in a row"):
        replay(cheetah, "HalfCheetah-v4", qpos=qpos[:, 1:], qvel=qvel)


def test_rows_whose_velocities_are_clipped_cannot_be_replayed(hopper):
    clipped = hopper.obs.copy()
    clipped[:, -1] = 10
    with pytest.raises(UserError, match="hold a clipped velocity"):
        replay(hopper._replace(obs=clipped), "Hopper-v4")


def test_impossible_states_leave_no_log_behind(cheetah, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where MuJoCo would write one
    huge = cheetah._replace(obs=np.full_like(cheetah.obs, 1e20))
    assert replay(huge, "HalfCheetah-v4", rows=50).verdict is Verdict.CONTRADICTS
    assert not list(tmp_path.iterdir())


def test_states_are_read_from_a_file(hopper, tmp_path):
    path = tmp_path / "data.hdf5"
    path.write_bytes(hdf5.encode(hopper, {"env": "Hopper-v4"}))
    assert hdf5.read_states(path) is None
    with h5py.File(path, "r+") as file:
        file["infos/qpos"] = np.ones((2, 6), dtype=np.float32)
        file["infos/qvel"] = np.zeros((2, 6))
    qpos, qvel = hdf5.read_states(path)
    assert qpos.dtype == qvel.dtype == np.float64
    assert (qpos == 1).all()
    assert (qvel == 0).all()
