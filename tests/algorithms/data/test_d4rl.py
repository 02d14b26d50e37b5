"""D4RL's files: pinned, found, checked. A small file stands in for D4RL's, with its own pins."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from algorithms.data import d4rl, hdf5
from algorithms.data.catalog import CATALOG, D4RL
from algorithms.data.source import at_hand, load, missing, resolve
from algorithms.errors import UserError
from algorithms.identity import file_sha256
from algorithms.storage import Storage

HOPPER, WALKER = "d4rl/hopper-medium-replay-v2", "d4rl/walker2d-medium-v2"
FILE = "hopper_medium_replay-v2.hdf5"


def write(path: Path, seed: int = 0) -> Path:
    """Twelve rows in D4RL's layout, with what its v2 files hold besides."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(12, 11))
        file["actions"] = rng.uniform(-1, 1, size=(12, 3))
        file["rewards"] = rng.normal(size=12)
        file["next_observations"] = rng.normal(size=(12, 11))
        file["terminals"] = np.arange(12) == 5
        file["timeouts"] = np.arange(12) == 11
        file["infos/qpos"] = rng.normal(size=(12, 6))
        file["metadata/algorithm"] = "SAC"
    return path


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home of this test alone, so that nobody's own data is found."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("D4RL_DATASET_DIR", raising=False)
    return tmp_path / "home"


@pytest.fixture
def storage(tmp_path):
    return tmp_path / "storage"


@pytest.fixture
def pinned(tmp_path, monkeypatch):
    """The spec of a data set whose pins are those of the bytes that are returned with it."""
    content = write(tmp_path / "original.hdf5").read_bytes()
    sha256 = file_sha256(tmp_path / "original.hdf5")
    monkeypatch.setitem(CATALOG, HOPPER, D4RL(len(content), sha256))
    return resolve(HOPPER), content


def put(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(content)
    return folder / FILE


def test_the_pins_are_what_tensorflow_datasets_records():
    """Of six files the smallest and the largest, whole."""
    replay, expert = resolve(HOPPER), CATALOG["d4rl/walker2d-medium-expert-v2"]
    assert replay.content_hash == (
        "e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b"
    )
    assert CATALOG[HOPPER].bytes == 75854457
    assert expert.bytes == 462197079
    assert expert.sha256 == "6b8d7f868c45bbaedf460be797fb7271b46dee6ebe45fe7a64319f2005b59a04"
    pins = [entry for entry in CATALOG.values() if isinstance(entry, D4RL)]
    assert len({pin.sha256 for pin in pins}) == len({pin.bytes for pin in pins}) == len(pins) == 6


def test_a_spec_is_complete_without_the_file(storage):
    spec = resolve(WALKER)
    assert (spec.env_id, spec.task, spec.slug) == (
        "Walker2d-v4",
        "walker2d-medium",
        "d4rl-walker2d-medium-v2",
    )
    assert spec.size is None
    assert d4rl.file_name(spec) == "walker2d_medium-v2.hdf5"
    assert not at_hand(spec, Storage(storage))


def test_what_is_missing_is_told_in_one_sentence(storage):
    sentence = missing(resolve(HOPPER), Storage(storage))
    assert sentence == (
        f"{HOPPER} needs {FILE} (75,854,457 bytes, SHA-256 e121c5f7c985...): put it into "
        f"{storage}/data/d4rl, from "
        f"http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2/{FILE}"
    )
    with pytest.raises(UserError) as caught:
        load(resolve(HOPPER), Storage(storage))
    assert str(caught.value) == sentence
    assert not storage.exists()


def test_the_file_is_found_in_the_storage_and_in_d4rls_own_places(
    pinned, storage, home, tmp_path, monkeypatch
):
    spec, content = pinned
    in_home = put(home / ".d4rl" / "datasets", content)
    assert d4rl.find(spec, Storage(storage)) == in_home
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "named"))
    assert d4rl.find(spec, Storage(storage)) == in_home
    in_named = put(tmp_path / "named", content)
    assert d4rl.find(spec, Storage(storage)) == in_named
    in_storage = put(storage / "data" / "d4rl", content)
    assert d4rl.find(spec, Storage(storage)) == in_storage
    in_storage.write_bytes(content[:-1])  # an interrupted copy does not hide a whole one
    assert d4rl.find(spec, Storage(storage)) == in_named


def test_a_home_that_nobody_has_is_no_mistake(storage, monkeypatch):
    def homeless(_path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert "put it into" in missing(resolve(HOPPER), Storage(storage))


def test_the_file_loads_as_it_is_stored(pinned, storage):
    spec, content = pinned
    path = put(storage / "data" / "d4rl", content)
    assert missing(spec, Storage(storage)) is None
    assert at_hand(spec, Storage(storage))
    data = load(spec, Storage(storage))
    with h5py.File(path) as file:
        np.testing.assert_array_equal(data.next_obs, np.float32(file["next_observations"]))
    assert data.episode_ends.tolist() == [6, 12]


def test_a_file_that_is_cut_off(pinned, storage):
    spec, content = pinned
    path = put(storage / "data" / "d4rl", content[:-100])
    sentence = missing(spec, Storage(storage))
    assert sentence.startswith(f"{path} has {len(content) - 100:,} bytes, but {HOPPER} has ")
    assert f" {len(content):,}: it is cut off" in sentence
    with pytest.raises(UserError, match="it is cut off"):
        load(spec, Storage(storage))


def test_another_file_of_the_same_length(pinned, storage):
    """Only `load` looks into it, and again after it has been replaced."""
    spec, content = pinned
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    path = put(storage / "data" / "d4rl", bytes(changed))
    assert missing(spec, Storage(storage)) is None
    found = file_sha256(path)[:12]
    with pytest.raises(UserError) as caught:
        load(spec, Storage(storage))
    assert f"{path} has SHA-256 {found}..., but {HOPPER} has " in str(caught.value)
    put(storage / "data" / "d4rl", content)
    os.utime(path, (0, 0))  # a clock too coarse for a test would show no change
    load(spec, Storage(storage))


def test_a_process_hashes_a_file_once(pinned, storage, monkeypatch):
    spec, content = pinned
    put(storage / "data" / "d4rl", content)
    hashed = []
    monkeypatch.setattr(hdf5, "file_sha256", lambda path: hashed.append(path) or spec.content_hash)
    load(spec, Storage(storage))
    load(spec, Storage(storage))
    assert len(hashed) == 1


def test_what_is_missing_is_known_without_torch_and_ray():
    code = (
        "import sys; from algorithms.data import source; from algorithms.storage import Storage; "
        "source.missing(source.resolve('d4rl/hopper-medium-v2'), Storage('/nowhere')); "
        "sys.exit(bool({'torch', 'ray'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
