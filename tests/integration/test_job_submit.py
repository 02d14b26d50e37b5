"""A sweep handed to a running cluster with `ray job submit`."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from algorithms.storage import Storage
from orchestrator.results import ResultStore
from orchestrator.sweep.cell import cells_of
from orchestrator.sweep.model import load_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for opened in sockets:
        opened.bind(("127.0.0.1", 0))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


@pytest.fixture(scope="module")
def environment():
    """That of a shell in which this project's virtual environment is active."""
    return os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def head(environment, descendants, end, wait_until):
    """The address of the dashboard of a cluster on this machine."""
    port, dashboard, client, agent, metrics = free_ports(5)
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a socket's path must be short
    process = subprocess.Popen(
        [
            *(BIN / "ray", "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={folder}"),
            *("--include-dashboard=true", "--disable-usage-stats", f"--port={port}"),
            *(f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
            *(f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{dashboard}"

    def answers():
        assert process.poll() is None, "ray start ended"
        try:
            return urllib.request.urlopen(f"{address}/api/version", timeout=1)
        except (urllib.error.URLError, TimeoutError):
            return None

    try:
        wait_until(answers)
        yield address
    finally:
        family = descendants(process.pid)
        process.kill()
        process.wait()
        end(family)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def submit(head, environment):
    """A function: working directory, command -> the finished `ray job submit`."""

    def submit(folder, *command):
        return subprocess.run(
            [
                *(BIN / "ray", "job", "submit", "--address", head, "--working-dir", folder, "--"),
                *command,
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )

    return submit


def test_a_submitted_sweep_leaves_its_results_in_the_storage(submit, new_storage, sweep_file):
    storage = new_storage()
    file = sweep_file("submitted", seeds=1, grid={"penalty": ["max_std"]})
    submitted = submit(REPOSITORY, "orchestrator", "run", file, "--storage", storage)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "penalty=max_std" in submitted.stdout
    (trial,) = cells_of(load_sweep(file))
    assert ResultStore(Storage(storage)).get(trial.result_key(0)).epochs == 2


def test_a_plugin_travels_with_its_sweep_in_the_working_directory(
    submit, new_storage, sweep_file, tmp_path, no_plugins
):
    storage = new_storage()
    file = sweep_file("idea", seeds=1, grid={"penalty": ["mine"]}, plugins=["ideas/mine.py"])
    (tmp_path / "ideas").mkdir()
    (tmp_path / "ideas" / "mine.py").write_text(
        "from algorithms.plugins import penalty\n\n"
        '@penalty("mine", label="Mine")\n'
        "def mine(p):\n"
        "    return p.std.norm(dim=-1).amax(dim=-2)\n"
    )
    shutil.copy(file, tmp_path / "sweep.yaml")
    submitted = submit(tmp_path, "orchestrator", "run", "sweep.yaml", "--storage", storage)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "penalty=mine" in submitted.stdout
    (cell,) = cells_of(load_sweep(tmp_path / "sweep.yaml"))
    assert {origin.plugin for origin in cell.origins} == {"ideas/mine.py"}
    assert ResultStore(Storage(storage)).get(cell.result_key(0)).epochs == 2
