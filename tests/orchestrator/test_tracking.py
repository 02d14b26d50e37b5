"""Tracking, against a real MLflow server over HTTP."""

import logging
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import uuid
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException

from orchestrator import tracking
from orchestrator.tracking import CELL, ENSEMBLE, MLflowCallback, Ref, Tracker, job_of

DIGEST = "d1" * 32
DATASET = {"id": "bundled/hopper-medium", "digest": DIGEST, "env_id": "Hopper-v4"}


class MLflowServer:
    """`mlflow server` on 127.0.0.1, its sqlite store in `folder`; can be killed and restarted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        # Job execution costs a second server's worth of memory (2.35 GB against 0.49 GB).
        environment = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        while not self._healthy():
            if self.process.poll() is not None:
                raise RuntimeError((self.folder / "server.log").read_text())
            time.sleep(0.1)

    def kill(self) -> None:
        """End the server and its worker, which share a session of their own."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Let the server hang: connections are accepted and never answered."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory):
    """The server that these tests share: each uses its own sweep name."""
    server = MLflowServer(tmp_path_factory.mktemp("mlflow"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def own_mlflow_server(tmp_path, mlflow_server):
    """A server to lose; not started yet. A copy of the store saves making its tables."""
    with (
        closing(sqlite3.connect(mlflow_server.folder / "mlflow.db")) as source,
        closing(sqlite3.connect(tmp_path / "mlflow.db")) as copy,
    ):
        source.backup(copy)
    server = MLflowServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def sweep():
    return f"sweep-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def client(mlflow_server):
    return MlflowClient(mlflow_server.uri)


def a_job(**changes):
    return {
        "name": "penalty-max_std__hopper-medium",
        "run_name": "max_std, hopper-medium",
        "cell_key": "c0ffee",
        "params": {"penalty": "max_std", "penalty_coef": 2.5, "epochs": 5, "hidden": (256, 256)},
        "dataset": DATASET,
        "seeds": [0, 1],
        "ensemble_keys": [],
        "tags": {"orchestrator.variant": "penalty=max_std"},
        **changes,
    }


def an_epoch(epoch, *seeds, **metrics):
    """A trial's result in which seed k's score is 10 epoch + k."""
    scores = {seed: 10.0 * epoch + seed for seed in seeds or (0, 1)}
    return {
        "training_iteration": epoch,
        "minutes": 0.5 * epoch,
        "mean": {"run_score": sum(scores.values()) / len(scores), **metrics},
        "seed": {str(seed): {"run_score": score} for seed, score in scores.items()},
    }


def a_trial(job, trial_id="t1"):
    config = {"job": {"record": job}}
    return SimpleNamespace(trial_id=trial_id, config=config, last_result=None)


def runs_of(client, experiment):
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id]) if found else []


def the_run(client, experiment, tag):
    (run,) = [run for run in runs_of(client, experiment) if tag in run.data.tags]
    return run


def curve(client, run, metric):
    history = client.get_metric_history(run.info.run_id, metric)
    return [(point.step, point.value) for point in history]


def warnings_of(caplog):
    return [
        entry.getMessage() for entry in caplog.records if entry.name == tracking.tracker.__name__
    ]


def record_ensemble(tracker, key, **changes):
    tracker.log_ensemble(
        key,
        **{
            "name": f"hopper-medium, seed 0 ({key})",
            "params": {"num_ensemble": 7},
            "dataset": DATASET,
            "seed": 0,
            "path": "/storage/ensembles/key",
            "metrics": {"holdout_mse": 0.25, "within_1_std": 0.7},
            "history": [{"holdout_mse": 0.5}, {"holdout_mse": 0.25}],
            **changes,
        },
    )


def test_a_sweep_is_a_parent_whose_children_are_its_trials(mlflow_server, client, sweep, caplog):
    with Tracker(
        mlflow_server.uri, sweep, question="Does it help?", params={"algorithm": "mopo"}
    ) as tracker:
        tracker.start_trial(a_job())
        tracker.end_trial("c0ffee")
        tracker.log_score("penalty-max_std__hopper-medium", 42.0, epochs=5)
        tracker.log_table("| variant | score |", "table.md")

    parent = the_run(client, sweep, tracking.SWEEP)
    assert parent.info.run_name == sweep
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"algorithm": "mopo"}
    assert parent.data.tags["mlflow.note.content"] == "Does it help?"
    assert parent.data.tags["orchestrator.sweep"] == sweep
    assert parent.data.metrics == {"run_score/penalty-max_std__hopper-medium": 42.0}
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["table.md"]

    child = the_run(client, sweep, CELL)
    assert child.info.run_name == "max_std, hopper-medium"
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["orchestrator.variant"] == "penalty=max_std"
    assert child.data.params == {
        "penalty": "max_std",
        "penalty_coef": "2.5",
        "epochs": "5",
        "hidden": "(256, 256)",
    }
    assert warnings_of(caplog) == []


def test_metrics_are_means_under_plain_names_and_seeds_under_theirs(mlflow_server, client, sweep):
    with Tracker(mlflow_server.uri, sweep) as tracker:
        tracker.start_trial(a_job())
        for epoch in (1, 2, 3):
            tracker.log_result("c0ffee", an_epoch(epoch))
    run = the_run(client, sweep, CELL)
    assert curve(client, run, "run_score") == [(1, 10.5), (2, 20.5), (3, 30.5)]
    assert curve(client, run, "seed_0/run_score") == [(1, 10.0), (2, 20.0), (3, 30.0)]
    assert curve(client, run, "seed_1/run_score") == [(1, 11.0), (2, 21.0), (3, 31.0)]
    assert curve(client, run, "minutes") == [(1, 0.5), (2, 1.0), (3, 1.5)]


def test_the_data_set_is_an_input_with_its_digest(mlflow_server, client, sweep):
    with Tracker(mlflow_server.uri, sweep) as tracker:
        tracker.start_trial(a_job())
    run = the_run(client, sweep, CELL)
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "bundled/hopper-medium"
    assert dataset.dataset.digest == DIGEST[:36]
    assert run.data.tags["dataset"] == "bundled/hopper-medium"
    assert run.data.tags["dataset_digest"] == DIGEST


def test_every_run_says_who_made_it_with_which_commit(mlflow_server, client, sweep, monkeypatch):
    monkeypatch.setattr(
        tracking.tracker,
        "source_tags",
        lambda: {"mlflow.user": "ada", "mlflow.source.git.commit": "abc123"},
    )
    key = uuid.uuid4().hex
    with Tracker(mlflow_server.uri, sweep) as tracker:
        tracker.start_trial(a_job())
        record_ensemble(tracker, key)
    ensembles = [run for run in runs_of(client, "ensembles") if run.data.tags[ENSEMBLE] == key]
    for run in runs_of(client, sweep) + ensembles:
        assert run.data.tags["mlflow.user"] == "ada"
        assert run.data.tags["mlflow.source.git.commit"] == "abc123"


def test_source_tags_name_the_commit_of_this_checkout():
    commit = tracking.tracker.source_tags().get("mlflow.source.git.commit")
    if commit is None:
        pytest.skip("not in a git checkout")
    assert len(commit) == 40


def test_an_ensemble_is_a_run_of_its_own_that_trials_link_to(mlflow_server, client, sweep):
    key = uuid.uuid4().hex
    with Tracker(mlflow_server.uri, sweep) as tracker:
        record_ensemble(tracker, key)
        tracker.start_trial(a_job(ensemble_keys=[key]))
    (run,) = [run for run in runs_of(client, "ensembles") if run.data.tags[ENSEMBLE] == key]
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "num_ensemble": "7",
        "seed": "0",
        "dataset": "bundled/hopper-medium",
    }
    assert run.data.tags["orchestrator.path"] == "/storage/ensembles/key"
    assert run.data.metrics == {"holdout_mse": 0.25, "within_1_std": 0.7}
    assert (1, 0.5) in curve(client, run, "holdout_mse")
    child = the_run(client, sweep, CELL)
    assert child.data.tags["orchestrator.ensemble_runs"] == run.info.run_id


def test_another_sweep_finds_a_recorded_ensemble_and_leaves_it_alone(
    mlflow_server, client, sweep, caplog
):
    key = uuid.uuid4().hex
    with Tracker(mlflow_server.uri, sweep) as tracker:
        record_ensemble(tracker, key)
    (before,) = [run for run in runs_of(client, "ensembles") if run.data.tags[ENSEMBLE] == key]
    with Tracker(mlflow_server.uri, f"{sweep}-2") as tracker:
        record_ensemble(tracker, key, path="/elsewhere")
        tracker.start_trial(a_job(ensemble_keys=[key]))
    with Tracker(mlflow_server.uri, f"{sweep}-3") as tracker:  # does not even mention it first
        tracker.start_trial(a_job(ensemble_keys=[key]))
    (after,) = [run for run in runs_of(client, "ensembles") if run.data.tags[ENSEMBLE] == key]
    assert after.to_dictionary() == before.to_dictionary()
    for other in (f"{sweep}-2", f"{sweep}-3"):
        link = the_run(client, other, CELL).data.tags["orchestrator.ensemble_runs"]
        assert link == before.info.run_id
    assert warnings_of(caplog) == []


PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


def the_ensemble(client, key):
    (run,) = [run for run in runs_of(client, "ensembles") if run.data.tags[ENSEMBLE] == key]
    return run


def the_files(client, run, folder):
    """Name -> content of the files that MLflow keeps with a run."""
    names = [file.path for file in client.list_artifacts(run.info.run_id)]
    return {
        name: Path(client.download_artifacts(run.info.run_id, name, str(folder))).read_bytes()
        for name in names
    }


def test_an_ensembles_picture_is_kept_with_its_run_once(
    mlflow_server, client, sweep, tmp_path, caplog
):
    key, picture = uuid.uuid4().hex, tmp_path / "penalties.png"
    picture.write_bytes(PNG)
    with Tracker(mlflow_server.uri, sweep) as tracker:
        record_ensemble(tracker, key, files=[picture])
    picture.write_bytes(b"another")
    with Tracker(mlflow_server.uri, f"{sweep}-2") as tracker:
        record_ensemble(tracker, key, files=[picture])
    run = the_ensemble(client, key)
    assert run.info.status == "FINISHED"
    assert the_files(client, run, tmp_path) == {"penalties.png": PNG}
    assert warnings_of(caplog) == []


def test_a_picture_that_is_gone_costs_nothing_else(mlflow_server, client, sweep, tmp_path, caplog):
    key = uuid.uuid4().hex
    with Tracker(mlflow_server.uri, sweep) as tracker:
        record_ensemble(tracker, key, files=[tmp_path / "penalties.png"])
    run = the_ensemble(client, key)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["holdout_mse"] == 0.25
    (warning,) = warnings_of(caplog)
    assert warning.startswith("MLflow refused 1 entries (last error: ")
    assert "penalties.png is gone" in warning


def test_a_rerun_continues_the_same_runs(mlflow_server, client, sweep, caplog):
    with Tracker(mlflow_server.uri, sweep) as tracker:
        tracker.start_trial(a_job())
        tracker.log_result("c0ffee", an_epoch(1))
        tracker.end_trial("c0ffee", "FAILED")
    first = {run.info.run_id: run for run in runs_of(client, sweep)}

    with Tracker(mlflow_server.uri, sweep) as tracker:
        tracker.start_trial(a_job(params={**a_job()["params"], "epochs": 10}))
        wait_for(lambda: tracker.run_id("c0ffee"))
        assert client.get_run(tracker.run_id("c0ffee")).info.status == "RUNNING"
        tracker.log_result("c0ffee", an_epoch(2))
        tracker.end_trial("c0ffee")

    second = {run.info.run_id: run for run in runs_of(client, sweep)}
    assert second.keys() == first.keys()
    child = the_run(client, sweep, CELL)
    assert child.info.status == "FINISHED"
    assert curve(client, child, "run_score") == [(1, 10.5), (2, 20.5)]
    # MLflow keeps a parameter's first value for ever: the newest is a tag.
    assert child.data.params["epochs"] == "5"
    assert child.data.tags["orchestrator.changed.epochs"] == "10"
    assert "orchestrator.changed.penalty" not in child.data.tags
    assert len(child.inputs.dataset_inputs) == 1
    assert warnings_of(caplog) == []


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_a_run_id_is_unknown_until_mlflow_has_told_it(mlflow_server, client, sweep):
    tracker = Tracker(mlflow_server.uri, sweep)
    assert tracker.run_id("c0ffee") is None
    tracker.start_trial(a_job())
    wait_for(lambda: tracker.run_id("c0ffee"))
    assert client.get_run(tracker.run_id("c0ffee")).data.tags[CELL] == "c0ffee"
    tracker.close()


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_sweep_that_breaks_off_says_so(mlflow_server, client, sweep, error, status):
    with pytest.raises(error), Tracker(mlflow_server.uri, sweep) as tracker:  # noqa: PT012
        tracker.start_trial(a_job())
        raise error
    assert the_run(client, sweep, tracking.SWEEP).info.status == status
    assert the_run(client, sweep, CELL).info.status == "KILLED"


def test_a_sweep_deleted_in_the_dashboard_can_run_again(mlflow_server, client, sweep):
    for _ in range(2):
        with Tracker(mlflow_server.uri, sweep) as tracker:
            tracker.start_trial(a_job())
        experiment = client.get_experiment_by_name(sweep)
        assert experiment.lifecycle_stage == "active"
        client.delete_experiment(experiment.experiment_id)


def test_numbers_that_are_not_finite_are_recorded(mlflow_server, client, sweep, caplog):
    with Tracker(mlflow_server.uri, sweep) as tracker:
        tracker.start_trial(a_job())
        result = an_epoch(1, critic_loss=math.nan, q_data=math.inf, note="text", nothing=None)
        tracker.log_result("c0ffee", result)
    metrics = the_run(client, sweep, CELL).data.metrics
    assert math.isnan(metrics["critic_loss"])
    assert metrics["q_data"] > 1e300  # MLflow stores the largest double for an infinity
    assert metrics["seed_1/run_score"] == 11.0
    assert "note" not in metrics
    assert "nothing" not in metrics
    assert warnings_of(caplog) == []


def test_what_mlflow_refuses_costs_nothing_else(mlflow_server, client, sweep, caplog):
    with Tracker(mlflow_server.uri, sweep) as tracker:
        tracker.start_trial(a_job(params={"good": 1, "bad?": 1}))
        tracker.log_result("c0ffee", an_epoch(1, **{"bad?key": 1.0}))
        tracker.log_result("c0ffee", an_epoch(2))
        tracker.end_trial("c0ffee")
    run = the_run(client, sweep, CELL)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"good": "1"}
    assert curve(client, run, "run_score") == [(1, 10.5), (2, 20.5)]
    assert curve(client, run, "seed_1/run_score") == [(1, 11.0), (2, 21.0)]
    (warning,) = warnings_of(caplog)
    assert warning.startswith("MLflow refused 2 entries (last error: ")


def test_an_entry_that_only_this_side_chokes_on_is_given_up(
    mlflow_server, client, sweep, monkeypatch, caplog
):
    monkeypatch.setattr(tracking.writer, "STRIKES", 2)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(MlflowClient, "log_text", full)
    tracker = Tracker(mlflow_server.uri, sweep)
    tracker.log_table("text")
    tracker.log_score("a", 1.0, epochs=1)
    wait_for(lambda: the_scores(client, sweep) == {"run_score/a": 1.0})
    tracker.close()
    (warning,) = warnings_of(caplog)
    assert "No space left on device" in warning


def the_scores(client, sweep):
    runs = runs_of(client, sweep)
    return runs[0].data.metrics if runs else {}


def test_more_entries_than_a_request_takes(mlflow_server, client, sweep, caplog):
    with Tracker(mlflow_server.uri, sweep) as tracker:
        tracker.start_trial(a_job(params={f"p{i}": i for i in range(250)}))
        tracker.log_result("c0ffee", an_epoch(1, **{f"m{i}": i for i in range(2500)}))
    run = the_run(client, sweep, CELL)
    assert len(run.data.params) == 250
    assert run.data.metrics["m2499"] == 2499.0
    assert warnings_of(caplog) == []


@pytest.fixture
def requests_sent(monkeypatch):
    sent = []
    send = requests.Session.send

    def counted(session, request, **options):
        sent.append(request.path_url)
        return send(session, request, **options)

    monkeypatch.setattr(requests.Session, "send", counted)
    return sent


def test_a_trial_costs_few_requests(mlflow_server, sweep, requests_sent):
    """Ray's own callback sends 335 to start a trial and 227 for each of its results."""
    tracker = Tracker(mlflow_server.uri, sweep)
    tracker.start_trial(a_job(cell_key="first"))
    wait_for(lambda: tracker.run_id("first"))
    time.sleep(2 * tracking.writer.GATHER_SECONDS)
    requests_sent.clear()
    tracker.start_trial(a_job())
    tracker.log_result("c0ffee", an_epoch(1))
    tracker.close()
    # Find, create, its description with the first result, data set; end of two trials and sweep.
    assert len(requests_sent) <= 4 + 1 + 3


# Outages


@pytest.mark.slow
@pytest.mark.parametrize("lose", ["kill", "freeze"])
def test_a_server_lost_half_way_costs_no_exception_and_little_time(
    own_mlflow_server, sweep, caplog, lose
):
    own_mlflow_server.start()
    tracker = Tracker(own_mlflow_server.uri, sweep)
    tracker.start_trial(a_job())
    wait_for(lambda: tracker.run_id("c0ffee"))
    getattr(own_mlflow_server, lose)()
    for epoch in range(1, 4):
        tracker.log_result("c0ffee", an_epoch(epoch))
    tracker.end_trial("c0ffee")
    started = time.monotonic()
    tracker.close()
    assert time.monotonic() - started < 10  # the promise, not a benchmark
    (warning,) = warnings_of(caplog)
    assert warning.startswith("MLflow was away: 12 metrics not written, 2 runs not ended (")


@pytest.mark.slow
def test_what_waited_for_the_server_arrives_in_order(own_mlflow_server, sweep, monkeypatch, caplog):
    monkeypatch.setattr(tracking.writer, "MAX_BACKOFF_SECONDS", 0.5)
    own_mlflow_server.start()
    tracker = Tracker(own_mlflow_server.uri, sweep)
    tracker.start_trial(a_job())
    wait_for(lambda: tracker.run_id("c0ffee"))
    own_mlflow_server.kill()
    for epoch in range(1, 21):
        tracker.log_result("c0ffee", an_epoch(epoch))
    tracker.start_trial(a_job(cell_key="later"))
    time.sleep(2)  # long enough for attempts to fail
    own_mlflow_server.start()
    client = MlflowClient(own_mlflow_server.uri)
    wait_for(lambda: tracker.run_id("later"))
    tracker.end_trial("c0ffee")
    tracker.close()
    run = client.get_run(the_cells(client, sweep)["c0ffee"])
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "run_score")
    assert [point.step for point in points] == list(range(1, 21))
    assert [point.timestamp for point in points] == sorted(point.timestamp for point in points)
    assert warnings_of(caplog) == []


@pytest.mark.slow
def test_a_picture_waits_for_the_server(own_mlflow_server, sweep, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(tracking.writer, "MAX_BACKOFF_SECONDS", 0.5)
    own_mlflow_server.start()
    picture = tmp_path / "penalties.png"
    picture.write_bytes(PNG)
    tracker = Tracker(own_mlflow_server.uri, sweep)
    tracker.start_trial(a_job())
    wait_for(lambda: tracker.run_id("c0ffee"))
    own_mlflow_server.kill()
    record_ensemble(tracker, "waits", files=[picture])
    time.sleep(2)  # long enough for attempts to fail
    own_mlflow_server.start()
    tracker.start_trial(a_job(cell_key="later"))
    wait_for(lambda: tracker.run_id("later"))
    tracker.close()
    client = MlflowClient(own_mlflow_server.uri)
    files = the_files(client, the_ensemble(client, "waits"), tmp_path)
    assert files == {"penalties.png": PNG}
    assert warnings_of(caplog) == []


def the_cells(client, sweep):
    runs = runs_of(client, sweep)
    return {run.data.tags[CELL]: run.info.run_id for run in runs if CELL in run.data.tags}


def test_a_server_that_was_never_there_costs_no_exception(own_mlflow_server, sweep, caplog):
    with Tracker(own_mlflow_server.uri, sweep) as tracker:
        tracker.start_trial(a_job())
        tracker.log_result("c0ffee", an_epoch(1))
    (warning,) = warnings_of(caplog)
    assert warning.startswith("MLflow was away: 4 metrics not written, 2 runs not ended (")


def test_a_long_outage_gives_up_the_oldest_metrics_only(own_mlflow_server, sweep, monkeypatch):
    monkeypatch.setattr(tracking.writer, "MAX_WAITING", 10)
    writer = tracking.writer.Writer(own_mlflow_server.uri, None)
    writer.close(timeout=5)
    ref = Ref(CELL, "c0ffee")
    writer._receive(ref, [Param("a", "1"), *tracking.tracker._metrics({"run_score": 1.0}, 1)])
    for epoch in range(2, 30):
        writer._receive(ref, tracking.tracker._metrics({"run_score": 1.0}, epoch))
    writer._receive(ref, [RunTag("b", "2")])
    writer._drop_oldest()
    first, *kept, last = writer._waiting[ref]
    assert (first.key, last.key) == ("a", "b")
    assert [metric.step for metric in kept] == list(range(22, 30))


def test_a_users_own_http_settings_stand(own_mlflow_server, sweep, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    Tracker(own_mlflow_server.uri, sweep).start()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


@pytest.mark.slow
def test_the_embedded_store_keeps_files_where_it_is_told(tmp_path, sweep):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = Tracker(uri, sweep, artifact_root=str(tmp_path / "mlartifacts"))
    tracker.log_table("the table")
    tracker.close(timeout=60)
    (file,) = (tmp_path / "mlartifacts").rglob("table.md")
    assert file.read_text() == "the table"
    assert the_run(MlflowClient(uri), sweep, tracking.SWEEP).info.status == "FINISHED"


# Tune


def test_the_callback_maps_a_tune_trial_to_its_run(mlflow_server, client, sweep):
    tracker = Tracker(mlflow_server.uri, sweep)
    callback = MLflowCallback(tracker)
    trial = a_trial(a_job())
    callback.setup()
    callback.on_trial_start(0, [trial], trial)
    callback.on_trial_result(1, [trial], trial, an_epoch(1))
    trial.last_result = an_epoch(2)
    callback.on_trial_result(2, [trial], trial, trial.last_result)
    callback.on_trial_complete(2, [trial], trial)
    callback.on_experiment_end([trial])
    tracker.close()
    child = the_run(client, sweep, CELL)
    assert child.info.status == "FINISHED"
    assert curve(client, child, "run_score") == [(1, 10.5), (2, 20.5)]
    assert child.data.tags["orchestrator.mean_over_seeds"] == "0,1"
    parent = the_run(client, sweep, tracking.SWEEP)
    assert parent.data.metrics == {"run_score/penalty-max_std__hopper-medium": 20.5}


def test_a_failed_trial_and_an_interrupted_one(mlflow_server, client, sweep):
    tracker = Tracker(mlflow_server.uri, sweep)
    callback = MLflowCallback(tracker)
    failed = a_trial(a_job(cell_key="failed"), "t1")
    interrupted = a_trial(a_job(cell_key="interrupted"), "t2")
    for trial in (failed, interrupted):
        callback.on_trial_start(0, [], trial)
    callback.on_trial_error(1, [], failed)
    callback.on_experiment_end([])
    tracker.close()
    states = {run.data.tags.get(CELL): run.info.status for run in runs_of(client, sweep)}
    assert states == {None: "FAILED", "failed": "FAILED", "interrupted": "KILLED"}


def test_trials_of_one_cell_share_its_run_until_the_last_ends(mlflow_server, client, sweep):
    """After `seeds: 2 -> 3`: two seeds continue together, the third starts."""
    tracker = Tracker(mlflow_server.uri, sweep)
    callback = MLflowCallback(tracker)
    pair = a_trial(a_job(seeds=[0, 1], cell_seeds=[0, 1, 2]), "t1")
    third = a_trial(a_job(seeds=[2], cell_seeds=[0, 1, 2]), "t2")
    for trial in (pair, third):
        callback.on_trial_start(0, [], trial)
    callback.on_trial_result(0, [], pair, an_epoch(6, 0, 1))
    pair.last_result = an_epoch(6, 0, 1)
    callback.on_trial_complete(0, [], pair)
    callback.on_trial_result(0, [], third, an_epoch(1, 2))
    wait_for(lambda: "seed_2/run_score" in cell_metrics(client, sweep))
    assert the_run(client, sweep, CELL).info.status == "RUNNING"
    callback.on_trial_complete(0, [], third)
    tracker.close()
    run = the_run(client, sweep, CELL)
    assert run.info.status == "FINISHED"
    assert set(run.data.metrics) == {"seed_0/run_score", "seed_1/run_score", "seed_2/run_score"}
    assert the_run(client, sweep, tracking.SWEEP).data.metrics == {}


def cell_metrics(client, sweep):
    return [name for run in runs_of(client, sweep) for name in run.data.metrics]


def test_the_callback_survives_pickling_while_it_works(mlflow_server, client, sweep):
    tracker = Tracker(mlflow_server.uri, sweep)
    callback = MLflowCallback(tracker)
    trial = a_trial(a_job())
    callback.on_trial_start(0, [trial], trial)
    copy = cloudpickle.loads(cloudpickle.dumps(callback))
    copy.on_trial_result(1, [trial], trial, an_epoch(1))  # in a run that it never opened
    copy._tracker.start_trial(a_job())
    copy._tracker.log_result("c0ffee", an_epoch(2))
    copy._tracker.close()
    tracker.close()
    assert [step for step, _ in curve(client, the_run(client, sweep, CELL), "run_score")] == [2]


def test_a_job_is_found_in_a_dict_and_in_a_config_object():
    job = a_job()
    assert job_of(SimpleNamespace(config={"job": {"record": job}})) == job
    assert job_of(SimpleNamespace(config=SimpleNamespace(job={"record": job}))) == job
    assert job_of(SimpleNamespace(config={"job": None})) is None
    assert job_of(SimpleNamespace(config={})) is None
    assert job_of(SimpleNamespace(config=None)) is None


def test_trials_of_somebody_else_are_none_of_its_business(mlflow_server, client, sweep):
    tracker = Tracker(mlflow_server.uri, sweep)
    callback = MLflowCallback(tracker)
    stranger = SimpleNamespace(trial_id="x", config={"lr": 1}, last_result={})
    callback.on_trial_start(0, [], stranger)
    callback.on_trial_result(0, [], stranger, {"training_iteration": 1})
    callback.on_trial_complete(0, [], stranger)
    callback.on_trial_error(0, [], stranger)
    tracker.start()
    tracker.close()
    assert len(runs_of(client, sweep)) == 1


@pytest.mark.ray
@pytest.mark.slow
def test_in_a_real_tuner(mlflow_server, client, sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    import ray
    from ray import tune

    def train(config):
        for epoch in (1, 2):
            tune.report(
                {
                    "mean": {"run_score": 10.0 * epoch},
                    "seed": {"0": {"run_score": 10.0 * epoch}},
                    "minutes": 0.1,
                }
            )
        if config["job"]["record"]["cell_key"] == "bad":
            raise RuntimeError("diverged")

    ray.init(num_cpus=1, include_dashboard=False, logging_level=logging.ERROR)
    try:
        jobs = [{"record": a_job(cell_key=key, seeds=[0], name=key)} for key in ("good", "bad")]
        with Tracker(mlflow_server.uri, sweep) as tracker:
            tune.Tuner(
                train,
                param_space={"job": tune.grid_search(jobs)},
                run_config=tune.RunConfig(
                    storage_path=str(tmp_path),
                    callbacks=[MLflowCallback(tracker)],
                    verbose=0,
                ),
            ).fit()
    finally:
        ray.shutdown()
    runs = {run.data.tags.get(CELL): run for run in runs_of(client, sweep)}
    assert {key: run.info.status for key, run in runs.items()} == {
        None: "FAILED",
        "good": "FINISHED",
        "bad": "FAILED",
    }
    assert curve(client, runs["good"], "seed_0/run_score") == [(1, 10.0), (2, 20.0)]
    assert runs[None].data.metrics == {"run_score/good": 20.0}


def test_a_store_that_answers_but_keeps_nothing_does_not_hold_up_the_end(
    mlflow_server, sweep, monkeypatch, caplog
):
    def full(*_args, **_changes):
        raise MlflowException("database or disk is full")  # as SQLite says it: an internal error

    monkeypatch.setattr(tracking.writer, "GATHER_SECONDS", 0.01)
    tracker = Tracker(mlflow_server.uri, sweep)
    tracker.start_trial(a_job())
    wait_for(lambda: tracker.run_id(a_job()["cell_key"]))
    monkeypatch.setattr(MlflowClient, "log_batch", full)
    monkeypatch.setattr(MlflowClient, "set_terminated", full)
    for epoch in range(1, 200):
        tracker.log_result(a_job()["cell_key"], an_epoch(epoch))
    began = time.monotonic()
    tracker.close()
    assert time.monotonic() - began < 30
    (warning,) = warnings_of(caplog)
    assert "not written" in warning
    assert "disk is full" in warning
