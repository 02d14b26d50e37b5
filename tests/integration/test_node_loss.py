"""A cluster that loses a machine in the middle of a sweep."""

import io
import threading

import pytest
import ray
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from rich.console import Console

from algorithms.storage import Storage
from orchestrator.deployment import Deployment
from orchestrator.results import ResultStore
from orchestrator.run import run
from orchestrator.sweep.cell import cells_of
from orchestrator.sweep.model import load_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EPOCHS = 80


@pytest.fixture
def cluster():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_trials_of_a_lost_node_go_on_elsewhere(cluster, new_storage, sweep_file, wait_until):
    lost, _ = (cluster.add_node(num_cpus=1) for _ in range(2))
    cluster.wait_for_nodes()
    storage = new_storage()
    file = sweep_file(
        "node", {"epochs": EPOCHS}, seeds=1, checkpoint_minutes=0.001, question="Who survives?"
    )
    sweep = load_sweep(file)
    cells = cells_of(sweep)
    store = ResultStore(Storage(storage))
    at_loss = {}

    def progress():
        found = (store.get(cell.result_key(0)) for cell in cells)
        return {result.cell: result.epochs for result in found if result}

    def lose_a_node():
        # Both trials have a checkpoint: with one CPU a node, one of them is on this node.
        wait_until(lambda: len(progress()) == 2 and min(progress().values()) >= 3)
        at_loss.update(progress())
        cluster.remove_node(lost, allow_graceful=False)

    accident = threading.Thread(target=lose_a_node)
    accident.start()
    uri = f"sqlite:///{storage}/mlflow.db"
    out = io.StringIO()
    outcome = run(
        sweep, Deployment(Storage(storage), uri, cluster.address), Console(file=out, width=200)
    )
    accident.join()
    assert outcome.failed == [], out.getvalue()
    assert len(at_loss) == 2
    assert max(at_loss.values()) < EPOCHS
    assert set(progress().values()) == {EPOCHS}
    # On the node that is left they ran one after the other, each from its checkpoint.
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("node").experiment_id
    for cell in cells:
        penalty = f"params.penalty = '{cell.settings.penalty}'"
        (recorded,) = client.search_runs([experiment], penalty)
        history = client.get_metric_history(recorded.info.run_id, "alpha")
        steps = [point.step for point in history]
        assert set(steps) == set(range(1, EPOCHS + 1))
        again = len(steps) - EPOCHS  # epochs since the last checkpoint
        assert again <= EPOCHS - at_loss[cell.name]
        values = {(point.step, point.value) for point in history}
        assert len(values) == EPOCHS, "an epoch that ran twice came out differently"
