"""The tracker that needs no server, and several trackers as one."""

import csv
import json
import logging
import math

import cloudpickle
import pytest
from mlflow_runs import a_cell, an_epoch, record_ensemble
from tensorboardX import SummaryWriter

from algorithms.storage import Storage
from orchestrator.deployment import Deployment
from orchestrator.tracking.names import TRACKERS
from orchestrator.tracking.protocol import Trackers, open_trackers
from orchestrator.tracking.records import SweepRecord


@pytest.fixture
def deployment(tmp_path):
    return Deployment(Storage(tmp_path), f"sqlite:///{tmp_path}/mlflow.db", None)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tracking" / "sweeps" / "sweep"


@pytest.fixture
def tracker(deployment):
    return open_trackers(["files"], SweepRecord(name="sweep", question="Why?"), deployment)


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_is_a_folder_of_tables(tracker, folder):
    with tracker:
        tracker.start_cell(a_cell())
        for epoch in (1, 2):
            tracker.log_epoch("c0ffee", an_epoch(epoch))
        tracker.end_cell("c0ffee")
        tracker.log_score("penalty-max_std__hopper-medium", 20.5, 2)
        tracker.log_table("the table", "table.txt")
        record_ensemble(tracker, "e1")
    assert json.loads((folder / "sweep.json").read_text())["question"] == "Why?"
    cell = folder / "penalty-max_std__hopper-medium"
    metrics = rows(cell / "metrics.csv")
    assert [(r["epoch"], r["seed"], r["metric"], float(r["value"])) for r in metrics] == [
        ("1", "0", "run_score", 10.0),
        ("1", "1", "run_score", 11.0),
        ("2", "0", "run_score", 20.0),
        ("2", "1", "run_score", 21.0),
    ]
    assert json.loads((cell / "status.json").read_text()) == {"status": "FINISHED"}
    assert rows(folder / "scores.csv") == [
        {"cell": "penalty-max_std__hopper-medium", "epochs": "2", "score": "20.5"}
    ]
    assert (folder / "table.txt").read_text() == "the table"
    (ensemble,) = (folder.parents[1] / "ensembles").glob("*_e1.json")
    assert json.loads(ensemble.read_text())["metrics"]["holdout_mse"] == 0.25


def test_tensorboard_reads_the_same(tracker, folder):
    proto = pytest.importorskip("tensorboardX.proto.event_pb2")
    with tracker:
        tracker.start_cell(a_cell())
        tracker.log_epoch("c0ffee", an_epoch(3, q_data=math.inf))
    (events,) = (folder / "penalty-max_std__hopper-medium").glob("events.out.tfevents.*")
    content, found = events.read_bytes(), {}
    while content:  # a record: length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(content[:8], "little")
        event = proto.Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
    assert found["run_score", 3] == 30.5
    assert found["seed_1/run_score", 3] == 31.0
    assert found["q_data", 3] == math.inf


def test_a_rerun_continues_the_tables_and_an_epoch_trained_again_counts_once(deployment, folder):
    for epochs, score in (((1, 2), 20.5), ((2, 3), 30.5)):
        again = open_trackers(["files"], SweepRecord(name="sweep"), deployment)
        with again:
            again.start_cell(a_cell())
            for epoch in epochs:
                again.log_epoch("c0ffee", an_epoch(epoch))
            again.end_cell("c0ffee")
            for _ in range(2):
                again.log_score("a", score, epochs[-1])
    metrics = rows(folder / "penalty-max_std__hopper-medium" / "metrics.csv")
    assert sorted(row["epoch"] for row in metrics) == ["1", "1", "2", "2", "3", "3"]
    assert rows(folder / "scores.csv") == [{"cell": "a", "epochs": "3", "score": "30.5"}]


def test_jobs_of_one_cell_share_its_record(tracker, folder):
    with tracker:
        tracker.start_cell(a_cell(seeds=(0, 1), cell_seeds=(0, 1, 2)))
        tracker.start_cell(a_cell(seeds=(2,), cell_seeds=(0, 1, 2), diverged=(2,)))
    cell = json.loads((folder / "penalty-max_std__hopper-medium" / "cell.json").read_text())
    assert (cell["seeds"], cell["diverged"]) == ([0, 1, 2], [2])


def test_it_crosses_processes_in_the_middle_of_a_cell(tracker, folder):
    tracker.start_cell(a_cell())
    tracker.log_epoch("c0ffee", an_epoch(1))
    copy = cloudpickle.loads(cloudpickle.dumps(tracker))
    copy.log_epoch("c0ffee", an_epoch(2))
    copy.close()
    assert len(rows(folder / "penalty-max_std__hopper-medium" / "metrics.csv")) == 4
    status = folder / "penalty-max_std__hopper-medium" / "status.json"
    assert json.loads(status.read_text()) == {"status": "KILLED"}
    tracker.close()


def test_a_full_disk_costs_records_and_one_warning(tracker, folder, monkeypatch, caplog):
    tracker.start_cell(a_cell())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", full)
    monkeypatch.setattr("pathlib.Path.write_text", full)
    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    with caplog.at_level(logging.WARNING):
        for epoch in (1, 2, 3):
            tracker.log_epoch("c0ffee", an_epoch(epoch))
        tracker.end_cell("c0ffee")
        tracker.close()
    (warning,) = [r.getMessage() for r in caplog.records if "not all was recorded" in r.message]
    assert "No space left on device" in warning


class Recorder:
    """A tracker that keeps what it is told."""

    def __init__(self, run=None):
        self.told, self.run = [], run

    def run_id(self, cell_key):
        return self.run

    def __getattr__(self, method):
        return lambda *arguments: self.told.append((method, *arguments))


def test_several_trackers_are_told_the_same_and_the_first_id_counts():
    first, second = Recorder(), Recorder(run="r2")
    with Trackers([first, second]) as trackers:
        trackers.start_cell(a_cell())
        trackers.log_epoch("c0ffee", an_epoch(1))
        trackers.end_cell("c0ffee")
        trackers.log_score("a", 1.0, 2)
        trackers.log_table("t", "f")
        record_ensemble(trackers, "k")
        assert trackers.run_id("c0ffee") == "r2"
    assert first.told == second.told
    assert [method for method, *_ in first.told] == [
        "start",
        "start_cell",
        "log_epoch",
        "end_cell",
        "log_score",
        "log_table",
        "log_ensemble",
        "close",
    ]


@pytest.mark.parametrize(
    ("error", "status"), [(None, None), (RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_how_a_sweep_ended_is_told_on_closing(error, status):
    recorder = Recorder()
    try:
        with Trackers([recorder]):
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert recorder.told[-1] == ("close", status)


@pytest.mark.parametrize("name", TRACKERS)
def test_every_row_opens_a_tracker_that_touches_nothing_yet(name, deployment, tmp_path):
    open_trackers([name], SweepRecord(name="sweep"), deployment)
    assert not list(tmp_path.iterdir())
