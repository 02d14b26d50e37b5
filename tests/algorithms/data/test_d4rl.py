"""D4RL's files: found, downloaded, checked. Small files with their own pins stand in for them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from file_server import FileServer

from algorithms.data import d4rl
from algorithms.data.catalog import CATALOG, D4RL
from algorithms.data.download import Patience
from algorithms.data.source import at_hand, load, missing, resolve, to_download
from algorithms.errors import UserError
from algorithms.identity import file_sha256
from algorithms.storage import Storage

HOPPER, WALKER = "d4rl/hopper-medium-replay-v2", "d4rl/walker2d-medium-v2"
FILE = "hopper_medium_replay-v2.hdf5"
RANDOM, RANDOM_FILE = "d4rl/hopper-random-v2", "hopper_random-v2.hdf5"  # which has no pin


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
    for variable in ("D4RL_DATASET_DIR", "ORCHESTRATOR_DATA", "ORCHESTRATOR_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    # Nothing is asked for outside this machine, and nobody listens at this port.
    monkeypatch.setattr(d4rl, "ADDRESSES", ("http://127.0.0.1:9/{folder}/{file}",))
    monkeypatch.setattr(d4rl, "PATIENCE", Patience(tries=2, unanswered=1, backoff_s=0.01))
    return tmp_path / "home"


@pytest.fixture
def storage(tmp_path):
    return tmp_path / "storage"


@pytest.fixture
def pinned(tmp_path, monkeypatch):
    """The spec of a data set whose pins are those of the bytes that are returned with it."""
    content = write(tmp_path / "original.hdf5").read_bytes()
    sha256 = file_sha256(tmp_path / "original.hdf5")
    monkeypatch.setitem(
        CATALOG, HOPPER, replace(CATALOG[HOPPER], bytes=len(content), sha256=sha256)
    )
    return resolve(HOPPER), content


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of a small file in D4RL's layout, in the place of D4RL's."""
    with FileServer(write(tmp_path / "served.hdf5").read_bytes()) as server:
        monkeypatch.setattr(d4rl, "ADDRESSES", (server.url("origin", "{folder}/{file}"),))
        yield server


def put(folder: Path, content: bytes, name: str = FILE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def test_the_pins_are_what_tensorflow_datasets_records():
    """Of six files the smallest and the largest, whole."""
    replay, expert = resolve(HOPPER), CATALOG["d4rl/walker2d-medium-expert-v2"]
    assert replay.content_hash == (
        "e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b"
    )
    assert CATALOG[HOPPER].bytes == 75854457
    assert expert.bytes == 462197079
    assert expert.sha256 == "6b8d7f868c45bbaedf460be797fb7271b46dee6ebe45fe7a64319f2005b59a04"
    pins = [entry for entry in CATALOG.values() if isinstance(entry, D4RL) and entry.sha256]
    assert len({pin.sha256 for pin in pins}) == len({pin.bytes for pin in pins}) == len(pins) == 6


def test_a_spec_is_complete_without_the_file(storage):
    spec = resolve(WALKER)
    assert (spec.env_id, spec.task, spec.slug) == (
        "Walker2d-v4",
        "walker2d-medium",
        "d4rl-walker2d-medium-v2",
    )
    assert spec.size is None
    assert CATALOG[WALKER].file == "walker2d_medium-v2.hdf5"
    assert not at_hand(spec, Storage(storage))
    assert missing(spec, Storage(storage)) is None  # it can be downloaded
    assert to_download(spec, Storage(storage)) == 232_254_996
    assert not storage.exists()


def test_a_bare_name_means_d4rls():
    assert resolve("hopper-medium-replay-v2") == resolve(HOPPER)


@pytest.mark.parametrize("value", ["1", "true"])
def test_what_is_missing_offline_is_told_in_one_sentence(storage, server, monkeypatch, value):
    monkeypatch.setenv("ORCHESTRATOR_OFFLINE", value)
    sentence = missing(resolve(HOPPER), Storage(storage))
    assert sentence == (
        f"{HOPPER} needs {FILE} (75,854,457 bytes, SHA-256 e121c5f7c985...), and "
        f"ORCHESTRATOR_OFFLINE forbids to download it: put it into {storage}/data/d4rl, from "
        f"{server.url('origin', 'gym_mujoco_v2')}/{FILE}"
    )
    with pytest.raises(UserError) as caught:
        load(resolve(HOPPER), Storage(storage))
    assert str(caught.value) == sentence
    with pytest.raises(UserError) as caught:
        resolve(RANDOM, storage=Storage(storage))
    assert f"{RANDOM} needs {RANDOM_FILE}, and ORCHESTRATOR_OFFLINE" in str(caught.value)
    assert not storage.exists()
    assert server.asked == []


def test_offline_0_is_online(storage, monkeypatch):
    monkeypatch.setenv("ORCHESTRATOR_OFFLINE", "0")
    assert missing(resolve(HOPPER), Storage(storage)) is None


def test_the_file_is_found_in_the_storage_and_in_d4rls_own_places(
    pinned, storage, home, tmp_path, monkeypatch
):
    spec, content = pinned
    assert d4rl.find(spec, Storage(storage)) is None
    in_home = put(home / ".d4rl" / "datasets", content)
    assert d4rl.find(spec, Storage(storage)) == in_home
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "named"))
    assert d4rl.find(spec, Storage(storage)) == in_home
    in_named = put(tmp_path / "named", content)
    assert d4rl.find(spec, Storage(storage)) == in_named
    in_storage = put(storage / "data" / "d4rl", content)
    assert d4rl.find(spec, Storage(storage)) == in_storage
    monkeypatch.setenv("ORCHESTRATOR_DATA", str(tmp_path / "cache"))
    assert d4rl.find(spec, Storage(storage)) == in_storage
    in_cache = put(tmp_path / "cache", content)
    assert d4rl.find(spec, Storage(storage)) == in_cache
    in_cache.write_bytes(content[:-1])  # an interrupted copy does not hide a whole one
    assert d4rl.find(spec, Storage(storage)) == in_storage


def test_a_home_that_nobody_has_is_no_mistake(storage, monkeypatch):
    def homeless(_path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert not at_hand(resolve(HOPPER), Storage(storage))


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
    monkeypatch.setattr(d4rl, "file_sha256", lambda path: hashed.append(path) or spec.content_hash)
    load(spec, Storage(storage))
    load(spec, Storage(storage))
    assert len(hashed) == 1


def test_a_file_is_downloaded_once_and_into_the_folder_of_ones_choice(
    pinned, storage, server, tmp_path, monkeypatch
):
    spec, content = pinned
    server.content = content
    assert len(load(spec, Storage(storage)).reward) == 12
    assert (storage / "data" / "d4rl" / FILE).read_bytes() == content
    load(spec, Storage(storage))
    assert len(server.asked) == 1
    monkeypatch.setenv("ORCHESTRATOR_DATA", str(tmp_path / "cache"))
    load(spec, Storage(tmp_path / "another storage"))
    assert (tmp_path / "cache" / FILE).read_bytes() == content
    assert len(server.asked) == 2


def test_a_file_that_cannot_be_downloaded_is_one_sentence(pinned, storage):
    with pytest.raises(UserError) as caught:
        load(pinned[0], Storage(storage))
    assert f"{HOPPER} could not be downloaded (http://127.0.0.1:9/" in str(caught.value)
    assert str(storage / "data" / "d4rl" / FILE) in str(caught.value)
    assert "\n" not in str(caught.value)


# Files without a pin: the lock file


def recorded(folder: Path) -> dict:
    return json.loads((folder / "datasets.lock.json").read_text())


def test_the_first_download_is_recorded_and_decides(storage, server, capsys):
    kept = Storage(storage)
    spec = resolve(RANDOM, storage=kept)
    assert "downloaded now" in capsys.readouterr().err
    path = storage / "data" / "d4rl" / RANDOM_FILE
    assert spec.content_hash == file_sha256(path)
    (row,) = recorded(path.parent).values()
    assert row["bytes"] == len(server.content)
    assert row["sha256"] == row["content"] == spec.content_hash
    assert row["url"] == server.url("origin", f"gym_mujoco_v2/{RANDOM_FILE}")
    # What is odd about it is told, and does not end anything: it is what others use as well.
    assert any("too_few_rows: 12 transitions" in text for text in spec.warnings)
    assert "rounded from float64 to float32" in spec.notes[0]
    assert len(load(spec, kept).reward) == 12
    path.unlink()  # a spec is known without the file, and what comes again must be the same
    assert resolve(RANDOM, storage=kept) == spec
    assert to_download(spec, kept) == len(server.content)
    assert len(server.asked) == 1
    load(spec, kept)
    path.unlink()
    server.content = write(path.parent / "other", seed=1).read_bytes()
    with pytest.raises(UserError, match=r"has a file of (SHA-256|[\d,]+ bytes)"):
        load(spec, kept)
    assert not path.exists()


@pytest.mark.parametrize("where", ["storage", "home"])
def test_the_first_file_that_is_found_is_recorded_and_a_changed_one_refused(
    storage, home, server, where
):
    kept, ours = Storage(storage), storage / "data" / "d4rl"
    folder = {"storage": ours, "home": home / ".d4rl" / "datasets"}[where]
    path = put(folder, server.content, RANDOM_FILE)
    spec = resolve(RANDOM, storage=kept)
    assert recorded(ours)[RANDOM]["url"] is None
    assert str(path) not in (ours / "datasets.lock.json").read_text()  # folders may move
    load(spec, kept)
    changed = bytearray(server.content)
    changed[len(changed) // 2] ^= 1
    path.write_bytes(bytes(changed))
    os.utime(path, (0, 0))
    with pytest.raises(UserError) as caught:
        load(resolve(RANDOM, storage=kept), kept)
    for words in (path, ours / "datasets.lock.json", spec.content_hash[:12]):
        assert str(words) in str(caught.value)
    assert file_sha256(path)[:12] in str(caught.value)
    path.write_bytes(server.content + b"x")
    assert str(ours / "datasets.lock.json") in missing(spec, kept)
    assert server.asked == []


def test_files_are_recorded_beside_each_other_in_order(storage, server):
    ours, expert = storage / "data" / "d4rl", "d4rl/hopper-expert-v2"
    for name in (RANDOM, expert):
        put(ours, server.content, CATALOG[name].file)
        resolve(name, storage=Storage(storage))
    assert list(recorded(ours)) == [expert, RANDOM]


def test_a_file_of_another_environment_is_not_recorded(storage, server):
    with pytest.raises(UserError, match=r"observations has shape \(12, 11\)"):
        resolve("d4rl/walker2d-random-v2", storage=Storage(storage))
    assert not (storage / "data" / "d4rl" / "datasets.lock.json").exists()


def test_a_file_that_is_cut_off_is_not_recorded(storage, server):
    put(storage / "data" / "d4rl", server.content[:-100], RANDOM_FILE)
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        resolve(RANDOM, storage=Storage(storage))
    assert not (storage / "data" / "d4rl" / "datasets.lock.json").exists()


def test_a_damaged_lock_file_is_a_mistake_that_can_be_mended(storage):
    put(storage / "data" / "d4rl", b"{", "datasets.lock.json")
    with pytest.raises(UserError, match=r"datasets\.lock\.json is not a lock file of data sets"):
        resolve(RANDOM, storage=Storage(storage))


def test_what_is_missing_is_known_without_torch_and_ray():
    code = (
        "import sys; from algorithms.data import source; from algorithms.storage import Storage; "
        "source.missing(source.resolve('d4rl/hopper-medium-v2'), Storage('/nowhere')); "
        "sys.exit(bool({'torch', 'ray'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_derived_of_a_file_without_a_pin_is_recorded_with_it(storage, home):
    """Adroit's files have no next observations."""
    path = write(home / ".d4rl" / "datasets" / RANDOM_FILE)
    with h5py.File(path, "a") as file:
        del file["next_observations"]
    kept = Storage(storage)
    spec = resolve(RANDOM, storage=kept)
    assert spec.content_hash != file_sha256(path)
    assert any("has no next_observations: derived" in note for note in spec.notes)
    assert len(load(spec, kept).reward) == 10  # twelve rows, two episodes
    assert resolve(RANDOM, storage=kept) == spec  # from the lock file


def test_a_cut_off_file_without_a_pin_says_what_to_do(storage, home):
    path = write(home / ".d4rl" / "datasets" / RANDOM_FILE)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(
        UserError, match=r"cannot be read as HDF5.*: delete .*, and it is downloaded"
    ):
        resolve(RANDOM, storage=Storage(storage))
