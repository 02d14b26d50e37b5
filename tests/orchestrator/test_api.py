"""The public Python API, on results as trainings leave them."""

import math
import subprocess
import sys

import pandas as pd
import pytest
import yaml

import orchestrator as o
from algorithms.errors import UserError
from algorithms.storage import Storage
from orchestrator.results import ResultStore, remember_datasets
from orchestrator.sweep.cell import resolve_entry


@pytest.fixture
def file(tmp_path, quickstart):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(quickstart))
    return path


def test_the_package_offers_these_names_and_imports_them_late():
    assert set(o.__all__) == {"Experiment", "__version__", "load", "policy"}
    code = (
        "import sys, orchestrator\n"
        "assert not {'torch', 'ray', 'mlflow', 'pandas', 'pydantic'} & sys.modules.keys()\n"
        "orchestrator.load\n"
        "assert not {'torch', 'ray', 'mlflow'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = o.lode


def test_a_sweep_is_loaded_with_other_values(file, storage):
    experiment = o.load(file, storage=storage, seeds=3, epochs=7)
    assert experiment.sweep.seeds == (0, 1, 2)
    assert {job.cell.settings.epochs for job in experiment.plan().jobs} == {7}
    assert experiment.plan().gradient_steps == 2 * 3 * 7 * 1000
    assert not storage.exists()


def test_a_mistake_is_a_user_error(file, storage):
    with pytest.raises(UserError, match="no such file"):
        o.load("missing.yaml")
    with pytest.raises(UserError, match=r"fixed.epoch: unknown key .did you mean 'epochs'"):
        o.load(file, storage=storage, epoch=7)


def test_results_have_a_row_per_seed(file, storage, finish, expand, quickstart):
    none, max_std = expand(quickstart)
    finish(none, 0, run_score=12.5, code="abc")
    finish(none, 1, epochs=3, run_score=4.0, position=1)
    finish(max_std, 0, epochs=2, run_score=None, status="diverged")
    frame = o.load(file, storage=storage).results()
    assert list(frame.columns) == [
        "cell",
        "variant",
        "dataset",
        "seed",
        "status",
        "epochs",
        "score",
        "behaviour_score",
        "minutes",
        "result_key",
        "ensemble_key",
        "data_content",
        "data_version",
        "data_notes",
        "code",
    ]
    assert frame["status"].tolist() == ["finished", "running", "diverged", "missing"]
    assert frame["epochs"].tolist() == [5, 3, 0, 0]
    assert frame["score"][:2].tolist() == [12.5, 4.0]
    assert frame["score"][2:].isna().all()
    assert frame["cell"].tolist() == [none.name] * 2 + [max_std.name] * 2
    assert frame["result_key"][1] == none.result_key(1)
    assert set(frame["ensemble_key"]) == {none.ensemble(0).key}
    assert frame["code"][0] == "abc"
    assert math.isnan(frame["minutes"][3])


def test_curves_have_a_row_per_epoch(file, storage, finish, expand, quickstart):
    experiment = o.load(file, storage=storage)
    assert experiment.curves().empty
    none, max_std = expand(quickstart)
    store = ResultStore(Storage(storage))
    for cell, metric in ((none, "q_data"), (max_std, "penalty")):
        finish(cell, 1)
        curve = pd.DataFrame({"epoch": [1, 2], "run_score": [1.0, 2.0], metric: [0.1, 0.2]})
        store.put_curve(cell.result_key(1), curve)
    frame = experiment.curves()
    assert frame[["variant", "seed", "epoch", "run_score"]].to_numpy().tolist() == [
        [none.variant, 1, 1, 1.0],
        [none.variant, 1, 2, 2.0],
        [max_std.variant, 1, 1, 1.0],
        [max_std.variant, 1, 2, 2.0],
    ]
    assert frame["penalty"].isna().tolist() == [True, True, False, False]


def test_results_and_report_do_not_open_the_data(
    tmp_path, storage, hopper_file, quickstart, load, expand, finish
):
    """Results are looked up by what the file held when the sweep ran."""
    path = hopper_file()
    quickstart["datasets"] = [{"id": f"file:{path}", "env": "Hopper-v4"}]
    sweep = load(quickstart)
    for cell in expand(quickstart):
        finish(cell, 0, run_score=12.5)
    entries = {entry: resolve_entry(entry) for entry in sweep.datasets}
    remember_datasets(entries, Storage(storage))
    path.unlink()
    frame = o.load(tmp_path / "sweep.yaml", storage=storage).results()
    assert frame["score"].dropna().tolist() == [12.5, 12.5]
    command = [sys.executable, "-m", "orchestrator", "report", tmp_path / "sweep.yaml"]
    shown = subprocess.run(
        [*command, "--storage", storage], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "12.5" in shown.stdout


def test_a_policy_that_is_not_there_is_told_with_what_is(storage, finish, expand, quickstart):
    cell, _ = expand(quickstart)
    finish(cell, 0)
    with pytest.raises(UserError, match=f"unknown cell 'x': one of {cell.name}"):
        o.policy("x", 0, storage=storage)
    with pytest.raises(UserError, match="unknown seed 7: one of 0"):
        o.policy(cell.name, 7, storage=storage)
