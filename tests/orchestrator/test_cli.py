import json
import os
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.request
from pathlib import Path

import pytest
import yaml

from algorithms.data import d4rl
from algorithms.data.download import Patience
from algorithms.storage import Storage
from orchestrator import __version__, cli
from orchestrator.sweep.cell import cells_of


@pytest.fixture
def orchestrator(storage):
    """Run the command line in a process of its own."""

    def orchestrator(*arguments):
        command = [sys.executable, "-m", "orchestrator", *map(str, arguments)]
        environment = os.environ | {"ORCHESTRATOR_STORAGE": str(storage)}
        environment.pop("MLFLOW_TRACKING_URI", None)
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return orchestrator


@pytest.fixture
def sweep_file(tmp_path, quickstart):
    path = tmp_path / "quickstart.yaml"
    path.write_text(yaml.safe_dump(quickstart))
    return path


@pytest.fixture
def in_process(storage, monkeypatch):
    """Run the command line in this process."""
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", str(storage))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return lambda *arguments: cli.main(list(map(str, arguments)))


@pytest.fixture
def training(monkeypatch):
    """Stand in for the training; `calls` lists the plans that it was asked to carry out."""
    stand_in = types.SimpleNamespace(calls=[], failed=[])

    def train(plan, deployment, console):
        stand_in.calls.append((plan, deployment))
        if isinstance(stand_in.failed, BaseException):
            raise stand_in.failed
        return stand_in.failed

    monkeypatch.setattr("orchestrator.run._train", train)
    return stand_in


def test_plan_shows_trials_and_ensembles_and_leaves_nothing_behind(
    orchestrator, sweep_file, storage
):
    shown = orchestrator("plan", sweep_file)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "penalty=max_std" in shown.stdout
    assert "to run: 4 seeds in 2 cells" in shown.stdout
    told = json.loads(orchestrator("plan", sweep_file, "--json").stdout)
    assert (len(told["cells"]), len(told["ensembles"])) == (2, 1)
    assert not storage.exists()


MISTAKES = {
    "unknown command": (["pln"], "pln"),
    "no file": (["plan"], "FILE"),
    "unknown option": (["plan", "x.yaml", "--jsn"], "--jsn"),
    "missing file": (["run", "missing.yaml"], "no such file: missing.yaml"),
    "bad sweep": (["run", "{bad}"], "seeds: must be"),
    "bad sweep, reported": (["report", "{bad}"], "seeds: must be"),
    "storage is a file": (["run", "{good}", "--storage", "{good}"], "is not a folder"),
    "seed is no number": (["export", "x", "--seed", "a"], "--seed"),
    "no seed": (["export", "x"], "--seed"),
    "unknown data set": (["data", "show", "bundled/x"], "bundled/hopper-medium"),
    "unknown check": (["data", "show", "file:{good}", "--allow", "x"], "one of action_range"),
    "no way to take actions": (["data", "show", "x", "--actions", "cut"], "one of clip, rescale"),
    "no size": (["data", "show", "bundled/hopper-medium", "--size", "-5"], "1,000 to 1,000,000"),
    "no kind of file": (["data", "show", "file:{good}"], "names end in .hdf5"),
    "no place to convert to": (["data", "convert", "bundled/x", "x.csv"], "ends in .hdf5"),
    "nothing recorded": (["ui"], "run a sweep first"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_and_starts_nothing(
    orchestrator, sweep_file, quickstart, tmp_path, storage, mistake
):
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(quickstart | {"seeds": 0}))
    before = sorted(tmp_path.iterdir())
    arguments, word = MISTAKES[mistake]
    done = orchestrator(*(a.format(bad=bad, good=sweep_file) for a in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert word in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_alone_prints_help(orchestrator):
    done = orchestrator()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == orchestrator("--help").stdout


def test_options_of_the_root_are_those_of_the_command(orchestrator, sweep_file):
    before = orchestrator("--storage", sweep_file, "plan", sweep_file)
    after = orchestrator("plan", sweep_file, "--storage", sweep_file)
    assert before.returncode == after.returncode == 2
    assert before.stderr == after.stderr
    assert "is not a folder" in before.stderr


def test_whoever_reads_a_part_of_a_plan_is_told_nothing_else(storage):
    """`orchestrator plan --json | head -1`."""
    command = f"{sys.executable} -m orchestrator plan sweeps/combo_variants_small.yaml --json"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -1"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"ORCHESTRATOR_STORAGE": str(storage)},
    )
    assert (done.stdout, done.stderr) == ("{\n", "")


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help(orchestrator, option):
    done = orchestrator(option)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{__version__}\n" if option == "--version" else "Usage" in done.stdout


def test_run_trains_then_prints_the_table_and_the_way_to_the_dashboard(
    in_process, sweep_file, storage, training, capsys
):
    assert in_process("run", sweep_file) == 0
    ((plan, deployment),) = training.calls
    assert (plan.sweep.name, len(plan.jobs)) == ("quickstart", 2)
    assert deployment.storage == Storage(storage)
    text = capsys.readouterr().out
    assert "normalised" in text
    assert f"orchestrator ui --storage {storage}" in text


def test_a_second_run_trains_nothing_and_says_so(
    in_process, sweep_file, load, quickstart, finish, training, capsys
):
    for cell in cells_of(load(quickstart)):
        finish(cell, 0)
        finish(cell, 1, position=1)
    assert in_process("run", sweep_file) == 0
    assert training.calls == []
    text = capsys.readouterr().out
    assert "nothing to run" in text
    assert "10.0 +- 0.0" in text


def test_data_that_is_missing_is_told_before_anything_starts(
    in_process, sweep_file, quickstart, storage, training, capsys, monkeypatch
):
    monkeypatch.setenv("ORCHESTRATOR_OFFLINE", "1")
    quickstart["datasets"] = ["d4rl/hopper-medium-v2", "d4rl/walker2d-medium-v2"]
    sweep_file.write_text(yaml.safe_dump(quickstart))
    assert in_process("plan", sweep_file) == 0
    assert "hopper_medium-v2.hdf5" in capsys.readouterr().out
    assert in_process("run", sweep_file) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    for word in ("hopper_medium-v2.hdf5", "walker2d_medium-v2.hdf5", str(storage / "data")):
        assert word in told.err
    assert training.calls == []
    assert not storage.exists()


def test_a_download_that_fails_is_told_before_anything_trains(
    in_process, sweep_file, quickstart, monkeypatch, capsys
):
    monkeypatch.setattr(d4rl, "ADDRESSES", ("http://127.0.0.1:9/{file}",))  # nobody listens
    monkeypatch.setattr(d4rl, "PATIENCE", Patience(tries=1, unanswered=1))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(sweep_file.parent))
    monkeypatch.delattr(sys.modules["orchestrator"], "tune", raising=False)
    monkeypatch.setitem(sys.modules, "orchestrator.tune", None)  # a training cannot even begin
    quickstart["datasets"] = ["hopper-medium-v2"]
    sweep_file.write_text(yaml.safe_dump(quickstart))
    assert in_process("run", sweep_file) == 2
    told = capsys.readouterr()
    assert "1 data set to download (152.8 MB)" in " ".join(told.out.split())
    (sentence,) = [line for line in told.err.splitlines() if line.startswith("error: ")]
    assert "d4rl/hopper-medium-v2 could not be downloaded (http://127.0.0.1:9/" in sentence


def test_a_failed_training_decides_the_exit_code_after_the_table(
    in_process, sweep_file, training, capsys
):
    training.failed = ["max_std: no luck"]
    assert in_process("run", sweep_file) == 1
    shown = capsys.readouterr().out
    assert "0 of 2 seeds" in shown
    assert "failed: max_std: no luck" in shown


def test_an_interrupted_training_says_how_to_continue(in_process, sweep_file, training, capsys):
    training.failed = KeyboardInterrupt()
    assert in_process("run", sweep_file) == 130
    error = capsys.readouterr().err
    assert "the same command continues" in error
    assert error.count("\n") == 1


def test_report_prints_what_is_there(in_process, sweep_file, storage, capsys):
    assert in_process("report", sweep_file) == 0
    assert "0 of 2 seeds" in capsys.readouterr().out
    assert not storage.exists()


def test_export_says_what_it_wrote_and_how_to_use_it(
    in_process, quickstart, expand, finish, storage, monkeypatch, tmp_path, capsys
):
    asked = []
    result = finish(expand(quickstart)[0], 1, run_score=12.34)

    def export_policy(*arguments):
        asked.append(arguments)
        return tmp_path / "policy.pt2", result

    monkeypatch.setattr("orchestrator.export.export_policy", export_policy)
    assert in_process("export", "penalty-none__x", "--seed", 1) == 0
    assert asked == [("penalty-none__x", 1, None, Storage(storage))]
    usage = capsys.readouterr().out.splitlines()
    assert usage[0] == f"wrote {tmp_path / 'policy.pt2'}: 5 epochs, score 12.3; to use it:"
    assert len(usage) == 4


def test_ui_prints_the_address_of_a_remote_server(in_process, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    assert in_process("ui") == 0
    assert "http://mlflow.example:5000" in capsys.readouterr().out


def test_ui_refuses_a_port_that_is_taken(in_process, storage, capsys):
    storage.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert in_process("ui", "--port", taken.getsockname()[1]) == 2
    assert "--port" in capsys.readouterr().err


@pytest.fixture
def served(storage):
    """Run `orchestrator ui` on a free port until it answers, then stop it with a signal."""

    def served(stop, answers, **environment):
        storage.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "orchestrator", "ui", "--port", str(port)]
        environment = os.environ | {"ORCHESTRATOR_STORAGE": str(storage)} | environment
        environment.pop("MLFLOW_TRACKING_URI", None)
        server = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            _wait(lambda: answers(port))
        finally:
            server.send_signal(stop)
            code = server.wait(timeout=30)
        with socket.create_server(("127.0.0.1", port)):
            pass  # nobody listens any more
        return code

    return served


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_ui_stops_the_workers_of_the_server_too(served, tmp_path, stop):
    package = tmp_path / "stand-in" / "mlflow"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    # Like MLflow's: a parent that starts a worker and does not stop it when it is stopped.
    (package / "__main__.py").write_text(
        "import subprocess, sys\n"
        "port = sys.argv[sys.argv.index('--port') + 1]\n"
        "assert sys.argv[sys.argv.index('--backend-store-uri') + 1].startswith('sqlite:////')\n"
        "subprocess.run([sys.executable, '-m', 'http.server', '--bind', '127.0.0.1', port])\n"
    )
    code = served(stop, lambda port: _get(port, "/"), PYTHONPATH=str(package.parent))
    assert code == 0


@pytest.mark.slow
def test_ui_serves_the_embedded_store(served):
    assert served(signal.SIGINT, lambda port: _get(port, "/health") == b"OK") == 0


def _get(port, path):
    return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}").read()


def _wait(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.2)
