"""Collected data: the same for any number of processes, replayable, and they say what they are."""

import h5py
import numpy as np
import pytest
import torch

from algorithms.data import hdf5
from algorithms.data.bundled import shards
from algorithms.data.bundled.generate import BUNDLED_STREAM
from algorithms.data.bundled.recipe import level_file, policy_set
from algorithms.data.columns import understand
from algorithms.data.source import load, resolve
from algorithms.data.verify import Verdict, replay
from algorithms.environments.episodes import EVALUATION_STREAM
from algorithms.environments.table import ENVIRONMENTS
from algorithms.errors import UserError
from algorithms.online.collect import COLLECTION_STREAM, collect
from algorithms.online.rollout import load_policy, roll_out
from algorithms.online.training import ONLINE_STREAM
from algorithms.sac.policy import DeterministicPolicy, Policy, export_policy
from algorithms.storage import Storage

SIZE = 900


def transitions(path, env_id):
    """What a file holds, whatever the checks say of it."""
    return understand([hdf5.read(path)], ENVIRONMENTS[env_id], env_id).data


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The package's medium hopper, as `orchestrator export` writes a policy."""
    networks = load_policy(level_file("hopper", "medium"), "Hopper-v4")
    path = tmp_path_factory.mktemp("policy") / "medium.pt2"
    export_policy(DeterministicPolicy(Policy.from_stack(networks.actor, 0)), path)
    return path


def collect_here(policy, env_id=None, size=SIZE, **options):
    """`collect` in three shards without the seconds that processes take to start."""

    def run(work, advance, processes):
        for shard in work:
            np.savez(shard.output, **roll_out(shard))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_SIZE", size // 3)
        patch.setattr(shards, "run", run)
        return collect(policy, env_id, size, **options)


@pytest.fixture(scope="module")
def of_exported(exported):
    return collect_here(exported, "Hopper-v4", deterministic=True)


def test_it_verifies_from_its_states_and_from_its_observations(of_exported, tmp_path):
    path = tmp_path / "collected.hdf5"
    path.write_bytes(of_exported.encode())
    data = transitions(path, "Hopper-v4")
    qpos, qvel = hdf5.read_states(path)
    exact = replay(data, "Hopper-v4", qpos=qpos, qvel=qvel)
    from_obs = replay(data, "Hopper-v4")
    assert exact.verdict is from_obs.verdict is Verdict.AGREES
    assert exact.states == "infos/qpos and infos/qvel"
    assert exact.next_obs_relative.largest < 3e-5  # the results are float32
    assert exact.terminals_differ == 0


def test_the_states_are_those_before_the_actions(of_exported):
    qpos, qvel = of_exported.infos["qpos"], of_exported.infos["qvel"]
    assert qpos.dtype == qvel.dtype == np.float64
    obs = np.concatenate([qpos[:, 1:], np.clip(qvel, -10, 10)], axis=1)
    np.testing.assert_array_equal(obs.astype(np.float32), of_exported.data.obs)


def test_the_actions_are_the_exported_files(of_exported, exported):
    policy = torch.export.load(exported).module()
    data = of_exported.data
    expected = policy(torch.from_numpy(data.obs)).numpy()
    np.testing.assert_allclose(data.action, expected, atol=1e-5)


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter(of_exported, exported, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SIZE", SIZE // 3)
    for processes in (1, 3):
        done = []
        made = collect(
            exported,
            "Hopper-v4",
            SIZE,
            deterministic=True,
            processes=processes,
            advance=done.append,
        )
        assert made.encode() == of_exported.encode()
        assert sum(done) >= SIZE


def test_a_level_is_sampled_or_not_and_the_file_says_what_it_is(tmp_path):
    sampled = collect_here("hopper/medium", size=500, seed=3)
    mode = collect_here("hopper/medium", size=500, seed=3, deterministic=True)
    networks = load_policy(level_file("hopper", "medium"), "Hopper-v4")
    with torch.no_grad():
        for data, spread in ((sampled.data, True), (mode.data, False)):
            at = networks.policy(torch.from_numpy(data.obs)[None]).mode()[0].numpy()
            assert (np.abs(data.action - at).max() > 0.1) == spread
            assert len(data.obs) == data.episode_ends[-1] == 500
    path = tmp_path / "level.hdf5"
    path.write_bytes(sampled.encode())
    assert hdf5.read(path).env_id == "Hopper-v4"
    with h5py.File(path) as file:
        attributes = dict(file.attrs)
    assert attributes["policy"] == "hopper/medium"
    assert attributes["policy_sha256"] == policy_set("hopper").levels["medium"].sha256
    assert attributes["seed"] == 3
    assert attributes["actions"] == "sampled"
    assert {"mujoco", "gymnasium", "code"} < set(attributes)


def test_a_file_holds_actions_in_the_environments_own_units(of_exported, monkeypatch, tmp_path):
    row = ENVIRONMENTS["Hopper-v4"]._replace(action_low=-2.0, action_high=4.0)
    monkeypatch.setitem(ENVIRONMENTS, "Hopper-v4", row)
    path = tmp_path / "own.hdf5"
    path.write_bytes(of_exported.encode())
    with h5py.File(path) as file:
        np.testing.assert_allclose(file["actions"], 3 * of_exported.data.action + 1, atol=1e-6)
    spec = resolve(f"file:{path}", allow=["physics"])  # in which the bounds are not these
    loaded = load(spec, Storage(tmp_path / "storage"))
    np.testing.assert_allclose(loaded.action, of_exported.data.action, atol=1e-6)


def test_no_two_uses_of_random_states_share_a_stream():
    streams = [EVALUATION_STREAM, ONLINE_STREAM, BUNDLED_STREAM, COLLECTION_STREAM]
    assert len(set(streams)) == len(streams)


@pytest.mark.parametrize(
    ("policy", "env_id", "message"),
    [
        ("hopper/best", None, "unknown policy 'hopper/best': one of double-pendulum/expert, "),
        ("hopper/medium", "Walker2d-v4", "was trained in Hopper-v4, not Walker2d-v4"),
        ("hopper/medium", "Hoper-v4", "unknown env 'Hoper-v4'"),
        ("EXPORTED", None, "medium.pt2 does not say where it acts: give env"),
        ("EXPORTED", "Hopper-v4", "so there is nothing to sample"),
        ("DETERMINISTIC", "Walker2d-v4", "does not take observations of Walker2d-v4"),
        ("DAMAGED", "Hopper-v4", "is not a policy as orchestrator export writes it"),
    ],
)
def test_mistakes_are_one_sentence(policy, env_id, message, exported, tmp_path):
    damaged = tmp_path / "damaged.pt2"
    damaged.write_bytes(exported.read_bytes()[:1000])
    files = {"EXPORTED": exported, "DETERMINISTIC": exported, "DAMAGED": damaged}
    with pytest.raises(UserError) as error:
        collect(
            files.get(policy, policy),
            env_id,
            10,
            deterministic=policy in ("DETERMINISTIC", "DAMAGED"),
        )
    assert message in str(error.value)
