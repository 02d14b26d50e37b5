"""A sweep of several algorithms, one of whose variants diverges, with the real command."""

import pytest
from mlflow import MlflowClient

from algorithms.storage import Storage
from orchestrator.results import ResultStore
from orchestrator.sweep.cell import cells_of
from orchestrator.sweep.model import load_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]

VARIANTS = {
    "mbpo": {"algorithm": "mbpo"},
    "MOPO + no penalty": {"penalty": "none"},
    "cql": {"algorithm": "cql"},
    "wild": {"algorithm": "sac", "critic_lr": 1e6},
}


@pytest.fixture(scope="module")
def ran(new_storage, sweep_file, command_line):
    """The sweep after one run: its storage, its file, and what the command said."""
    storage = new_storage()
    file = sweep_file("variants", grid={}, variants=VARIANTS)
    return storage, file, command_line(storage)("run", file)


def test_every_algorithm_is_trained_and_each_training_once(ran):
    storage, file, done = ran
    assert done.returncode == 0, done.stderr
    assert "MLflow" not in done.stderr
    assert "to run: 6 seeds in 3 cells, 1 dynamics ensemble to train" in done.stdout
    assert len(ResultStore(Storage(storage)).all()) == 6
    assert len(list((storage / "ensembles").iterdir())) == 1
    for cell in cells_of(load_sweep(file)):
        for seed in cell.seeds:
            result = ResultStore(Storage(storage)).get(cell.result_key(seed))
            assert (result.ensemble_key is None) == (cell.variant in ("cql", "wild"))


def test_a_variant_that_diverges_ends_is_named_and_leaves_the_others_alone(ran):
    storage, file, done = ran
    results = {
        cell.variant: ResultStore(Storage(storage)).get(cell.result_key(1))
        for cell in cells_of(load_sweep(file))
    }
    assert {variant: (r.status, r.epochs) for variant, r in results.items()} == {
        "mbpo": ("finished", 2),
        "MOPO + no penalty": ("finished", 2),
        "cql": ("finished", 2),
        "wild": ("diverged", 1),
    }
    assert results["mbpo"] == results["MOPO + no penalty"]
    assert results["wild"].run_score is None
    assert "2 diverged" in done.stdout
    assert "partial" not in done.stdout
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("variants").experiment_id
    runs = client.search_runs([experiment], filter_string="tags.`diverged.seed_1` = 'true'")
    assert [(run.data.params["algorithm"], run.info.status) for run in runs] == [
        ("sac", "FINISHED")
    ]


def test_what_has_diverged_is_not_tried_again(ran, command_line):
    storage, file, _ = ran
    again = command_line(storage)("run", file, RAY_ADDRESS="127.0.0.1:1")  # no Ray answers there
    assert again.returncode == 0, again.stderr
    assert "nothing to run: 4 cells done" in again.stdout
