"""Minari's data sets, written by its own collector in a real environment."""

import json
from importlib.util import find_spec

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from minari import DataCollector

from algorithms.data.convert import write_minari
from algorithms.data.source import load, resolve
from algorithms.environments.table import make_env
from algorithms.errors import UserError
from algorithms.storage import Storage

needs_jax = pytest.mark.skipif(
    find_spec("jax") is None,
    reason="Minari's collector needs jax, which is larger than all else: pip install jax",
)
EPISODES = 30  # of some 20 steps each, at random
NAMES = ("obs", "action", "reward", "next_obs", "terminal", "timeout")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A folder of Minari's of this test alone."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("ORCHESTRATOR_OFFLINE", "1")
    return tmp_path / "minari"


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "storage")


@pytest.fixture
def written(rolled_out, tmp_path, storage):
    """A data set of Minari's, `minari/hopper/random-v0`."""
    path = tmp_path / "written.npz"
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    np.savez(path, **dict(zip(names, rolled_out, strict=True)))
    spec = resolve(f"file:{path}", env="Hopper-v4")
    write_minari(load(spec, storage), spec, "minari/hopper/random-v0")


def collect(data_format, dataset_id="hopper/random-v0"):
    """Episodes of Hopper-v4 by Minari's collector, and the same recorded by hand."""
    with pytest.warns(DeprecationWarning, match="out of date"):
        env = DataCollector(gymnasium.make("Hopper-v4"), data_format=data_format)
    env.action_space.seed(0)
    rows = []
    for episode in range(EPISODES):
        obs, _ = env.reset(seed=episode)
        done = False
        while not done:
            action = env.action_space.sample()
            next_obs, reward, terminated, truncated, _ = env.step(action)
            rows.append((obs, action, reward, next_obs, terminated, truncated))
            obs, done = next_obs, terminated or truncated
    env.create_dataset(dataset_id)
    env.close()
    columns = (np.array(column, dtype=np.float32) for column in zip(*rows, strict=True))
    return dict(zip(NAMES, columns, strict=True))


@needs_jax
@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_what_minari_wrote_is_what_was_seen(data_format, storage):
    by_hand = collect(data_format)
    spec = resolve("minari/hopper/random-v0")
    assert (spec.env_id, spec.size) == ("Hopper-v4", len(by_hand["reward"]))
    assert spec.version == f"v0, written by minari {minari.__version__}"
    data = load(spec, storage)
    for name, expected in by_hand.items():
        np.testing.assert_array_equal(getattr(data, name), expected, err_msg=name)


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_its_file_and_its_folder_by_path_are_the_same_data(root, storage, written):
    folder = root / "hopper" / "random-v0"
    by_name = resolve("minari/hopper/random-v0")
    by_folder, by_file = (
        resolve(f"file:{path}") for path in (folder, folder / "data" / "main_data.hdf5")
    )
    assert by_name.content_hash == by_folder.content_hash == by_file.content_hash
    assert "is in Minari's layout: " in by_file.notes[0]
    np.testing.assert_array_equal(load(by_name, storage).obs, load(by_file, storage).obs)


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_what_is_converted_reads_back_as_it_was(rolled_out, storage, written):
    spec = resolve("minari/hopper/random-v0")
    data = load(spec, storage)
    for field, mine, original in zip(data._fields, data, rolled_out, strict=True):
        if field != "timeout":
            np.testing.assert_array_equal(mine, original, err_msg=field)
    np.testing.assert_array_equal(data.timeout[:-1], rolled_out.timeout[:-1])
    with pytest.raises(UserError, match="minari/hopper/random-v0 cannot be written"):
        write_minari(data, spec, "minari/hopper/random-v0")


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_a_data_set_that_changed_after_it_was_planned(root, storage, written):
    spec = resolve("minari/hopper/random-v0")
    with h5py.File(root / "hopper/random-v0/data/main_data.hdf5", "a") as file:
        file["episode_0/rewards"][0] += 1
    with pytest.raises(UserError, match="is not the one that was planned"):
        load(spec, storage)


def test_an_episode_whose_lengths_do_not_fit(tmp_path):
    path = tmp_path / "main_data.hdf5"
    with h5py.File(path, "w") as file:
        episode = file.create_group("episode_0")
        episode["observations"] = np.zeros((5, 11))
        for name, shape in (("actions", (5, 3)), ("rewards", 5)):
            episode[name] = np.zeros(shape)
        for name in ("terminations", "truncations"):
            episode[name] = np.zeros(5, dtype=bool)
    (tmp_path / "metadata.json").write_text(json.dumps({"env_spec": '{"id": "Hopper-v4"}'}))
    with pytest.raises(UserError, match="episode_0 has 5 observations and 5 actions"):
        resolve(f"file:{path}")


def test_offline_a_data_set_that_is_not_there_is_one_sentence(root):
    with pytest.raises(
        UserError, match=r"is not in .*nothing is downloaded while offline"
    ) as error:
        resolve("minari/D4RL/pen/human-v2")
    assert str(root) in str(error.value)
    assert "\n" not in str(error.value)


def test_our_environment_is_the_one_that_minari_records(root):
    """`make_env` adds a time limit, which the environment's specification has to keep."""
    assert make_env("Hopper-v4").spec.id == "Hopper-v4"
