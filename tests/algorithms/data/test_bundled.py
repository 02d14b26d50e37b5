"""Bundled data: what is rolled out, and that it is made once and kept whole."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from algorithms.data import hdf5
from algorithms.data.bundled import shards, source
from algorithms.data.bundled.generate import generate
from algorithms.data.bundled.source import cache_name, make_recipe
from algorithms.data.catalog import CATALOG
from algorithms.data.dataset import OfflineDataset, arrays_sha256
from algorithms.data.source import load, resolve
from algorithms.environments.table import ENVIRONMENTS
from algorithms.errors import UserError
from algorithms.storage import Storage

SIZE = 3_000


def roll_out(
    dataset_id: str, processes: int, size: int = SIZE, seed: int = 0
) -> tuple[OfflineDataset, dict]:
    recipe = make_recipe(CATALOG[dataset_id], size, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_SIZE", 1000)  # two shards per level
        return generate(recipe, lambda _: None, processes)


@pytest.fixture(scope="module")
def medium_expert():
    return roll_out("bundled/hopper-medium-expert", processes=2)


@pytest.fixture(scope="module")
def data(medium_expert):
    return medium_expert[0]


def test_it_has_the_size_and_types_that_were_asked_for(data):
    env = ENVIRONMENTS["Hopper-v4"]
    assert data.obs.shape == data.next_obs.shape == (SIZE, env.obs_dim)
    assert data.action.shape == (SIZE, env.action_dim)
    assert data.reward.shape == data.terminal.shape == data.timeout.shape == (SIZE,)
    for name, array in data._asdict().items():
        assert array.dtype == (bool if name == "timeout" else np.float32)
        assert array.flags.c_contiguous
        assert np.isfinite(array).all()
    assert np.abs(data.action).max() <= 1


def test_an_episode_is_contiguous_and_ends_where_its_flags_say(data):
    ends = data.episode_ends
    assert ends[-1] == SIZE  # nothing is left unfinished
    assert np.diff(ends, prepend=0).max() <= 1000
    follows = np.ones(SIZE, dtype=bool)
    follows[ends - 1] = False
    inside = np.flatnonzero(follows)
    np.testing.assert_array_equal(data.next_obs[inside], data.obs[inside + 1])
    # No row runs into the next episode, whose first state is a reset one.
    between = ends[:-1]
    assert (np.abs(data.next_obs[between - 1] - data.obs[between]).max(axis=1) > 1e-3).all()
    assert (np.abs(data.obs[np.append(0, between), 0] - 1.25) < 0.01).all()


def test_a_terminal_is_the_simulators_and_a_timeout_is_not_one(data):
    done = ENVIRONMENTS["Hopper-v4"].termination(torch.from_numpy(data.next_obs)).numpy()
    np.testing.assert_array_equal(data.terminal > 0, done)
    assert not (done & data.timeout).any()
    lengths = np.diff(data.episode_ends, prepend=0)
    timed_out = data.timeout[data.episode_ends - 1]
    # Besides the time limit, only the two levels' last episodes may be cut.
    assert (timed_out & (lengths < 1000)).sum() <= 2
    assert timed_out[lengths == 1000].all()


def test_episodes_start_from_different_states_with_sampled_actions(data):
    """Reset states are almost the same: a deterministic policy's first actions would be too."""
    first = np.append(0, data.episode_ends[:-1])
    assert len(np.unique(data.obs[first], axis=0)) == len(first)
    assert np.ptp(data.action[first], axis=0).min() > 0.1


def test_the_expert_does_better_than_medium(medium_expert):
    _, scores = medium_expert
    assert list(scores) == ["medium", "expert"]
    assert scores["expert"] > scores["medium"]


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter_and_the_seed_does(data):
    alone, _ = roll_out("bundled/hopper-medium-expert", processes=1)
    assert arrays_sha256(alone) == arrays_sha256(data)
    other, _ = roll_out("bundled/hopper-medium", processes=2, size=1000, seed=1)
    assert not np.isin(other.obs[:, 0], data.obs[:, 0]).all()


@pytest.fixture
def made(monkeypatch, data):
    """Calls of `generate`, which gives what was rolled out above."""
    calls = []

    def generate_again(recipe, advance):
        calls.append(recipe)
        advance(SIZE)
        return data, {"medium": 1.0}

    monkeypatch.setattr(source, "generate", generate_again)
    return calls


def test_it_is_made_once_and_says_what_it_is(made, data, tmp_path):
    spec = resolve("bundled/hopper-medium", size=SIZE)
    for _ in range(2):
        loaded = load(spec, Storage(tmp_path))
        assert arrays_sha256(loaded) == arrays_sha256(data)
    assert made == [spec.recipe]
    path = tmp_path / cache_name(spec)
    assert path.parent == tmp_path / "data"
    assert path.name == f"bundled-hopper-medium-{spec.content_hash[:12]}.hdf5"
    assert hdf5.read_attribute(path, "id") == spec.id
    assert hdf5.read_attribute(path, "recipe") == spec.recipe.model_dump_json()
    assert resolve(f"file:{path}").env_id == "Hopper-v4"
    assert not list(path.parent.glob("*.tmp"))


def flip_a_value(path):
    with h5py.File(path, "r+") as file:
        file["rewards"][7] += 1


def drop_the_checksum(path):
    with h5py.File(path, "r+") as file:
        del file.attrs["arrays_sha256"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        lambda path: path.write_bytes(b""),
        flip_a_value,
        drop_the_checksum,
    ],
    ids=["truncated", "empty", "changed", "unchecked"],
)
def test_a_damaged_cache_is_made_again_with_a_warning(made, data, tmp_path, caplog, damage):
    spec = resolve("bundled/hopper-medium", size=SIZE)
    load(spec, Storage(tmp_path))
    damage(tmp_path / cache_name(spec))
    loaded = load(spec, Storage(tmp_path))
    assert arrays_sha256(loaded) == arrays_sha256(data)
    assert len(made) == 2
    assert "is damaged: generating bundled/hopper-medium again" in caplog.text
    load(spec, Storage(tmp_path))
    assert len(made) == 2


def test_policies_other_than_those_planned_are_refused(tmp_path):
    spec = resolve("bundled/hopper-medium", size=SIZE)
    part = spec.recipe.parts[0].model_copy(update={"sha256": "0" * 64})
    changed = spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"parts": (part,)})})
    with pytest.raises(UserError, match="is not the policy that was planned"):
        load(changed, Storage(tmp_path))


@pytest.mark.slow
def test_of_two_processes_one_generates(tmp_path):
    code = (
        "import sys\n"
        "from algorithms.storage import Storage\n"
        "from algorithms.data.source import load, resolve\n"
        "from algorithms.data.source import load\n"
        "from algorithms.data.dataset import arrays_sha256\n"
        "spec = resolve('bundled/hopper-medium', size=1000)\n"
        "print(arrays_sha256(load(spec, Storage(sys.argv[1]))))\n"
    )
    # The program comes on standard input: a main script that no other process could run again.
    racing = [
        subprocess.Popen(
            [sys.executable, "-", str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in racing:
        process.stdin.write(code)
        process.stdin.close()
        process.stdin = None
    results = [process.communicate(timeout=120) for process in racing]
    assert [process.returncode for process in racing] == [0, 0], results
    assert len({out for out, _ in results}) == 1
    lines = "".join(err for _, err in results).splitlines()
    assert lines == ["generating bundled/hopper-medium, 1,000 transitions"]


def test_a_worker_that_fails_is_an_error_and_leaves_nothing(monkeypatch, tmp_path, capfd):
    spec = resolve("bundled/hopper-medium", size=SIZE)
    monkeypatch.setattr(sys, "executable", "false")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises((RuntimeError, BrokenPipeError)):
        load(spec, Storage(tmp_path))
    assert not list(tmp_path.glob("data/*"))
