"""Reading files in D4RL's layout, and every way in which one can be wrong."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from algorithms.data import hdf5, source
from algorithms.data.checks import CHECKS
from algorithms.data.columns import REQUIRED
from algorithms.data.source import load, missing
from algorithms.dynamics.spec import EnsembleSpec
from algorithms.environments.table import ENVIRONMENTS
from algorithms.errors import UserError
from algorithms.identity import file_sha256
from algorithms.settings import EnsembleSettings
from algorithms.storage import Storage

SHARED = Path(__file__).parents[4] / "shared" / "data"


def arrays(rows: int = 6) -> dict[str, np.ndarray]:
    """Hopper: an episode of 3 rows to a terminal, one of 2 to a timeout, 1 row unfinished."""
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(rows, 11)),
        "actions": rng.uniform(-1, 1, size=(rows, 3)),
        "rewards": np.array([1.0, 2, 3, 10, 20, 1000])[:rows],
        "next_observations": rng.normal(size=(rows, 11)),
        "terminals": np.arange(rows) == 2,
        "timeouts": np.arange(rows) == 4,
    }


def resolve(dataset_id, **arguments):
    """Six made-up rows are implausible in several ways, which is not the matter here."""
    return source.resolve(dataset_id, allow=tuple(CHECKS), **arguments)


@pytest.fixture
def make_file(tmp_path):
    def make(content: dict, **attributes) -> Path:
        path = tmp_path / "data.hdf5"
        with h5py.File(path, "w") as file:
            for key, value in content.items():
                file[key] = value
            file.attrs.update(attributes)
        return path

    return make


def error_of(path: Path, **arguments) -> str:
    """The sentence of the `UserError`: one, which names the file."""
    with pytest.raises(UserError) as caught:
        resolve(f"file:{path}", **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_file_loads_as_it_is_stored(make_file, tmp_path):
    content = arrays()
    path = make_file(content)
    spec = resolve(f"file:{path}", env="Hopper-v4")
    assert (spec.id, spec.env_id, spec.size) == (f"file:{path}", "Hopper-v4", 6)
    assert spec.content_hash == file_sha256(path)
    data = load(spec, Storage(tmp_path / "storage"))
    for name, key in hdf5.KEYS.items():
        array = getattr(data, name)
        assert array.flags.c_contiguous
        assert array.dtype == (bool if name == "timeout" else np.float32)
        np.testing.assert_allclose(array, content[key], rtol=1e-6)
    assert not (tmp_path / "storage").exists()


def test_the_path_becomes_absolute(make_file, monkeypatch):
    path = make_file(arrays(), env="Hopper-v4")
    monkeypatch.chdir(path.parent)
    assert resolve("file:data.hdf5") == resolve(f"file:{path}")


def test_the_behaviour_score_is_the_mean_over_complete_episodes(make_file, tmp_path):
    spec = resolve(f"file:{make_file(arrays(), env='Hopper-v4')}")
    data = load(spec, Storage(tmp_path / "storage"))
    assert data.episode_ends.tolist() == [3, 5]
    assert data.episode_returns().tolist() == [6, 30]
    env = ENVIRONMENTS["Hopper-v4"]
    expected = 100 * (18 - env.random_return) / (env.expert_return - env.random_return)
    assert data.behaviour_score("Hopper-v4") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("content", "attributes"),
    [
        ({}, {"env": "Hopper-v4"}),
        ({}, {"env_id": "Hopper-v4"}),
        ({}, {"env_name": "Hopper-v4"}),
        ({}, {"info": json.dumps({"env": "Hopper-v4"})}),
        ({"metadata/env_id": "Hopper-v4"}, {"info": "not JSON"}),
    ],
)
def test_the_environment_is_read_from_the_file(make_file, content, attributes):
    path = make_file(arrays() | content, **attributes)
    assert resolve(f"file:{path}").env_id == "Hopper-v4"


def test_a_given_environment_comes_before_the_files_own(make_file):
    path = make_file(arrays(), env="Hopper-v2")
    assert resolve(f"file:{path}", env="Hopper-v4").env_id == "Hopper-v4"
    assert "unknown env 'Hopper-v2': one of " in error_of(path)


def test_a_file_that_names_no_environment(make_file):
    assert "give env, one of " in error_of(make_file(arrays()))


def test_the_task_of_a_file_is_no_part_of_its_identity(make_file):
    path = make_file(arrays(), env="Hopper-v4")
    plain, named = resolve(f"file:{path}"), resolve(f"file:{path}", task="hopper-medium-replay")
    assert (plain.task, named.task) == (None, "hopper-medium-replay")
    assert (named.content_hash, named.slug) == (plain.content_hash, plain.slug)
    keys = {
        EnsembleSpec(dataset=dataset, settings=EnsembleSettings(), seed=0).key
        for dataset in (plain, named)
    }
    assert len(keys) == 1


def test_the_task_of_a_file_must_be_of_its_environment(make_file):
    message = error_of(make_file(arrays(), env="Hopper-v4"), task="walker2d-medium")
    assert message.startswith("task walker2d-medium is of env Walker2d-v4, but ")
    tasks = message.rpartition(": ")[2].split(", ")
    assert {"hopper-medium", "hopper-medium-replay", "hopper-medium-expert"} <= set(tasks)
    assert all(task.startswith("hopper-") for task in tasks)


def test_a_file_is_missing_once_it_is_gone(make_file, tmp_path):
    path = make_file(arrays(), env="Hopper-v4")
    spec = resolve(f"file:{path}")
    assert missing(spec, Storage(tmp_path)) is None
    path.unlink()
    assert str(path) in missing(spec, Storage(tmp_path))


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named(make_file, key):
    content = arrays()
    del content[key]
    assert f"has no {key}: needed are observations, actions, rewards" in error_of(
        make_file(content, env="Hopper-v4")
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "next_observations"])
def test_values_that_are_not_finite_in_float32(make_file, key, value):
    content = arrays()
    content[key][3] = value
    message = error_of(make_file(content, env="Hopper-v4"))
    assert f"{key} holds NaN or infinite values in 1 of 6 rows, first in row 3" in message


@pytest.mark.parametrize(
    ("key", "array", "said"),
    [
        (
            "rewards",
            np.zeros(5),
            "rewards has shape (5,), but 6 observations of Hopper-v4 need (6,)",
        ),
        ("rewards", np.zeros((6, 1)), "rewards has shape (6, 1)"),
        ("actions", np.zeros((6, 6)), "actions has shape (6, 6), but"),
        ("observations", np.zeros((6, 17)), "observations has shape (6, 17), but"),
        ("observations", np.zeros((0, 11)), "holds no transitions"),
        ("actions", "text", "actions does not hold numbers"),
        ("timeouts", np.zeros(6, dtype=bool), None),
    ],
)
def test_shapes_and_types(make_file, key, array, said):
    content = arrays() | {key: array}
    path = make_file(content, env="Hopper-v4")
    if said is None:
        assert resolve(f"file:{path}").size == 6
    else:
        assert said in error_of(path)


def test_a_file_in_which_no_episode_ends(make_file):
    content = arrays() | {"terminals": np.zeros(6), "timeouts": np.zeros(6)}
    assert "no episode ends" in error_of(make_file(content, env="Hopper-v4"))


def test_a_missing_file_and_one_that_is_not_hdf5(tmp_path, make_file):
    assert "no file" in error_of(tmp_path / "nothing.hdf5", env="Hopper-v4")
    text = tmp_path / "text.hdf5"
    text.write_text("observations")
    assert "cannot be read as HDF5" in error_of(text)
    cut = make_file(arrays(), env="Hopper-v4")
    cut.write_bytes(cut.read_bytes()[:2000])
    assert "cannot be read as HDF5" in error_of(cut)


def test_a_file_that_changes_after_it_was_planned(make_file, tmp_path):
    path = make_file(arrays(), env="Hopper-v4")
    spec = resolve(f"file:{path}")
    make_file(arrays() | {"rewards": np.ones(6)}, env="Hopper-v4")
    with pytest.raises(UserError, match="has changed since it was planned"):
        load(spec, Storage(tmp_path))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the development data beside the repository")
@pytest.mark.parametrize(
    ("name", "env_id", "score"),
    [("hopper-mixture", "Hopper-v4", 11.8), ("walker2d-medium", "Walker2d-v4", 29.5)],
)
def test_real_files(name, env_id, score, tmp_path):
    spec = source.resolve(f"file:{SHARED / name}.hdf5")
    assert (spec.notes, spec.warnings) == ((), ())
    assert spec.env_id == env_id
    assert load(spec, Storage(tmp_path)).behaviour_score(env_id) == pytest.approx(score, abs=0.1)
