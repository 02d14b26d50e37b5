"""Stopping and continuing equals not stopping, bit for bit."""

import io

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from algorithms.data import hdf5, source
from algorithms.data.checks import CHECKS
from algorithms.dynamics.service import train_ensemble
from algorithms.dynamics.spec import EnsembleSpec
from algorithms.dynamics.store import read_ensemble
from algorithms.dynamics.training import EnsembleTraining
from algorithms.errors import UserError
from algorithms.settings import EnsembleSettings
from algorithms.stack.randomness import set_generator_states
from algorithms.stack.state import select_seeds
from algorithms.storage import Storage

SMALL = EnsembleSettings(
    num_ensemble=3,
    num_elites=2,
    dynamics_hidden=(8,),
    dynamics_weight_decay=(1e-5, 1e-5),
    dynamics_batch_size=32,
    dynamics_max_epochs=5,
)


def through_bytes(state):
    return load_tensors(save_tensors({name: value.contiguous() for name, value in state.items()}))


def run(training, epochs):
    """Train, with a score after each epoch, and return the last epoch's statistics."""
    for _ in range(epochs):
        statistics = training.train_epoch()
        training.record_scores(statistics["critic_loss"])
    return statistics


def assert_identical(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, equal_nan=True, msg=name)


# Two epochs fill 120 rows when nothing terminates; rows end early, so more are needed.
@pytest.mark.parametrize(("before", "wrapped"), [(0, False), (1, False), (6, True)])
def test_policy_training_continues_bit_for_bit(offline_training, before, wrapped):
    continues_bit_for_bit(lambda: offline_training((3, 8)), before, wrapped=wrapped)


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        # The warm-up ends after the interruption, so that its count must survive.
        ("combo", {"beta": "learned", "prior": "previous_policy", "beta_warmup_steps": 60}),
        ("combo", {"beta": "learned", "actor_lr_schedule": "cosine", "epochs": 5}),
        ("cql", {"gradient_steps_per_epoch": 10}),
        ("sac", {"gradient_steps_per_epoch": 10}),
        # A draw of noise ends in the middle of an epoch; alpha is at its bound.
        ("mobile", {"alpha_max": 0.9}),
        ("mobile", {"alpha": 0.2, "actor_lr_schedule": "cosine", "epochs": 5}),
    ],
)
def test_every_agent_continues_bit_for_bit(offline_training, algorithm, changes, before):
    state = continues_bit_for_bit(lambda: offline_training((3, 8), algorithm, **changes), before)
    if changes.get("beta") == "learned" and before:
        assert state["log_beta"].all()  # it moved away from 0
        assert state["optimizers/beta/0/exp_avg"].all()
        previous, current = (state[f"{k}weights.0"] for k in ("previous_actor/", "networks/actor."))
        assert not torch.equal(previous, current)


def continues_bit_for_bit(make, before, *, wrapped=False):
    """Interrupts a training after `before` epochs; the state that it ends with."""
    through = make()
    if before:
        run(through, before)
    assert (through.buffer.size_S == through.buffer.capacity).all() == (
        wrapped or not through.buffer.capacity
    )
    through.seconds = 12.5
    content = through_bytes(through.state_dict())
    statistics = run(through, 2)

    resumed = make()
    run(resumed, 1)  # whatever it did before must be forgotten
    resumed.load_state_dict(content)
    assert_identical(resumed.state_dict(), content)
    assert_identical(run(resumed, 2), statistics)
    assert_identical(resumed.state_dict(), through.state_dict())
    assert torch.equal(resumed.run_score(), through.run_score())
    assert (resumed.epoch, resumed.seconds) == (before + 2, through.seconds)
    return resumed.state_dict()


def test_buffers_that_filled_differently_are_kept_whole(offline_training):
    training = offline_training((3, 8))
    run(training, 1)
    size = training.buffer.size_S
    assert size[0] != size[1]
    state = through_bytes(training.state_dict())
    assert state["buffer/rows"].shape[1] == size.max()
    for s in range(2):
        assert torch.equal(
            state["buffer/rows"][s, : size[s]], training.buffer.rows_SNW[s, : size[s]]
        )


@pytest.mark.parametrize("positions", [[1], [2, 0]])
def test_some_seeds_of_a_checkpoint_continue_as_they_would_have_together(
    offline_training, positions
):
    seeds = (3, 8, 5)
    company = offline_training(seeds)
    run(company, 2)
    content = through_bytes(company.state_dict())
    run(company, 2)

    selected = offline_training(tuple(seeds[p] for p in positions))
    selected.load_state_dict(select_seeds(content, positions))
    run(selected, 2)
    expected = select_seeds(company.state_dict(), positions)
    rows = selected.state_dict()["buffer/rows"].shape[1]
    for name, value in selected.state_dict().items():
        other = expected[name][:, :rows] if name == "buffer/rows" else expected[name]
        torch.testing.assert_close(value, other, rtol=0, atol=1e-4, equal_nan=True, msg=name)


def test_ensemble_training_continues_bit_for_bit(linear_data):
    data = linear_data(300)
    through = EnsembleTraining(data, SMALL, (0, 1))
    for _ in range(2):
        through.train_epoch()
    file = io.BytesIO()
    torch.save(through.state_dict(), file)
    rest = [through.train_epoch() for _ in range(3)]

    resumed = EnsembleTraining(data, SMALL, (0, 1))
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert [resumed.train_epoch() for _ in range(3)] == rest
    assert resumed.finished
    ensemble, metrics = resumed.result()
    expected, expected_metrics = through.result()
    assert_identical(ensemble.state_dict(), expected.state_dict())
    assert metrics == expected_metrics


@pytest.fixture
def spec(tmp_path):
    """An ensemble on a small file of Hopper's sizes."""
    rng = np.random.default_rng(0)
    rows = 300
    data = hdf5.OfflineDataset(
        *(rng.normal(size=(rows, *shape)).astype(np.float32) for shape in ((11,), (3,), (), (11,))),
        terminal=np.zeros(rows, dtype=np.float32),
        timeout=np.arange(rows) % 100 == 99,
    )
    path = tmp_path / "data.hdf5"
    path.write_bytes(hdf5.encode(data, {}))
    dataset = source.resolve(f"file:{path}", env="Hopper-v4", allow=list(CHECKS))
    return EnsembleSpec(dataset=dataset, settings=SMALL, seed=4)


@pytest.mark.parametrize("epochs", [1, 5])  # 5: after the last one, before the publication
def test_an_interrupted_ensemble_is_published_as_if_it_had_not_been(tmp_path, spec, epochs):
    whole, interrupted = Storage(tmp_path / "whole"), Storage(tmp_path / "interrupted")
    history = list(train_ensemble(spec, whole))
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3, 4, 5]

    first = train_ensemble(spec, interrupted)
    begun = [next(first) for _ in range(epochs)]
    first.close()
    assert read_ensemble(interrupted, spec.key) is None
    rest = list(train_ensemble(spec, interrupted))
    assert begun + rest == history

    one, other = read_ensemble(whole, spec.key), read_ensemble(interrupted, spec.key)
    assert_identical(one.weights, other.weights)
    assert one.description["metrics"] == other.description["metrics"]
    assert one.description["history"] == other.description["history"]
    kept = (tmp_path / "interrupted" / "ensembles").iterdir()
    assert [path.name for path in kept] == [spec.key]  # no checkpoint


def test_an_ensemble_that_diverged_is_not_published(tmp_path, spec):
    # Rewards whose square overflows: no member ever has a finite error on the holdout.
    path = tmp_path / "huge.hdf5"
    data = source.load(spec.dataset, Storage(tmp_path))
    path.write_bytes(hdf5.encode(data._replace(reward=data.reward + np.float32(1e25)), {}))
    dataset = source.resolve(f"file:{path}", env="Hopper-v4", allow=list(CHECKS))
    huge = spec.model_copy(update={"dataset": dataset})
    with pytest.raises(UserError, match="diverged: lower dynamics_lr"):
        list(train_ensemble(huge, Storage(tmp_path)))
    assert not list((tmp_path / "ensembles").iterdir())


def test_random_numbers_of_another_kind_of_device_are_refused():
    generators = [torch.Generator()]
    with pytest.raises(UserError, match="was not written on cpu"):
        set_generator_states(generators, torch.zeros(1, 16, dtype=torch.uint8))
