"""What a sweep records, against a real MLflow server over HTTP."""

import math
import time
import uuid

import pytest
import requests
from mlflow import MlflowClient
from mlflow_runs import (
    DIGEST,
    PNG,
    a_cell,
    a_tracker,
    an_epoch,
    curve,
    record_ensemble,
    runs_of,
    the_ensemble,
    the_files,
    the_run,
    wait_for,
    warnings_of,
)

from orchestrator.tracking.mlflow import tracker as mlflow_tracker
from orchestrator.tracking.mlflow import writer as mlflow_writer
from orchestrator.tracking.mlflow.tracker import CELL, SWEEP, MLflowTracker
from orchestrator.tracking.mlflow.writer import ENSEMBLE
from orchestrator.tracking.records import SweepRecord


def test_a_sweep_is_a_parent_whose_children_are_its_trials(mlflow_server, client, sweep, caplog):
    with a_tracker(
        mlflow_server, sweep, question="Does it help?", params={"algorithm": "mopo"}
    ) as tracker:
        tracker.start_cell(a_cell())
        tracker.end_cell("c0ffee")
        tracker.log_score("penalty-max_std__hopper-medium", 42.0, epochs=5)
        tracker.log_table("| variant | score |", "table.md")

    parent = the_run(client, sweep, SWEEP)
    assert parent.info.run_name == sweep
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"algorithm": "mopo"}
    assert parent.data.tags["mlflow.note.content"] == "Does it help?"
    assert parent.data.tags["orchestrator.sweep"] == sweep
    assert parent.data.metrics == {"run_score/penalty-max_std__hopper-medium": 42.0}
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["table.md"]

    child = the_run(client, sweep, CELL)
    assert child.info.run_name == "penalty-max_std__hopper-medium"
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["variant"] == "penalty=max_std"
    assert child.data.params == {
        "penalty": "max_std",
        "penalty_coef": "2.5",
        "epochs": "5",
        "hidden": "(256, 256)",
        "dataset": "bundled/hopper-medium",
        "dataset_content": "d1d1d1d1d1d1",
    }
    assert warnings_of(caplog) == []


def test_metrics_are_means_under_plain_names_and_seeds_under_theirs(mlflow_server, client, sweep):
    with a_tracker(mlflow_server, sweep) as tracker:
        tracker.start_cell(a_cell())
        for epoch in (1, 2, 3):
            tracker.log_epoch("c0ffee", an_epoch(epoch))
    run = the_run(client, sweep, CELL)
    assert curve(client, run, "run_score") == [(1, 10.5), (2, 20.5), (3, 30.5)]
    assert curve(client, run, "seed_0/run_score") == [(1, 10.0), (2, 20.0), (3, 30.0)]
    assert curve(client, run, "seed_1/run_score") == [(1, 11.0), (2, 21.0), (3, 31.0)]
    assert curve(client, run, "minutes") == [(1, 0.5), (2, 1.0), (3, 1.5)]


def test_the_data_set_is_an_input_with_its_digest(mlflow_server, client, sweep):
    with a_tracker(mlflow_server, sweep) as tracker:
        tracker.start_cell(a_cell())
    run = the_run(client, sweep, CELL)
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "bundled/hopper-medium"
    assert dataset.dataset.digest == DIGEST[:36]
    assert run.data.tags["dataset"] == "bundled/hopper-medium"
    assert run.data.tags["dataset_digest"] == DIGEST


def test_every_run_says_who_made_it_with_which_commit(mlflow_server, client, sweep, monkeypatch):
    monkeypatch.setattr(
        mlflow_tracker,
        "source_tags",
        lambda: {"mlflow.user": "ada", "mlflow.source.git.commit": "abc123"},
    )
    key = uuid.uuid4().hex
    with a_tracker(mlflow_server, sweep) as tracker:
        tracker.start_cell(a_cell())
        record_ensemble(tracker, key)
    ensembles = [run for run in runs_of(client, "ensembles") if run.data.tags[ENSEMBLE] == key]
    for run in runs_of(client, sweep) + ensembles:
        assert run.data.tags["mlflow.user"] == "ada"
        assert run.data.tags["mlflow.source.git.commit"] == "abc123"


def test_source_tags_name_the_commit_of_this_checkout():
    commit = mlflow_tracker.source_tags().get("mlflow.source.git.commit")
    if commit is None:
        pytest.skip("not in a git checkout")
    assert len(commit) == 40


def test_an_ensemble_is_a_run_of_its_own_that_trials_link_to(mlflow_server, client, sweep):
    key = uuid.uuid4().hex
    with a_tracker(mlflow_server, sweep) as tracker:
        record_ensemble(tracker, key)
        tracker.start_cell(a_cell(ensemble_keys=(key,)))
    (run,) = [run for run in runs_of(client, "ensembles") if run.data.tags[ENSEMBLE] == key]
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "num_ensemble": "7",
        "seed": "0",
        "dataset": "bundled/hopper-medium",
        "dataset_content": "d1d1d1d1d1d1",
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
    with a_tracker(mlflow_server, sweep) as tracker:
        record_ensemble(tracker, key)
    (before,) = [run for run in runs_of(client, "ensembles") if run.data.tags[ENSEMBLE] == key]
    with a_tracker(mlflow_server, f"{sweep}-2") as tracker:
        record_ensemble(tracker, key, folder="/elsewhere")
        tracker.start_cell(a_cell(ensemble_keys=(key,)))
    with a_tracker(mlflow_server, f"{sweep}-3") as tracker:  # does not even mention it first
        tracker.start_cell(a_cell(ensemble_keys=(key,)))
    (after,) = [run for run in runs_of(client, "ensembles") if run.data.tags[ENSEMBLE] == key]
    assert after.to_dictionary() == before.to_dictionary()
    for other in (f"{sweep}-2", f"{sweep}-3"):
        link = the_run(client, other, CELL).data.tags["orchestrator.ensemble_runs"]
        assert link == before.info.run_id
    assert warnings_of(caplog) == []


def test_an_ensembles_picture_is_kept_with_its_run_once(
    mlflow_server, client, sweep, tmp_path, caplog
):
    key, picture = uuid.uuid4().hex, tmp_path / "penalties.png"
    picture.write_bytes(PNG)
    with a_tracker(mlflow_server, sweep) as tracker:
        record_ensemble(tracker, key, files=(picture,))
    picture.write_bytes(b"another")
    with a_tracker(mlflow_server, f"{sweep}-2") as tracker:
        record_ensemble(tracker, key, files=(picture,))
    run = the_ensemble(client, key)
    assert run.info.status == "FINISHED"
    assert the_files(client, run, tmp_path) == {"penalties.png": PNG}
    assert warnings_of(caplog) == []


def test_a_picture_that_is_gone_costs_nothing_else(mlflow_server, client, sweep, tmp_path, caplog):
    key = uuid.uuid4().hex
    with a_tracker(mlflow_server, sweep) as tracker:
        record_ensemble(tracker, key, files=(tmp_path / "penalties.png",))
    run = the_ensemble(client, key)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["holdout_mse"] == 0.25
    (warning,) = warnings_of(caplog)
    assert warning.startswith("MLflow refused 1 entries (last error: ")
    assert "penalties.png is gone" in warning


def test_a_rerun_continues_the_same_runs(mlflow_server, client, sweep, caplog):
    with a_tracker(mlflow_server, sweep) as tracker:
        tracker.start_cell(a_cell())
        tracker.log_epoch("c0ffee", an_epoch(1))
        tracker.end_cell("c0ffee", "FAILED")
    first = {run.info.run_id: run for run in runs_of(client, sweep)}

    with a_tracker(mlflow_server, sweep) as tracker:
        tracker.start_cell(a_cell(params={**a_cell().params, "epochs": 10}))
        wait_for(lambda: tracker.run_id("c0ffee"))
        assert client.get_run(tracker.run_id("c0ffee")).info.status == "RUNNING"
        tracker.log_epoch("c0ffee", an_epoch(2))
        tracker.end_cell("c0ffee")

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


def test_a_run_id_is_unknown_until_mlflow_has_told_it(mlflow_server, client, sweep):
    tracker = a_tracker(mlflow_server, sweep)
    assert tracker.run_id("c0ffee") is None
    tracker.start_cell(a_cell())
    wait_for(lambda: tracker.run_id("c0ffee"))
    assert client.get_run(tracker.run_id("c0ffee")).data.tags[CELL] == "c0ffee"
    tracker.close()


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_sweep_that_breaks_off_says_so(mlflow_server, client, sweep, error, status):
    with pytest.raises(error), a_tracker(mlflow_server, sweep) as tracker:  # noqa: PT012
        tracker.start_cell(a_cell())
        raise error
    assert the_run(client, sweep, SWEEP).info.status == status
    assert the_run(client, sweep, CELL).info.status == "KILLED"


def test_a_sweep_deleted_in_the_dashboard_can_run_again(mlflow_server, client, sweep):
    for _ in range(2):
        with a_tracker(mlflow_server, sweep) as tracker:
            tracker.start_cell(a_cell())
        experiment = client.get_experiment_by_name(sweep)
        assert experiment.lifecycle_stage == "active"
        client.delete_experiment(experiment.experiment_id)


def test_numbers_that_are_not_finite_are_recorded(mlflow_server, client, sweep, caplog):
    with a_tracker(mlflow_server, sweep) as tracker:
        tracker.start_cell(a_cell())
        result = an_epoch(1, critic_loss=math.nan, q_data=math.inf, note="text", nothing=None)
        tracker.log_epoch("c0ffee", result)
    metrics = the_run(client, sweep, CELL).data.metrics
    assert math.isnan(metrics["critic_loss"])
    assert metrics["q_data"] > 1e300  # MLflow stores the largest double for an infinity
    assert metrics["seed_1/run_score"] == 11.0
    assert "note" not in metrics
    assert "nothing" not in metrics
    assert warnings_of(caplog) == []


def test_what_mlflow_refuses_costs_nothing_else(mlflow_server, client, sweep, caplog):
    with a_tracker(mlflow_server, sweep) as tracker:
        tracker.start_cell(a_cell(params={"good": 1, "bad?": 1}))
        tracker.log_epoch("c0ffee", an_epoch(1, **{"bad?key": 1.0}))
        tracker.log_epoch("c0ffee", an_epoch(2))
        tracker.end_cell("c0ffee")
    run = the_run(client, sweep, CELL)
    assert run.info.status == "FINISHED"
    assert run.data.params.keys() == {"good", "dataset", "dataset_content"}
    assert curve(client, run, "run_score") == [(1, 10.5), (2, 20.5)]
    assert curve(client, run, "seed_1/run_score") == [(1, 11.0), (2, 21.0)]
    (warning,) = warnings_of(caplog)
    assert warning.startswith("MLflow refused 2 entries (last error: ")


def test_an_entry_that_only_this_side_chokes_on_is_given_up(
    mlflow_server, client, sweep, monkeypatch, caplog
):
    monkeypatch.setattr(mlflow_writer, "STRIKES", 2)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(MlflowClient, "log_text", full)
    tracker = a_tracker(mlflow_server, sweep)
    tracker.log_table("text", "table.txt")
    tracker.log_score("a", 1.0, epochs=1)
    wait_for(lambda: the_scores(client, sweep) == {"run_score/a": 1.0})
    tracker.close()
    (warning,) = warnings_of(caplog)
    assert "No space left on device" in warning


def the_scores(client, sweep):
    runs = runs_of(client, sweep)
    return runs[0].data.metrics if runs else {}


def test_more_entries_than_a_request_takes(mlflow_server, client, sweep, caplog):
    with a_tracker(mlflow_server, sweep) as tracker:
        tracker.start_cell(a_cell(params={f"p{i}": i for i in range(250)}))
        tracker.log_epoch("c0ffee", an_epoch(1, **{f"m{i}": i for i in range(2500)}))
    run = the_run(client, sweep, CELL)
    assert sum(name.startswith("p") for name in run.data.params) == 250
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
    tracker = a_tracker(mlflow_server, sweep)
    tracker.start_cell(a_cell(key="first"))
    wait_for(lambda: tracker.run_id("first"))
    time.sleep(2 * mlflow_writer.GATHER_SECONDS)
    requests_sent.clear()
    tracker.start_cell(a_cell())
    tracker.log_epoch("c0ffee", an_epoch(1))
    tracker.close()
    # Find, create, its description with the first result, data set; end of two trials and sweep.
    assert len(requests_sent) <= 4 + 1 + 3


@pytest.mark.slow
def test_the_embedded_store_keeps_files_where_it_is_told(tmp_path, sweep):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    artifacts = str(tmp_path / "mlartifacts")
    tracker = MLflowTracker(uri, SweepRecord(name=sweep), artifact_root=artifacts)
    tracker.log_table("the table", "table.md")
    tracker.close(timeout=60)
    (file,) = (tmp_path / "mlartifacts").rglob("table.md")
    assert file.read_text() == "the table"
    assert the_run(MlflowClient(uri), sweep, SWEEP).info.status == "FINISHED"
