"""`orchestrator run`, from the first run of a sweep to its extension, with the real command."""

import contextlib
import io
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from algorithms.data import hdf5
from algorithms.data.source import load, resolve
from algorithms.dynamics.store import read_ensemble, stack_ensembles
from algorithms.storage import Storage
from algorithms.training.checkpoint import CHECKPOINT_FORMAT
from orchestrator import cli, tune
from orchestrator.results import ResultStore
from orchestrator.sweep.cell import cells_of
from orchestrator.sweep.model import load_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def results(file, storage):
    """{(variant, seed): SeedResult} of a sweep's seeds, as far as they are trained."""
    store = ResultStore(Storage(storage))
    return {
        (trial.variant.removeprefix("penalty="), seed): result
        for trial in cells_of(load_sweep(file))
        for seed in trial.seeds
        if (result := store.get(trial.result_key(seed)))
    }


def modified(storage):
    """When each file of ensembles, trials and results was last written."""
    return {
        path: path.stat().st_mtime_ns
        for folder in ("ensembles", "trials", "results")
        for path in (storage / folder).rglob("*")
    }


def mlflow_runs(storage, experiment):
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


@pytest.fixture(scope="module")
def first(new_storage, sweep_file, command_line):
    """A sweep that has been run once: its storage, its file, and what the command said."""
    storage = new_storage()
    file = sweep_file("first")
    return storage, file, command_line(storage)("run", file)


def test_a_first_run_trains_every_seed_and_prints_the_table(first):
    storage, file, ran = first
    assert ran.returncode == 0, ran.stderr
    assert "to run: 4 seeds in 2 cells, 1 dynamics ensemble to train" in ran.stdout
    assert "penalty=none" in ran.stdout
    assert "penalty=max_std" in ran.stdout
    assert "Traceback" not in ran.stderr
    found = results(file, storage)
    assert set(found) == {(p, s) for p in ("none", "max_std") for s in (0, 1)}
    for result in found.values():
        assert (result.epochs, result.status) == (2, "finished")
        assert result.run_score is not None
        assert Path(result.checkpoint).is_dir()


def test_mlflow_holds_the_sweep_its_trials_and_their_ensemble(first):
    storage, file, _ = first
    runs = mlflow_runs(storage, "first")
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.params["penalty"] for run in children} == {"none", "max_std"}
    (ensemble,) = mlflow_runs(storage, "ensembles")
    assert ensemble.data.metrics["elite_holdout_mse"] > 0
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    for child in children:
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["orchestrator.ensemble_runs"] == ensemble.info.run_id
        for metric in ("normalized_score", "seed_0/critic_loss", "seed_1/run_score"):
            history = client.get_metric_history(child.info.run_id, metric)
            assert [point.step for point in history] == [1, 2], metric
    # A training of a moment may be over before MLflow has told the run's id.
    recorded = {result.mlflow_run_id for result in results(file, storage).values()} - {None}
    assert recorded <= {child.info.run_id for child in children}


def test_a_trial_trains_what_a_plain_loop_trains_bit_for_bit(first, dataset):
    """Ray, Tune, RLlib and the checkpoint add nothing and lose nothing."""
    from algorithms.environments.table import ENVIRONMENTS
    from algorithms.mopo.agent import MOPO
    from algorithms.sac.agent import Context, RewardScale
    from algorithms.sac.networks import SACNetworks
    from algorithms.stack.randomness import seed_generators
    from algorithms.stack.transitions import Transition
    from algorithms.training.checkpoint import read_training_state
    from algorithms.training.loop import NETWORK_STREAM, OfflineTraining

    storage, file, _ = first
    trial = cells_of(load_sweep(file))[1]
    published = [read_ensemble(Storage(storage), trial.ensemble(seed).key) for seed in trial.seeds]
    data = Transition.from_numpy(load(dataset, Storage(storage)))
    networks = SACNetworks(11, 3, trial.settings, seed_generators(NETWORK_STREAM, trial.seeds))
    reward_scale = RewardScale.of(data.reward, trial.settings.gamma)
    training = OfflineTraining(
        agent=MOPO(Context(networks, trial.settings, reward_scale, stack_ensembles(published))),
        data=data,
        seeds=trial.seeds,
        termination_fn=ENVIRONMENTS[dataset.env_id].termination,
    )
    training.train_epoch()
    training.train_epoch()
    trained = read_training_state(results(file, storage)["max_std", 0].checkpoint)
    alone = training.state_dict()
    assert alone.keys() == trained.keys()
    for name in alone.keys() - {"seconds", "scores"}:
        assert torch.equal(alone[name], trained[name]), name


def test_a_second_run_does_nothing(first, command_line):
    storage, file, _ = first
    before = modified(storage)
    ran = command_line(storage)("run", file, RAY_ADDRESS="127.0.0.1:1")  # no Ray answers there
    assert ran.returncode == 0, ran.stderr
    assert "nothing to run: 2 cells done" in ran.stdout
    assert "penalty=max_std" in ran.stdout
    assert modified(storage) == before


def test_export_writes_a_policy_that_loads_with_torch_alone(first, command_line, tmp_path):
    storage, file, _ = first
    trial = cells_of(load_sweep(file))[1].name
    out = tmp_path / "policy.pt2"
    ran = command_line(storage)("export", trial, "--seed", 1, "--out", out)
    assert ran.returncode == 0, ran.stderr
    action = torch.export.load(out).module()(torch.randn(4, 11))
    assert action.shape == (4, 3)
    assert action.abs().max() <= 1


@pytest.fixture(scope="module")
def extended(first, sweep_file, command_line):
    """The same sweep with one more penalty and one more seed, while MLflow is away."""
    storage, _, _ = first
    before = modified(storage)
    file = sweep_file("first", seeds=3, grid={"penalty": ["none", "max_std", "member_std"]})
    ran = command_line(storage)("run", file, MLFLOW_TRACKING_URI="http://127.0.0.1:1")
    return storage, file, ran, before


def test_an_extension_trains_only_what_is_new(extended):
    storage, file, ran, before = extended
    assert ran.returncode == 0, ran.stderr
    # Seed 2 of two penalties, and the third penalty; all on the ensemble that is there.
    assert "to run: 5 seeds in 3 cells; " in ran.stdout
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.is_file())
    assert len(list((storage / "ensembles").iterdir())) == 1
    assert {result.epochs for result in results(file, storage).values()} == {2}
    assert len(results(file, storage)) == 9


def test_a_sweep_ends_well_without_mlflow_and_says_so_once(extended):
    _, _, ran, _ = extended
    assert ran.returncode == 0
    assert "penalty=member_std" in ran.stdout
    complaints = [line for line in ran.stderr.splitlines() if line]
    assert len(complaints) == 1, ran.stderr
    assert complaints[0].startswith("MLflow was away: ")


def test_more_epochs_continue_every_seed_where_it_stands(extended, first, sweep_file, command_line):
    storage, _, _ = first
    file = sweep_file("first", fixed={"epochs": 3})  # two of three seeds, two of three penalties
    before = results(file, storage)
    ran = command_line(storage)("run", file)
    assert ran.returncode == 0, ran.stderr
    assert "to run: 4 seeds in 2 cells; 80 gradient steps" in ran.stdout
    found = results(file, storage)
    for key, result in found.items():
        assert result.epochs == 3
        assert result.minutes > before[key].minutes
    runs = mlflow_runs(storage, "first")
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    (child,) = [run for run in runs if run.data.params.get("penalty") == "max_std"]
    history = client.get_metric_history(child.info.run_id, "normalized_score")
    assert [point.step for point in history] == [1, 2, 3]


def test_an_ensemble_that_diverges_takes_along_only_the_trials_that_need_it(
    new_storage, sweep_file, command_line, data_file, tmp_path
):
    data = load(resolve(f"file:{data_file}", env="Hopper-v4"), Storage(tmp_path))
    huge = tmp_path / "huge.hdf5"
    huge.write_bytes(hdf5.encode(data._replace(reward=data.reward + np.float32(1e25)), {}))
    entries = [{"id": f"file:{path}", "env": "Hopper-v4"} for path in (huge, data_file)]
    entries[0]["allow"] = ["returns", "physics"]
    storage = new_storage()
    file = sweep_file("half", datasets=entries, grid={"penalty": ["max_std"]}, seeds=1)
    ran = command_line(storage)("run", file)
    assert ran.returncode == 1, ran.stderr
    (failure,) = [line for line in ran.stdout.splitlines() if line.startswith("failed: ")]
    assert failure.startswith("failed: ensemble huge seed 0: the dynamics ensemble of file:")
    assert failure.endswith("diverged: lower dynamics_lr, or check the scale of the data")
    assert "Traceback" not in ran.stdout + ran.stderr
    broken, sound = cells_of(load_sweep(file))
    assert ResultStore(Storage(storage)).get(broken.result_key(0)) is None
    assert ResultStore(Storage(storage)).get(sound.result_key(0)).status == "finished"


@pytest.fixture(scope="module")
def failing(first, sweep_file):
    """The sweep with more epochs, where one trial cannot read the checkpoint it should continue."""
    storage, _, _ = first
    file = sweep_file("first", fixed={"epochs": 4})
    before = results(file, storage)
    for checkpoint in {before["max_std", seed].checkpoint for seed in (0, 1)}:
        (state,) = Path(checkpoint).rglob("training.safetensors")
        current = f'"format":"{CHECKPOINT_FORMAT}"'.encode()
        content = state.read_bytes()
        assert current in content
        state.write_bytes(content.replace(current, b'"format":"9"', 1))
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(tune, "MAX_FAILURES", 0)
        patch.setenv("COLUMNS", "200")
        code = cli.main(["run", str(file), "--storage", str(storage)])
    statuses = {
        run.data.params.get("penalty"): run.info.status for run in mlflow_runs(storage, "first")
    }
    return code, out.getvalue(), before, results(file, storage), statuses


def test_a_trial_that_fails_is_named_and_the_others_finish(failing):
    code, out, before, after, statuses = failing
    assert code == 1
    (complaint,) = [line for line in out.splitlines() if line.startswith("failed: ")]
    name = r"penalty-max_std__\S+__seeds-0-1"
    assert re.match(rf"failed: {name}: .*UserError: .*format 9, this version reads", complaint)
    assert "partial: some seeds" in out
    assert after["none", 0].epochs == 4
    assert after["max_std", 0] == before["max_std", 0]
    assert statuses["none"] == "FINISHED"
    assert statuses[None] == "FAILED"  # the sweep's own run


def test_mlflow_says_that_a_trial_failed_which_did_not_even_start(failing):
    *_, statuses = failing
    assert statuses["max_std"] == "FAILED"


def pointers(file, storage):
    """Epochs of every seed that has a checkpoint."""
    return {key: result.epochs for key, result in results(file, storage).items()}


def test_a_sweep_that_is_killed_then_interrupted_goes_on_where_it_stood(
    first, new_storage, sweep_file, command_line, descendants, end, wait_until
):
    storage = new_storage()
    (storage / "ensembles").symlink_to(first[0] / "ensembles")
    epochs = 80
    file = sweep_file(
        "lost", {"epochs": epochs}, grid={"penalty": ["none"]}, checkpoint_minutes=0.001
    )
    run = command_line(storage)

    driver = run.start("run", file)
    wait_until(lambda: min(pointers(file, storage).values(), default=0) >= 3)
    family = descendants(driver.pid)
    driver.kill()
    driver.wait()
    end(family)
    at_kill = pointers(file, storage)
    assert set(at_kill) == {("none", 0), ("none", 1)}
    assert max(at_kill.values()) < epochs

    driver = run.start("run", file)
    wait_until(lambda: min(pointers(file, storage).values()) >= max(at_kill.values()) + 3)
    os.killpg(driver.pid, signal.SIGINT)  # what Ctrl-C does
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, out + err
    assert err.splitlines() == ["interrupted: the same command continues where this one stopped"]
    assert {run.info.status for run in mlflow_runs(storage, "lost")} == {"KILLED"}
    at_interrupt = pointers(file, storage)
    assert max(at_interrupt.values()) < epochs

    ran = run("run", file)
    assert ran.returncode == 0, ran.stderr
    steps_left = 20 * sum(epochs - done for done in at_interrupt.values())
    assert f"{steps_left:,} gradient steps" in ran.stdout
    assert set(pointers(file, storage).values()) == {epochs}
    (child,) = [
        run for run in mlflow_runs(storage, "lost") if "mlflow.parentRunId" in run.data.tags
    ]
    assert child.info.status == "FINISHED"
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    steps = [point.step for point in client.get_metric_history(child.info.run_id, "alpha")]
    # What MLflow was still to be told when the first driver was killed is lost, nothing later.
    assert set(range(max(at_kill.values()) + 1, epochs + 1)) <= set(steps)
