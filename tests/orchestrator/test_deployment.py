from pathlib import Path

import pytest

from algorithms.errors import UserError
from algorithms.storage import Storage
from orchestrator.deployment import Deployment


def test_defaults_are_embedded():
    deployment = Deployment.from_environment(environ={})
    assert deployment.storage == Storage(Path.home() / "orchestrator")
    assert deployment.tracking_uri == f"sqlite:///{deployment.storage}/mlflow.db"
    assert deployment.ray_address is None


def test_the_environment_decides_and_an_option_wins(tmp_path):
    environ = {
        "ORCHESTRATOR_STORAGE": str(tmp_path / "a"),
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "RAY_ADDRESS": "auto",
    }
    deployment = Deployment.from_environment(environ=environ)
    assert deployment == Deployment(Storage(tmp_path / "a"), "http://mlflow:5000", "auto")
    assert Deployment.from_environment(tmp_path / "b", environ).storage == Storage(tmp_path / "b")


def test_a_relative_storage_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Deployment.from_environment(Path("here"), {}).storage == Storage(tmp_path / "here")


def test_only_prepare_creates_the_storage(storage):
    deployment = Deployment.from_environment(storage, {})
    assert not storage.exists()
    deployment.prepare()
    assert list(storage.iterdir()) == []


@pytest.mark.parametrize("below", [".", "deeper/still"])
def test_a_file_in_the_way_is_named(tmp_path, below):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match=f"{file} is not a folder"):
        Deployment.from_environment(file / below, {})


def test_a_storage_that_cannot_be_created_is_named():
    with pytest.raises(UserError, match=r"storage /proc/x cannot be written .*--storage"):
        Deployment.from_environment(Path("/proc/x"), {}).prepare()
