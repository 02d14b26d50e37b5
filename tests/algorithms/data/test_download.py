"""Downloads from a real server that cuts, stalls and lies: the right file, or one error."""

import errno
import hashlib
import io
import multiprocessing
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from file_server import FileServer
from rich.console import Console
from rich.progress import Progress

from algorithms.data import d4rl, download
from algorithms.data.download import Patience, Wanted, fetch
from algorithms.errors import UserError
from algorithms.storage import Storage

CONTENT = np.random.default_rng(0).bytes(1_000_000)
# A machine may be busy; where the server stalls on purpose, there is less to wait for.
QUICK = Patience(connect_s=10, read_s=10, tries=3, unanswered=2, backoff_s=0.01)
STALLS = QUICK._replace(read_s=0.5, tries=5, unanswered=5)


@pytest.fixture
def server():
    with FileServer(CONTENT) as server:
        yield server


@pytest.fixture
def target(tmp_path):
    return tmp_path / "folder" / "file.hdf5"


def pinned(target, content=CONTENT):
    return Wanted("d4rl/x-v2", target, len(content), hashlib.sha256(content).hexdigest())


def unpinned(target):
    return Wanted("d4rl/x-v1", target, None, None, CONTENT[:8])


def get(server, wanted, *addresses):
    patience = STALLS if "stall" in server.scripts["origin"] else QUICK
    return fetch(wanted, [server.url(name) for name in addresses], patience=patience)


def error_of(server, wanted, *addresses):
    """The sentence of a download that fails, which leaves no file."""
    with pytest.raises(UserError) as caught:
        get(server, wanted, *addresses)
    assert "\n" not in str(caught.value)
    assert not wanted.target.exists()
    return str(caught.value)


@pytest.mark.parametrize("known", [pinned, unpinned])
@pytest.mark.parametrize(
    "script",
    [
        ["good"],
        ["cut", "good"],
        ["stall", "good"],
        ["cut", "stall", "good"],
        [503, 503, "good"],
        ["drop", "good"],
        ["cut", "no_range"],
        ["cut", "other_part", "good"],
        ["cut", 503, "good"],
    ],
    ids=str,
)
def test_what_a_server_mends_gives_the_file(server, target, script, known):
    server.scripts["origin"] = list(script)
    assert get(server, known(target), "origin") == server.url("origin")
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == [target.name]  # no part is left
    assert len(server.asked) == len(script) or "stall" in script


@pytest.mark.parametrize("known", [pinned, unpinned])
def test_what_has_arrived_is_not_sent_again(server, target, known):
    """A cut loses less than a chunk; the version is named, so that no other one is continued."""
    server.scripts["origin"] = ["cut", "good"]
    get(server, known(target), "origin")
    (_, range_0, _), (_, range_1, mark) = server.asked
    assert range_0 is None
    assert 500_000 - download.CHUNK <= int(range_1[len("bytes=") : -1]) <= 500_000
    assert mark.startswith('"')
    assert server.sent < len(CONTENT) + download.CHUNK


def test_a_cut_is_noticed_where_the_server_tells_no_length(server, target):
    server.scripts["origin"] = ["cut_no_length", "good"]
    get(server, pinned(target), "origin")
    assert target.read_bytes() == CONTENT
    assert server.sent < len(CONTENT) + download.CHUNK


@pytest.mark.parametrize("known", [pinned, unpinned])
def test_a_later_command_continues(server, target, known):
    server.scripts["origin"] = ["cut", 404]
    assert "answers 404" in error_of(server, known(target), "origin")
    server.scripts["origin"] = ["good"]
    get(server, known(target), "origin")
    assert target.read_bytes() == CONTENT
    assert server.sent < len(CONTENT) + download.CHUNK


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (["cut"], "breaks off at"),
        (["stall"], "stalls at|does not answer in time"),
        (["drop"], "cannot be reached"),
        (["short"], "has a file of 999,999 bytes, not of 1,000,000"),
        (["long"], "has a file of 1,000,001 bytes, not of 1,000,000"),
        (["one_byte"], "has a file of SHA-256 .{12}..., not .{12}..."),
        ([404], "answers 404 Not Found"),
        ([403], "answers 403 Forbidden"),
        ([503], r"answers 503 Service Unavailable \(tried 3 times\)"),
        (["page"], "has a file of 26 bytes, not of 1,000,000"),
        (["cut", "one_byte"], "has a file of SHA-256"),
    ],
    ids=str,
)
def test_a_bad_file_is_never_accepted_and_the_next_mirror_is_asked(server, target, script, said):
    server.scripts["origin"] = list(script)
    sentence = error_of(server, pinned(target), "origin")
    assert re.search(said, sentence)
    assert server.url("origin") in sentence
    assert str(target) in sentence
    server.scripts["origin"] = list(script)
    assert get(server, pinned(target), "origin", "mirror") == server.url("mirror")
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("behaviour", ["short", "long", 404])
def test_what_cannot_be_right_is_refused_at_once(server, target, behaviour):
    server.scripts["origin"] = [behaviour]
    error_of(server, pinned(target), "origin")
    assert len(server.asked) == 1
    assert not target.with_name("file.hdf5.part").exists()  # not a byte of it was read


def test_nobody_there(target):
    with FileServer(CONTENT) as server:
        url = server.url("origin")
    with pytest.raises(UserError, match=r"cannot be reached \(tried 2 times\)"):
        fetch(pinned(target), [url], patience=QUICK)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("page", "has a file of another format"), ("no_length", "does not say how long the file is")],
)
def test_of_a_file_that_nothing_is_known_of_no_page_and_no_unknown_length_is_taken(
    server, target, behaviour, said
):
    server.scripts["origin"] = [behaviour]
    assert said in error_of(server, unpinned(target), "origin")
    get(server, unpinned(target), "origin", "mirror")
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("marks", [True, False])
@pytest.mark.parametrize("known", [pinned, unpinned])
def test_a_part_of_another_version_is_not_continued(server, target, known, marks):
    server.marks = marks
    server.content = bytes(reversed(CONTENT))[: len(CONTENT)]
    server.scripts["origin"] = ["cut", 404]
    error_of(server, known(target), "origin")
    server.content, server.scripts["origin"] = CONTENT, ["good"]
    get(server, known(target), "origin")
    assert target.read_bytes() == CONTENT


def test_a_mirror_continues_where_the_hash_is_known(server, target):
    server.scripts["origin"] = ["cut", 404]
    get(server, pinned(target), "origin", "mirror")
    assert server.asked[-1][1] is not None
    assert server.sent < len(CONTENT) + download.CHUNK
    assert target.read_bytes() == CONTENT


def test_another_address_does_not_continue_what_nothing_is_known_of(server, target):
    server.scripts["origin"] = ["cut", 404]
    get(server, unpinned(target), "origin", "mirror")
    assert server.asked[-1] == ("mirror", None, None)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 5, 10])
def test_a_damaged_part_is_given_up(server, target, length):
    target.parent.mkdir()
    target.with_name("file.hdf5.part").write_bytes(b"x" * length)
    get(server, pinned(target), "origin")
    assert target.read_bytes() == CONTENT


def test_a_full_disk_is_one_sentence_and_what_has_arrived_is_kept(server, target, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > 300_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    def full(path, start):
        return Full(path, "ab" if start else "wb")

    with monkeypatch.context() as patch:
        patch.setattr(download, "open_part", full)
        sentence = error_of(server, pinned(target), "origin")
    assert sentence.startswith(
        f"no space left in {target.parent} for d4rl/x-v2 (1.0 MB): make room"
    )
    get(server, pinned(target), "origin")
    assert server.asked[-1][1] is not None
    assert target.read_bytes() == CONTENT


def test_a_disk_without_room_is_not_filled(server, target, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=999_999))
    assert "no space left" in error_of(server, pinned(target), "origin")
    assert not target.with_name("file.hdf5.part").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(server, tmp_path):
    (tmp_path / "a").write_text("a file")
    assert "cannot be written" in error_of(
        server, pinned(tmp_path / "a" / "b" / "x.hdf5"), "origin"
    )


def test_progress_is_told(server, target, capsys):
    get(server, pinned(target), "origin")
    assert capsys.readouterr().err == f"downloading d4rl/x-v2 (1.0 MB) to {target}\n"
    target.unlink()
    with Progress(console=Console(file=io.StringIO(), force_terminal=True)) as shown:
        fetch(pinned(target), [server.url("origin")], progress=shown, patience=QUICK)
        (task,) = shown.tasks
    assert (task.completed, task.total) == (len(CONTENT), len(CONTENT))


# Of many processes one downloads


def obtain(storage, barrier):
    barrier.wait()
    path = d4rl._obtain("d4rl/hopper-random-v2", Storage(storage), None, sha256=None)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("script", [["good"], ["cut", "good"]], ids=str)
def test_of_ten_processes_one_downloads(server, tmp_path, monkeypatch, script):
    server.scripts["origin"] = list(script)
    monkeypatch.setattr(d4rl, "ADDRESSES", (server.url("origin", "{file}"),))
    monkeypatch.setattr(d4rl, "SIGNATURE", CONTENT[:8])
    understood = SimpleNamespace(data=None, derived=(), notes=())
    monkeypatch.setattr(d4rl, "read_files", lambda paths: [])  # bytes that are no HDF5
    monkeypatch.setattr(d4rl, "understand", lambda columns, env, env_id: understood)
    monkeypatch.setattr(d4rl, "warnings_of", lambda dataset_id, evidence: ())
    monkeypatch.delenv("ORCHESTRATOR_DATA", raising=False)
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(10)
    processes = [context.Process(target=obtain, args=(tmp_path, barrier)) for _ in range(10)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 10
    assert len(server.asked) == len(script)
    assert server.sent < len(CONTENT) + download.CHUNK
