"""Sources of data: chosen by how an id begins, and another one is one file and one row."""

import types

import numpy as np
import pytest

from algorithms.data import source
from algorithms.data.dataset import OfflineDataset
from algorithms.data.spec import DatasetSpec
from algorithms.errors import UserError
from algorithms.storage import Storage


@pytest.fixture
def noise(monkeypatch):
    """A source of random data, `noise:SEED`, as a module and a row."""
    module = types.ModuleType("noise")

    def resolve(dataset_id, choices, storage):
        env, size = choices.env, choices.size
        return DatasetSpec(id=dataset_id, env_id=env, content_hash=dataset_id, size=size)

    def load(spec, storage, progress):
        random = np.random.default_rng(int(spec.id.removeprefix("noise:")))
        obs = random.normal(size=(spec.size, 11)).astype(np.float32)
        flag = np.arange(spec.size) % 5 == 4
        columns = (obs, obs[:, :3], obs[:, 0], obs, np.zeros(spec.size, np.float32), flag)
        return OfflineDataset(*columns)

    module.resolve, module.load = resolve, load
    module.missing = lambda spec, storage: None
    module.at_hand = lambda spec, storage: True
    module.to_download = lambda spec, storage: 0
    monkeypatch.setitem(source.SOURCES, "noise:", "a.module.of.its.own")
    monkeypatch.setattr(source, "import_module", lambda name: module)


def test_another_source_is_one_module_and_one_row(noise, tmp_path):
    storage = Storage(tmp_path)
    spec = source.resolve("noise:3", env="Hopper-v4", size=20)
    assert source.missing(spec, storage) is None
    assert source.at_hand(spec, storage)
    assert len(source.load(spec, storage).episode_ends) == 4


@pytest.mark.parametrize("dataset_id", ["bundled/nothing", "d4rl/ant-v2", "hopper", "https://x"])
def test_a_name_that_no_source_knows_is_told_with_those_that_are(dataset_id):
    with pytest.raises(UserError) as error:
        source.resolve(dataset_id)
    assert f"unknown data set {dataset_id!r}: one of bundled/" in str(error.value)
    assert "file:PATH" in str(error.value)


@pytest.mark.parametrize("path", ["~nobody-has-this-name/x.hdf5", "~nobody-has-this-name"])
def test_somebody_without_a_home_is_a_mistake(path):
    with pytest.raises(UserError, match=f"file:{path}: .* Give a path without ~") as error:
        source.resolve(f"file:{path}")
    assert "\n" not in str(error.value)
