from pathlib import Path

import pytest

from algorithms.errors import UserError
from orchestrator.deployment import Settings


def test_defaults_are_embedded():
    settings = Settings.from_environment(environ={})
    assert settings.storage == Path.home() / "orchestrator"
    assert settings.tracking_uri == f"sqlite:///{settings.storage}/mlflow.db"
    assert settings.ray_address is None


def test_the_environment_decides_and_an_option_wins(tmp_path):
    environ = {
        "ORCHESTRATOR_STORAGE": str(tmp_path / "a"),
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "RAY_ADDRESS": "auto",
    }
    settings = Settings.from_environment(environ=environ)
    assert settings == Settings(tmp_path / "a", "http://mlflow:5000", "auto")
    assert Settings.from_environment(tmp_path / "b", environ).storage == tmp_path / "b"


def test_a_relative_storage_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Settings.from_environment(Path("here"), {}).storage == tmp_path / "here"


def test_only_prepare_creates_the_storage(storage):
    settings = Settings.from_environment(storage, {})
    assert not storage.exists()
    settings.prepare()
    assert list(storage.iterdir()) == []


@pytest.mark.parametrize("below", [".", "deeper/still"])
def test_a_file_in_the_way_is_named(tmp_path, below):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match=f"{file} is not a folder"):
        Settings.from_environment(file / below, {})


def test_a_storage_that_cannot_be_created_is_named():
    with pytest.raises(UserError, match=r"storage /proc/x cannot be written .*--storage"):
        Settings.from_environment(Path("/proc/x"), {}).prepare()
