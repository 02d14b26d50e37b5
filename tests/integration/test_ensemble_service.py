"""The ensemble service: each ensemble is trained once, whoever asks and whatever dies."""

import os
import signal

import pytest
import ray
import torch

from algorithms.dynamics.service import (
    ensemble_service,
    obtain_ensembles,
    train_ensemble,
    trainer_resources,
)
from algorithms.dynamics.spec import EnsembleSpec
from algorithms.dynamics.store import read_ensemble
from algorithms.mopo.settings import MOPOSettings
from algorithms.settings import EnsembleSettings
from algorithms.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EPOCHS = 100


@pytest.fixture(scope="module")
def specs(dataset, settings):
    """A function: seed -> an ensemble that trains for exactly EPOCHS epochs."""
    small = {
        name: value for name, value in settings.items() if name in EnsembleSettings.model_fields
    }
    small |= {"dynamics_max_epochs": EPOCHS, "dynamics_patience": 10 * EPOCHS}
    return lambda seed: EnsembleSpec(dataset=dataset, settings=EnsembleSettings(**small), seed=seed)


@pytest.fixture(scope="module")
def alone(specs, new_storage):
    """The ensemble of seed 0, trained in this process without Ray."""
    storage = new_storage()
    epochs = [epoch["epoch"] for epoch in train_ensemble(specs(0), Storage(storage))]
    assert epochs == list(range(1, EPOCHS + 1))
    return read_ensemble(Storage(storage), specs(0).key)


def assert_trained_once(published, alone):
    """The same weights and the same history as a training that nothing disturbed."""
    assert published.description["history"] == alone.description["history"]
    assert published.weights.keys() == alone.weights.keys()
    for name, weight in alone.weights.items():
        assert torch.equal(published.weights[name], weight), name


def test_concurrent_callers_share_a_training_that_survives_its_trainer_and_coordinator(
    alone, specs, new_storage, local_ray, ray_workers, wait_until
):
    spec, storage = specs(0), new_storage()
    service = ensemble_service(Storage(storage))

    def epoch():
        return ray.get(service.progress.remote()).get(spec.key, {"epoch": 0})["epoch"]

    waiting = [service.obtain.remote(spec, trainer_resources()) for _ in range(4)]
    wait_until(lambda: epoch() >= 3)
    (trainer,) = ray_workers("EnsembleTrainer")
    os.kill(trainer, signal.SIGKILL)
    killed_at = epoch()
    wait_until(lambda: epoch() >= killed_at + 3)
    assert ray_workers("EnsembleTrainer") - {trainer}
    ray.kill(service, no_restart=False)
    results = ray.get(waiting)
    assert len(results) == 4
    for published in results:
        assert_trained_once(published, alone)
    # Nothing but the published folder: no checkpoint, nothing half written.
    assert [path.name for path in (storage / "ensembles").iterdir()] == [spec.key]
    wait_until(lambda: not ray_workers("EnsembleTrainer"))

    # A restarted coordinator answers from what is published, and so does a new one.
    modified = (storage / "ensembles" / spec.key / "ensemble.json").stat().st_mtime_ns
    ray.kill(service)
    (again,) = obtain_ensembles([spec], Storage(storage))
    assert_trained_once(again, alone)
    assert (storage / "ensembles" / spec.key / "ensemble.json").stat().st_mtime_ns == modified


def test_what_concerns_the_policy_alone_leaves_the_ensemble_the_same(dataset, settings):
    def key(**changes):
        merged = MOPOSettings(**settings | changes)
        return EnsembleSpec(dataset=dataset, settings=merged.part(EnsembleSettings), seed=0).key

    same = [{"penalty": "none"}, {"penalty_coef": 9.0}, {"rollout_length": 7}, {"epochs": 99}]
    assert {key(**changes) for changes in same} == {key()}
    assert key(num_elites=3) != key()
