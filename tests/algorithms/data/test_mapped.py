"""Large data are kept once per machine, mapped, and given to the learner without a copy."""

import numpy as np
import pytest
import torch

from algorithms.data import mapped, source
from algorithms.data.source import load, resolve
from algorithms.stack.transitions import Transition
from algorithms.storage import Storage


@pytest.fixture
def large(monkeypatch, tmp_path, columns):
    """A file that counts as large, and its spec."""
    monkeypatch.setattr(mapped, "MAPPED_ABOVE", 1000)
    np.savez(tmp_path / "x.npz", **columns)
    return resolve(f"file:{tmp_path / 'x.npz'}", env="Hopper-v4")


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "storage")


def test_mapped_data_are_the_data(large, storage, rolled_out):
    for data in (load(large, storage), load(large, storage)):
        for mine, original in zip(data, rolled_out, strict=True):
            np.testing.assert_array_equal(mine, original)
            assert mine.dtype == original.dtype
        assert isinstance(data.obs.base.base, np.memmap)


def test_a_second_process_does_not_read_the_file_again(large, storage, monkeypatch):
    load(large, storage)
    monkeypatch.setattr(source, "source_of", lambda dataset_id: None)
    assert len(load(large, storage).reward) == 1000


def test_the_learner_takes_mapped_rows_without_a_copy(large, storage):
    data = Transition.from_numpy(load(large, storage))
    rows = data.packed_in_place()
    assert rows.data_ptr() == data.obs.data_ptr()
    torch.testing.assert_close(rows, data.pack(), rtol=0, atol=0)
    # What lies elsewhere is copied, and so are views that are not side by side.
    apart = Transition(*(x.clone() for x in data))
    torch.testing.assert_close(apart.packed_in_place(), data.pack(), rtol=0, atol=0)
    mixed = data._replace(reward=data.reward + 1)
    assert mixed.packed_in_place()[:, 14].tolist() == mixed.reward.tolist()
    torch.testing.assert_close(mixed.packed_in_place(), mixed.pack(), rtol=0, atol=0)
    upside_down = Transition(*(x.flip(0) for x in data))
    torch.testing.assert_close(upside_down.packed_in_place(), upside_down.pack(), rtol=0, atol=0)


def test_a_damaged_file_is_made_again(large, storage, rolled_out, caplog):
    load(large, storage)
    (rows,) = storage.path("data/arrays").glob("*/rows.npy")
    content = bytearray(rows.read_bytes())
    content[-1] ^= 1
    rows.write_bytes(bytes(content))
    np.testing.assert_array_equal(load(large, storage).terminal, rolled_out.terminal)
    assert "is damaged: making it again" in caplog.text
    np.testing.assert_array_equal(load(large, storage).terminal, rolled_out.terminal)
    assert caplog.text.count("is damaged") == 1


def test_a_storage_that_cannot_be_written_costs_sharing_only(large, storage, monkeypatch, caplog):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Storage, "publish", full)
    assert len(load(large, storage).reward) == 1000
    assert "is not shared between processes" in caplog.text
