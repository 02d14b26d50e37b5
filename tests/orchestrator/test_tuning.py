"""What surrounds the trials of a run; the runs themselves are in tests/integration."""

import subprocess
import sys

import pytest

from algorithms.errors import UserError
from orchestrator import tuning
from orchestrator.results import ResultStore


def test_a_cell_is_trained_by_one_run_at_a_time(quickstart, expand, storage):
    cells = expand(quickstart)
    quickstart["grid"]["penalty"] = ["max_std", "combined"]
    overlapping = expand(quickstart)
    quickstart["grid"]["penalty"] = ["combined"]
    apart = expand(quickstart)
    with tuning._locked(cells, storage):
        again = tuning._locked(overlapping, storage)
        with pytest.raises(UserError, match="another run is training penalty-max_std__"), again:
            pass
        with tuning._locked(apart, storage):
            pass
    with tuning._locked(overlapping, storage):
        pass


def test_a_run_that_was_killed_holds_nothing(quickstart, expand, storage):
    (cell, _) = expand(quickstart)
    (storage / "locks").mkdir(parents=True)
    program = """
import sys, time, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""
    lock = storage / "locks" / f"{cell.cell_key}.lock"
    command = [sys.executable, "-c", program, str(lock)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another run"), tuning._locked([cell], storage):
        pass
    holder.kill()
    holder.wait()
    with tuning._locked([cell], storage):
        pass


def test_only_checkpoints_without_a_result_are_deleted(quickstart, expand, finish, storage):
    first, second = expand(quickstart)
    needed = storage / "trials" / "needed"
    finish(first, 0, checkpoint="needed")
    stale = storage / "trials" / "stale"
    finish(second, 0, checkpoint="stale")
    finish(second, 0, checkpoint="newer", epochs=9)
    tuning._prune([needed, stale], ResultStore(storage))
    assert needed.is_dir()
    assert not stale.exists()


def test_a_trials_folder_has_a_name_that_file_systems_take():
    names = {tuning._name("t" * 200, range(first, first + 300)) for first in (0, 1)}
    assert len(names) == 2
    assert all(len(name) < 255 for name in names)
    assert tuning._name("t", [0, 1]) == "t__seeds-0-1"
