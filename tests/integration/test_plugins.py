"""Ideas of a user's own, in a file beside the sweep, up to the exported policy."""

import json

import gymnasium
import h5py
import numpy as np
import pytest
import torch

import orchestrator as o
from algorithms.storage import Storage
from orchestrator.export import find_result
from orchestrator.results import ResultStore
from orchestrator.sweep.cell import cells_of
from orchestrator.sweep.model import load_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]

IDEAS = """
import gymnasium
import torch

from algorithms.mopo.agent import MOPO
from algorithms.mopo.settings import MOPOSettings
from algorithms.plugins import algorithm, environment, penalty


@penalty("mine", label="Mine")
def mine(p):
    return 2.0 * p.std.norm(dim=-1).amax(dim=-2)


class CautiousSettings(MOPOSettings):
    caution: float = 2.0


@algorithm("cautious", settings=CautiousSettings)
class Cautious(MOPO):
    def __init__(self, context):
        super().__init__(context)
        self.penalty_coef_S = self.penalty_coef_S * self.settings.caution

    def describe_rollout(self, model):
        coefficient = {"penalty_coef": self.penalty_coef_S}
        return super().describe_rollout(model) | coefficient


SIZES = dict(obs_dim=4, action_dim=1, random_return=5.0, expert_return=100.0,
             max_episode_steps=100, action_low=-3.0, action_high=3.0)


@environment("InvertedPendulum-v4", **SIZES)
def falls(next_obs):
    return ~next_obs.isfinite().all(dim=-1) | (next_obs[..., 1].abs() > 0.2)


gymnasium.register(
    "Balance-v0", "gymnasium.envs.mujoco.inverted_pendulum_v4:InvertedPendulumEnv"
)
environment("Balance-v0", **SIZES)  # when it ends is learned from its data
"""


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    """A function that writes a file of random episodes in the environment's own units."""
    folder = tmp_path_factory.mktemp("pendulum")

    def pendulum(env_id, seed):
        random = np.random.default_rng(seed)
        rows = {key: [] for key in ("observations", "actions", "rewards", "next_observations")}
        terminals, timeouts = [], []
        env = gymnasium.make("InvertedPendulum-v4", max_episode_steps=100)
        while len(terminals) < 1500:
            obs, _ = env.reset(seed=int(random.integers(2**31)))
            ended = False
            while not ended:
                action = random.uniform(-3, 3, size=1).astype(np.float32)
                next_obs, reward, terminated, truncated, _ = env.step(action)
                values = (obs, action, reward, next_obs)
                for column, value in zip(rows.values(), values, strict=True):
                    column.append(np.float32(value))
                terminals.append(terminated)
                timeouts.append(truncated)
                obs, ended = next_obs, terminated or truncated
        path = folder / f"{env_id}.hdf5"
        with h5py.File(path, "w") as file:
            file.attrs["env"] = env_id
            for key, values in rows.items():
                file[key] = np.stack(values)
            file["terminals"], file["timeouts"] = terminals, timeouts
        return path

    return pendulum


@pytest.fixture
def results(no_plugins):
    """{variant: result of seed 0} of a sweep on its first data set, from the storage."""

    def results(file, storage):
        store = ResultStore(Storage(storage))
        found = {cell.variant: store.get(cell.result_key(0)) for cell in cells_of(load_sweep(file))}
        return {variant: result for variant, result in found.items() if result}

    return results


@pytest.fixture(scope="module")
def ran(new_storage, sweep_file, command_line):
    """A sweep with a penalty and an algorithm of a file beside it, after one run."""
    storage = new_storage()
    file = sweep_file(
        "ideas",
        {"penalty_coef": 1.5},
        plugins=["my_ideas.py"],
        seeds=1,
        grid={"penalty": ["max_std", "mine"]},
        variants={
            "matched": {"penalty": "mine", "penalty_coef_mode": "matched"},
            "cautious": {"algorithm": "cautious", "penalty": "max_std"},
        },
    )
    (file.parent / "my_ideas.py").write_text(IDEAS)
    return storage, file, command_line(storage)("run", file)


def test_a_penalty_and_an_algorithm_of_ones_own_have_their_rows_in_the_table(ran, results):
    storage, file, done = ran
    assert done.returncode == 0, done.stdout + done.stderr
    assert "to run: 4 seeds in 4 cells, 1 dynamics ensemble to train" in done.stdout
    assert "plugin my_ideas.py" not in done.stderr
    for variant in ("penalty=max_std", "penalty=mine", "matched", "cautious"):
        assert variant in done.stdout
    found = results(file, storage)
    assert {variant: (r.status, r.epochs) for variant, r in found.items()} == dict.fromkeys(
        ["penalty=max_std", "penalty=mine", "matched", "cautious"], ("finished", 2)
    )


@pytest.fixture
def curves(ran, results):
    """{variant: curve of seed 0}."""
    storage, file, _ = ran
    found = results(file, storage)
    return {v: ResultStore(Storage(storage)).get_curve(r.key) for v, r in found.items()}


def test_the_formula_and_the_agent_of_the_file_are_what_trained(curves):
    """Twice `max_std` is the penalty; the cautious agent's coefficient is twice as set."""
    first = {variant: curve.iloc[0] for variant, curve in curves.items()}
    assert first["penalty=mine"]["penalty"] == pytest.approx(
        2 * first["penalty=max_std"]["penalty"], rel=1e-4
    )
    assert first["cautious"]["penalty_coef"] == pytest.approx(3.0)
    assert first["penalty=mine"]["critic_loss"] != first["penalty=max_std"]["critic_loss"]
    # Matched to max_std, twice max_std is max_std: the same training but for rounding.
    for metric in ("critic_loss", "actor_loss", "q_model"):
        assert first["matched"][metric] == pytest.approx(
            first["penalty=max_std"][metric], rel=1e-3
        ), metric


def test_a_second_run_trains_nothing(ran, command_line):
    storage, file, _ = ran
    again = command_line(storage)("run", file, RAY_ADDRESS="127.0.0.1:1")  # no Ray answers there
    assert again.returncode == 0, again.stderr
    assert "nothing to run: 4 cells done" in again.stdout


def test_an_edited_file_makes_its_cells_new_and_no_ensemble(ran, command_line):
    storage, file, _ = ran
    ideas = file.parent / "my_ideas.py"
    ideas.write_text(IDEAS.replace("2.0 * p.std", "3.0 * p.std"))
    try:
        planned = json.loads(command_line(storage)("plan", file, "--json").stdout)
    finally:
        ideas.write_text(IDEAS)
    assert {cell["variant"]: cell["new"] for cell in planned["cells"]} == {
        "penalty=max_std": [],
        "penalty=mine": [0],
        "matched": [0],
        "cautious": [0],
    }
    assert [(e["cached"], e["to_train"]) for e in planned["ensembles"]] == [(True, False)]


def test_environments_of_ones_own_train_where_the_file_is_not_and_answer_in_their_units(
    new_storage, sweep_file, pendulum, no_plugins, capfd
):
    """With a termination function and with a learned one; workers have the source by value."""
    storage = new_storage()
    env_ids = ["InvertedPendulum-v4", "Balance-v0"]
    file = sweep_file(
        "own",
        plugins=["gone.py"],
        seeds=1,
        datasets=[f"file:{pendulum(env_id, seed)}" for seed, env_id in enumerate(env_ids)],
        grid={"penalty": ["mine"]},
        parallel_evaluation=True,  # in a process that has to know the environment, too
    )
    (file.parent / "gone.py").write_text(IDEAS)
    experiment = o.load(file, storage=storage)
    planned = experiment.plan()
    (file.parent / "gone.py").unlink()
    assert len(planned.ensembles_to_train) == 2
    table = experiment.run()
    assert list(table["status"]) == ["finished", "finished"], capfd.readouterr().err
    assert table["score"].notna().all()
    assert table["behaviour_score"].between(-5, 60).all()
    for cell in (entry.cell for entry in planned.cells):
        raw = find_result(cell.name, 0, Storage(storage))
        assert raw.action_bounds == (-3.0, 3.0)
        policy = o.policy(cell.name, 0, storage=storage)
        obs = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * 30
        action = policy(obs)
        unit = torch.tanh(policy.policy(obs).chunk(2, dim=-1)[0])
        torch.testing.assert_close(action, 3.0 * unit)
        assert 1.0 < action.abs().max() <= 3.0
    curves = experiment.curves()
    ended = curves.groupby("dataset")["rollout_terminated"].max()
    assert (ended > 0).all(), ended
