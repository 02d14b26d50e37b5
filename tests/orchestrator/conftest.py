import sqlite3
import sys
import uuid
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

sys.path.append(str(Path(__file__).parent))

from mlflow_server import MLflowServer

from algorithms.data import hdf5
from algorithms.environments.table import make_env
from algorithms.storage import Storage
from orchestrator.results import ResultStore, SeedResult
from orchestrator.sweep.cell import cells_of
from orchestrator.sweep.model import Sweep, load_sweep

QUICKSTART = {
    "name": "quickstart",
    "question": "Does penalising model uncertainty help?",
    "algorithm": "mopo",
    "datasets": ["bundled/hopper-medium-replay"],
    "seeds": 2,
    "grid": {"penalty": ["none", "max_std"]},
    "fixed": {"penalty_coef": 2.5, "epochs": 5},
    "dynamics_seeds": "shared",
}


@pytest.fixture
def quickstart():
    """The quickstart as a mapping, to be changed by a test."""
    return yaml.safe_load(yaml.safe_dump(QUICKSTART))


@pytest.fixture
def comparison():
    """A sweep that only tells its data and its seeds."""
    return {"name": "comparison", "datasets": ["bundled/hopper-medium-replay"], "seeds": 2}


@pytest.fixture
def load(tmp_path):
    """Text or a mapping -> a sweep that was read from a file of it."""

    def load(content: str | dict) -> Sweep:
        path = tmp_path / "sweep.yaml"
        path.write_text(
            content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        )
        return load_sweep(path)

    return load


@pytest.fixture
def expand(load):
    """Text or a mapping -> the cells of the sweep."""
    return lambda content: cells_of(load(content))


@pytest.fixture
def storage(tmp_path):
    """A storage folder that does not exist yet."""
    return tmp_path / "storage"


@pytest.fixture
def finish(storage):
    """Enter a result of one seed of a cell into the storage, as a training would."""

    def finish(cell, seed, *, epochs=None, checkpoint=None, position=0, **fields) -> SeedResult:
        epochs = cell.settings.epochs if epochs is None else epochs
        folder = storage / "trials" / (checkpoint or cell.name)
        folder.mkdir(parents=True, exist_ok=True)
        values = {
            "key": cell.result_key(seed),
            "cell": cell.name,
            "seed": seed,
            "epochs": epochs,
            "run_score": 10.0,
            "behaviour_score": 7.5,
            "minutes": 3.0,
            "checkpoint": str(folder),
            "position": position,
            "ensemble_key": (spec := cell.ensemble(seed)) and spec.key,
            "status": "finished" if epochs >= cell.settings.epochs else "running",
        }
        result = SeedResult(**values | fields)
        ResultStore(Storage(storage)).put(result)
        return result

    return finish


@lru_cache
def random_hopper(rows, seed):
    """Columns of D4RL's layout; the last episode is cut where the rows are full."""
    env, random = make_env("Hopper-v4"), np.random.default_rng(seed)
    columns = {key: [] for key in hdf5.KEYS.values()}
    obs, _ = env.reset(seed=seed)
    for row in range(rows):
        action = random.uniform(-1, 1, 3).astype(np.float32)
        next_obs, reward, terminal, timeout, _ = env.step(action)
        timeout = timeout or (row == rows - 1 and not terminal)
        values = (obs, action, reward, next_obs, terminal, timeout)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
        obs = env.reset()[0] if terminal or timeout else next_obs
    env.close()
    arrays = {key: np.array(column) for key, column in columns.items()}
    return {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}


@pytest.fixture
def hopper_file(tmp_path):
    """Write a small file in D4RL's layout, rolled out in Hopper-v4 with random actions."""

    def write(name="data.hdf5", rows=300, seed=0):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for column, values in random_hopper(rows, seed).items():
                file[column] = values
        return path

    return write


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """The server that these tests share: each uses its own sweep name."""
    server = MLflowServer(tmp_path_factory.mktemp("mlflow"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def own_mlflow_server(tmp_path, mlflow_server):
    """A server to lose; not started yet. A copy of the store saves making its tables."""
    with (
        closing(sqlite3.connect(mlflow_server.folder / "mlflow.db")) as source,
        closing(sqlite3.connect(tmp_path / "mlflow.db")) as copy,
    ):
        source.backup(copy)
    server = MLflowServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def sweep():
    """A name that no other test gives its sweep."""
    return f"sweep-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def client(mlflow_server):
    """A client of the shared server."""
    from mlflow import MlflowClient  # the tests beside these start faster without it

    return MlflowClient(mlflow_server.uri)
