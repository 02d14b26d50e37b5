"""A server that is lost, late, or full: a sweep neither fails nor waits long."""

import os
import time

import pytest
from mlflow import MlflowClient
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow_runs import (
    PNG,
    a_cell,
    a_tracker,
    an_epoch,
    record_ensemble,
    the_cells,
    the_ensemble,
    the_files,
    wait_for,
    warnings_of,
)

from orchestrator.tracking.mlflow import tracker as mlflow_tracker
from orchestrator.tracking.mlflow import writer as mlflow_writer
from orchestrator.tracking.mlflow.tracker import CELL
from orchestrator.tracking.mlflow.writer import Ref


@pytest.mark.slow
@pytest.mark.parametrize("lose", ["kill", "freeze"])
def test_a_server_lost_half_way_costs_no_exception_and_little_time(
    own_mlflow_server, sweep, caplog, lose
):
    own_mlflow_server.start()
    tracker = a_tracker(own_mlflow_server, sweep)
    tracker.start_cell(a_cell())
    wait_for(lambda: tracker.run_id("c0ffee"))
    getattr(own_mlflow_server, lose)()
    for epoch in range(1, 4):
        tracker.log_epoch("c0ffee", an_epoch(epoch))
    tracker.end_cell("c0ffee")
    started = time.monotonic()
    tracker.close()
    assert time.monotonic() - started < 10  # the promise, not a benchmark
    (warning,) = warnings_of(caplog)
    assert warning.startswith("MLflow was away: 12 metrics not written, 2 runs not ended (")


@pytest.mark.slow
def test_what_waited_for_the_server_arrives_in_order(own_mlflow_server, sweep, monkeypatch, caplog):
    monkeypatch.setattr(mlflow_writer, "MAX_BACKOFF_SECONDS", 0.5)
    own_mlflow_server.start()
    tracker = a_tracker(own_mlflow_server, sweep)
    tracker.start_cell(a_cell())
    wait_for(lambda: tracker.run_id("c0ffee"))
    own_mlflow_server.kill()
    for epoch in range(1, 21):
        tracker.log_epoch("c0ffee", an_epoch(epoch))
    tracker.start_cell(a_cell(key="later"))
    time.sleep(2)  # long enough for attempts to fail
    own_mlflow_server.start()
    client = MlflowClient(own_mlflow_server.uri)
    wait_for(lambda: tracker.run_id("later"))
    tracker.end_cell("c0ffee")
    tracker.close()
    run = client.get_run(the_cells(client, sweep)["c0ffee"])
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "run_score")
    assert [point.step for point in points] == list(range(1, 21))
    assert [point.timestamp for point in points] == sorted(point.timestamp for point in points)
    assert warnings_of(caplog) == []


@pytest.mark.slow
def test_a_picture_waits_for_the_server(own_mlflow_server, sweep, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(mlflow_writer, "MAX_BACKOFF_SECONDS", 0.5)
    own_mlflow_server.start()
    picture = tmp_path / "penalties.png"
    picture.write_bytes(PNG)
    tracker = a_tracker(own_mlflow_server, sweep)
    tracker.start_cell(a_cell())
    wait_for(lambda: tracker.run_id("c0ffee"))
    own_mlflow_server.kill()
    record_ensemble(tracker, "waits", files=(picture,))
    time.sleep(2)  # long enough for attempts to fail
    own_mlflow_server.start()
    tracker.start_cell(a_cell(key="later"))
    wait_for(lambda: tracker.run_id("later"))
    tracker.close()
    client = MlflowClient(own_mlflow_server.uri)
    files = the_files(client, the_ensemble(client, "waits"), tmp_path)
    assert files == {"penalties.png": PNG}
    assert warnings_of(caplog) == []


def test_a_server_that_was_never_there_costs_no_exception(own_mlflow_server, sweep, caplog):
    with a_tracker(own_mlflow_server, sweep) as tracker:
        tracker.start_cell(a_cell())
        tracker.log_epoch("c0ffee", an_epoch(1))
    (warning,) = warnings_of(caplog)
    assert warning.startswith("MLflow was away: 4 metrics not written, 2 runs not ended (")


def test_a_long_outage_gives_up_the_oldest_metrics_only(own_mlflow_server, sweep, monkeypatch):
    monkeypatch.setattr(mlflow_writer, "MAX_WAITING", 10)
    writer = mlflow_writer.Writer(own_mlflow_server.uri, None)
    writer.close(timeout=5)
    ref = Ref(CELL, "c0ffee")
    writer._receive(ref, [Param("a", "1"), *mlflow_tracker._metrics({"run_score": 1.0}, 1)])
    for epoch in range(2, 30):
        writer._receive(ref, mlflow_tracker._metrics({"run_score": 1.0}, epoch))
    writer._receive(ref, [RunTag("b", "2")])
    writer._drop_oldest()
    first, *kept, last = writer._waiting[ref]
    assert (first.key, last.key) == ("a", "b")
    assert [metric.step for metric in kept] == list(range(22, 30))


def test_a_users_own_http_settings_stand(own_mlflow_server, sweep, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    a_tracker(own_mlflow_server, sweep).start()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_a_store_that_answers_but_keeps_nothing_does_not_hold_up_the_end(
    mlflow_server, sweep, monkeypatch, caplog
):
    def full(*_args, **_changes):
        raise MlflowException("database or disk is full")  # as SQLite says it: an internal error

    monkeypatch.setattr(mlflow_writer, "GATHER_SECONDS", 0.01)
    tracker = a_tracker(mlflow_server, sweep)
    tracker.start_cell(a_cell())
    wait_for(lambda: tracker.run_id(a_cell().key))
    monkeypatch.setattr(MlflowClient, "log_batch", full)
    monkeypatch.setattr(MlflowClient, "set_terminated", full)
    for epoch in range(1, 200):
        tracker.log_epoch(a_cell().key, an_epoch(epoch))
    began = time.monotonic()
    tracker.close()
    assert time.monotonic() - began < 30
    (warning,) = warnings_of(caplog)
    assert "not written" in warning
    assert "disk is full" in warning
