"""What storage promises: whole files, one winner, one holder; and what a URL may be."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from algorithms.errors import UserError
from algorithms.storage import BACKENDS, HeldError, Storage


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "root")


def everything(storage):
    root = storage.path("")
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def test_making_one_touches_nothing(storage):
    assert storage.get("a/b") is None
    assert storage.list("a") == []
    storage.delete("a")
    assert not storage.path("").exists()


def test_a_file_is_replaced_whole(storage):
    storage.put("a/b.txt", b"one")
    storage.put("a/b.txt", b"two")
    assert storage.get("a/b.txt") == b"two"
    assert storage.fetch("a/b.txt").read_bytes() == b"two"
    assert everything(storage) == ["a/b.txt"]


def test_a_write_that_fails_leaves_the_file_as_it_was(storage, monkeypatch):
    storage.put("a", b"one")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        storage.put("a", b"two")
    assert storage.get("a") == b"one"
    assert everything(storage) == ["a"]


def test_of_many_writers_of_a_new_file_one_wins(storage):
    with ThreadPoolExecutor(16) as threads:
        won = list(threads.map(lambda n: storage.put_if_absent("a", b"%d" % n), range(16)))
    assert sum(won) == 1
    assert storage.get("a") == b"%d" % won.index(True)
    assert everything(storage) == ["a"]


def test_listing_names_files_alone_in_order(storage):
    for name in ("r/b.json", "r/a.json", "r/deeper/c.json"):
        storage.put(name, b"")
    assert storage.list("r") == ["a.json", "b.json"]


def test_a_folder_is_published_whole_and_once(storage):
    files = {"weights": b"w" * 100, "about.json": b"{}"}
    with ThreadPoolExecutor(8) as threads:
        tries = range(8)
        won = list(
            threads.map(
                lambda n: storage.publish("e/k", files | {"by": b"%d" % n}, last="about.json"),
                tries,
            )
        )
    assert sum(won) == 1
    assert storage.get("e/k/by") == b"%d" % won.index(True)
    assert everything(storage) == ["e/k/about.json", "e/k/by", "e/k/weights"]
    storage.delete("e/k")
    assert everything(storage) == []


def test_a_lease_is_held_by_one(storage):
    with storage.lease("cell", wait=False):
        with pytest.raises(HeldError), storage.lease("cell", wait=False):
            pass
        with storage.lease("other", wait=False):
            pass
    with storage.lease("cell", wait=False):
        pass


def test_whoever_dies_lets_go(storage):
    program = (
        "import os, sys\n"
        "from algorithms.storage import Storage\n"
        "held = Storage(sys.argv[1]).lease('cell')\n"
        "held.__enter__()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, storage.url], check=False)
    assert done.returncode == -9
    with storage.lease("cell", wait=False):
        pass


def test_it_is_its_url_in_any_process(storage, tmp_path, monkeypatch):
    copy = pickle.loads(pickle.dumps(storage))
    assert copy == storage
    assert hash(copy) == hash(storage)
    assert copy != Storage(tmp_path)
    assert Storage(f"file://{tmp_path}/root") == storage
    monkeypatch.chdir(tmp_path)
    assert Storage("root") == storage


@pytest.mark.parametrize("url", ["s3://bucket/x", "ftp://host/x", "s3://"])
def test_an_unknown_scheme_is_refused_with_those_that_are_known(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        Storage(url)
    assert url in str(error.value)
    assert "one of file, or the path of a folder" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_somebody_without_a_home_is_a_mistake():
    with pytest.raises(UserError, match="storage ~nobody-has-this-name/x: "):
        Storage("~nobody-has-this-name/x")


def test_another_scheme_is_one_row(tmp_path, monkeypatch):
    class Memory(BACKENDS[""]):
        """A backend of its own, as an object store would be."""

        def __init__(self, rest):
            super().__init__(str(tmp_path / rest))
            self._url = f"memory://{rest}"

        def __str__(self):
            return self._url

    monkeypatch.setitem(BACKENDS, "memory", Memory)
    storage = Storage("memory://here")
    storage.put("a", b"1")
    assert storage.url == "memory://here"
    assert pickle.loads(pickle.dumps(storage)).get("a") == b"1"
