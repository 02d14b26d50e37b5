"""What these tests share: a generated data set, settings that train in a moment, and Ray."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from algorithms.storage import Storage

# Token authentication is on by default: Ray would write ~/.ray/auth_token.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
for variable in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "ORCHESTRATOR_STORAGE"):
    os.environ.pop(variable, None)

DATASET = {"id": "bundled/hopper-medium-replay", "size": 2000}
ENSEMBLE = {
    "dynamics_hidden": [32, 32],
    "dynamics_weight_decay": [0.0, 0.0, 0.0],
    "dynamics_max_epochs": 2,
}
SETTINGS = {
    **ENSEMBLE,
    "epochs": 2,
    "gradient_steps_per_epoch": 20,
    "hidden": [32, 32],
    "rollout_length": 2,
    "rollout_batch_size": 200,
    "evaluation_episodes": 1,
}


@pytest.fixture(autouse=True)
def one_thread():
    """The results of matrix products depend on the number of threads; trials have one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def settings():
    """Hyperparameters that train in a moment, and learn nothing."""
    return SETTINGS


@pytest.fixture(scope="session")
def dataset():
    from algorithms.data.source import resolve

    return resolve(DATASET["id"], size=DATASET["size"])


@pytest.fixture(scope="session")
def data_folder(dataset, tmp_path_factory):
    """The generated data, made once."""
    from algorithms.data.source import load

    storage = tmp_path_factory.mktemp("generated")
    load(dataset, Storage(storage))
    return storage / "data"


@pytest.fixture(scope="session")
def data_file(dataset, data_folder):
    """The generated data as a file of D4RL's layout."""
    (path,) = data_folder.glob("*.hdf5")
    return path


@pytest.fixture(scope="module")
def new_storage(data_folder, tmp_path_factory):
    """A function that makes a storage with nothing in it but the generated data."""

    def new_storage():
        storage = tmp_path_factory.mktemp("storage")
        (storage / "data").symlink_to(data_folder)
        return storage

    return new_storage


@pytest.fixture(scope="module")
def local_ray():
    """Ray in this process's own small cluster."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def sweep_file(tmp_path_factory):
    """A function that writes a sweep: settings below `fixed`, keys of the sweep as arguments."""
    folder = tmp_path_factory.mktemp("sweeps")

    def sweep_file(name, fixed=None, **keys):
        sweep = {
            "name": name,
            "algorithm": "mopo",
            "datasets": [DATASET],
            "seeds": 2,
            "grid": {"penalty": ["none", "max_std"]},
            "fixed": {**SETTINGS, **(fixed or {})},
            "dynamics_seeds": "shared",
            **keys,
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(sweep))
        return path

    return sweep_file


class CommandLine:
    """The real command in a process of its own, with a storage and a wide terminal."""

    def __init__(self, storage):
        self.storage = storage

    def start(self, *arguments, **environment):
        """Start it in a process group of its own, as a shell would."""
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"ORCHESTRATOR_STORAGE": str(self.storage), "COLUMNS": "200"}
            | environment,
            process_group=0,
        )

    def __call__(self, *arguments, **environment):
        """Run it to its end."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=150)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="module")
def command_line():
    return CommandLine


@pytest.fixture(scope="session")
def wait_until():
    """A function that polls until a condition holds, and returns what it returned."""

    def wait_until(condition, timeout=100):
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)
        return value

    return wait_until


def _processes():
    """(pid, parent, command line) of every process."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name in brackets may hold anything; the parent is the second field after it.
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            yield int(folder.name), parent, (folder / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since


@pytest.fixture(scope="session")
def descendants():
    """A function: pid -> {pid: command line} of all processes that it started, and theirs."""

    def descendants(root):
        processes = list(_processes())
        family = {root}
        while more := {pid for pid, parent, _ in processes if parent in family} - family:
            family |= more
        return {pid: command for pid, _, command in processes if pid in family - {root}}

    return descendants


@pytest.fixture(scope="session")
def ray_workers(descendants):
    """A function: title -> pids of the workers of this process's Ray that have such a title."""

    def ray_workers(title):
        found = descendants(os.getpid()).items()
        return {pid for pid, command in found if command.startswith(f"ray::{title}")}

    return ray_workers


@pytest.fixture(scope="session")
def end(wait_until):
    """A function that kills processes, given as {pid: command line}, and waits for their end."""

    def end(processes):
        def alive():
            return {
                pid
                for pid, _, command in _processes()
                if pid in processes and command == processes[pid]
            }

        for pid in alive():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive())

    return end
