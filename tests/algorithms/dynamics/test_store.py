"""Published ensembles: whole or not there, never replaced, read as they were written."""

import threading

import pytest
import ray
import torch

from algorithms.data.spec import DatasetSpec
from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.dynamics.service import obtain_ensembles
from algorithms.dynamics.spec import EnsembleSpec
from algorithms.dynamics.store import (
    publish_ensemble,
    read_ensemble,
    stack_ensembles,
)
from algorithms.settings import EnsembleSettings
from algorithms.storage import Storage

SETTINGS = EnsembleSettings(
    num_ensemble=3, num_elites=2, dynamics_hidden=(4,), dynamics_weight_decay=(0.01, 0.02)
)


def make_spec(seed):
    dataset = DatasetSpec(id="file:/x.hdf5", env_id="Hopper-v4", content_hash="0" * 64, size=100)
    return EnsembleSpec(dataset=dataset, settings=SETTINGS, seed=seed)


def make_ensemble(seed):
    generators = [torch.Generator().manual_seed(seed)]
    ensemble = DynamicsEnsemble(3, 2, SETTINGS, generators)
    ensemble.elites_SK.copy_(torch.tensor([[2, seed % 2]]))
    ensemble.set_input_statistics(torch.full((1, 5), float(seed)), torch.full((1, 5), 2.0 + seed))
    return ensemble


def test_published_ensembles_are_read_and_stacked_exactly(tmp_path):
    assert read_ensemble(Storage(tmp_path), make_spec(0).key) is None
    ensembles = [make_ensemble(seed) for seed in (0, 1)]
    for seed, ensemble in enumerate(ensembles):
        publish_ensemble(
            Storage(tmp_path), make_spec(seed), ensemble, {"m": seed}, [{"loss": 1.5}], 2.5
        )
    published = [read_ensemble(Storage(tmp_path), make_spec(seed).key) for seed in (1, 0)]
    assert published[0].description["metrics"] == {"m": 1}
    assert published[0].description["history"] == [{"loss": 1.5}]
    assert EnsembleSpec.model_validate(published[0].description["spec"]) == make_spec(1)

    stack = stack_ensembles(published)
    assert stack.num_seeds == 2
    for name, value in stack.state_dict().items():
        assert torch.equal(value[0], ensembles[1].state_dict()[name][0])
        assert torch.equal(value[1], ensembles[0].state_dict()[name][0])
    obs, action = torch.randn(2, 4, 3), torch.randn(2, 4, 2)
    member = torch.zeros(2, 4, dtype=torch.long)
    with torch.no_grad():
        both = stack.predict(obs, action, member)
        one = ensembles[1].predict(obs[:1], action[:1], member[:1])
    torch.testing.assert_close(both.mean[:1], one.mean)
    torch.testing.assert_close(both.std[:1], one.std)


def test_concurrent_publications_leave_one_whole_folder(tmp_path):
    candidates, spec, failures = [make_ensemble(seed) for seed in range(6)], make_spec(0), []
    barrier = threading.Barrier(len(candidates))

    def publish(n):
        barrier.wait()
        try:
            publish_ensemble(Storage(tmp_path), spec, candidates[n], {"who": n}, [], 0.0)
        except Exception as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(len(candidates))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [f.name for f in (tmp_path / "ensembles").iterdir()] == [spec.key]
    published = read_ensemble(Storage(tmp_path), spec.key)
    winner = candidates[published.description["metrics"]["who"]]
    for name, value in winner.state_dict().items():
        assert torch.equal(published.weights[name], value)


def test_what_is_published_is_never_replaced(tmp_path):
    spec = make_spec(0)
    for seed in (0, 1):
        publish_ensemble(Storage(tmp_path), spec, make_ensemble(seed), {"who": seed}, [], 0.0)
    assert read_ensemble(Storage(tmp_path), spec.key).description["metrics"] == {"who": 0}


def test_a_publication_that_fails_leaves_nothing_under_the_key(tmp_path):
    with pytest.raises(TypeError):
        publish_ensemble(
            Storage(tmp_path), make_spec(0), make_ensemble(0), {"m": object()}, [], 0.0
        )
    assert not list(tmp_path.glob("ensembles/*"))
    assert read_ensemble(Storage(tmp_path), make_spec(0).key) is None


def test_asked_for_no_ensembles_nothing_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    assert obtain_ensembles([], Storage(tmp_path)) == []
    assert not list(tmp_path.iterdir())
