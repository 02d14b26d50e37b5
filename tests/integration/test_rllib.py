"""The algorithm as RLlib's users know it: configure, train, evaluate, save, restore, export."""

import json
import math
import shutil
import subprocess
import sys

import pytest
import ray
import torch
from ray import tune
from safetensors.torch import load, save

from algorithms.errors import UserError
from algorithms.rllib import MOPO, MOPOConfig, algorithm_class, config_class
from algorithms.rllib.algorithm import Epoch
from algorithms.training.checkpoint import CHECKPOINT_FORMAT

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def config(dataset, settings, new_storage):
    return (
        MOPOConfig()
        .environment("Hopper-v4")
        .offline(dataset=dataset, seeds=2, storage=new_storage())
        .training(**settings | {"epochs": 10})
    )


@pytest.fixture(scope="module")
def algo(config, local_ray):
    """An algorithm after two epochs."""
    algo = config.copy(copy_frozen=False).build_algo()
    algo.train()
    algo.train()
    yield algo
    algo.stop()


@pytest.fixture(scope="module")
def checkpoint(algo, tmp_path_factory):
    return algo.save_to_path(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def trained(algo, checkpoint):
    """The algorithm in memory and the result of epoch 3; `checkpoint` holds it at epoch 2."""
    in_memory = algo.get_state()
    return in_memory, algo.train()


def diverge(algo, seed):
    with torch.no_grad():
        algo.training.networks.critic.biases[-1][seed] = 1e9  # more than any return


def assert_same_training(a, b):
    a, b = a.training.state_dict(), b.training.state_dict()
    assert a.keys() == b.keys()
    for name in a.keys() - {"seconds"}:
        assert torch.equal(a[name].nan_to_num(), b[name].nan_to_num()), name


@pytest.mark.slow
def test_a_restored_algorithm_continues_bit_for_bit(algo, checkpoint, trained):
    _, result = trained
    restored = MOPO.from_checkpoint(checkpoint)
    assert restored.training_iteration == 2
    again = restored.train()
    assert again["training_iteration"] == again["epoch"] == 3
    assert again["seed"] == result["seed"]
    assert_same_training(restored, algo)
    restored.stop()


def test_a_state_taken_in_memory_is_a_snapshot_that_continues_bit_for_bit(config, algo, trained):
    state, result = trained
    other = config.copy(copy_frozen=False).build_algo()
    other.set_state(state)
    again = other.train()
    assert again["training_iteration"] == 3
    assert again["seed"] == result["seed"]
    assert_same_training(other, algo)
    other.stop()


def test_a_result_has_the_metrics_of_every_seed_and_their_mean(trained):
    _, result = trained
    assert set(result["seed"]) == {"0", "1"}
    assert result["seed"]["0"] != result["seed"]["1"]
    for name, mean in result["mean"].items():
        values = [result["seed"][seed][name] for seed in ("0", "1")]
        assert mean == pytest.approx(sum(values) / 2, rel=1e-5), name
    assert {"critic_loss", "penalty", "normalized_score", "run_score"} <= set(result["mean"])
    assert not result["done"]


def test_evaluate_plays_episodes_of_every_seed(algo, trained):
    scores = algo.evaluate()
    assert len(scores["episode_return"]) == len(scores["normalized_score"]) == 2


def test_a_diverged_seed_has_no_metrics_whether_evaluated_or_not(config, local_ray):
    algo = config.copy(copy_frozen=False).training(evaluation_interval=2).build_algo()
    algo.train()
    before = algo.train()["seed"]["0"]
    diverge(algo, seed=1)
    for evaluated in (False, True):
        result = algo.train()
        sound, diverged = (result["seed"][seed] for seed in ("0", "1"))
        assert (sound.pop("diverged"), diverged.pop("diverged")) == (0, 1)
        assert result["mean"].pop("diverged") == 0.5
        assert {"critic_loss", "penalty", "normalized_score", "run_score"} <= diverged.keys()
        assert ({"episode_return", "model_return"} <= diverged.keys()) == evaluated
        assert all(math.isnan(value) for value in diverged.values()), diverged
        assert result["mean"] == pytest.approx(sound)
        if not evaluated:
            assert sound["run_score"] == before["run_score"]
    algo.stop()


@pytest.fixture
def pending(monkeypatch):
    """Evaluations that have never ended when they are asked for: training runs ahead as it may."""
    monkeypatch.setattr(Epoch, "is_evaluated", lambda epoch: epoch.scores is None)


@pytest.fixture
def build(config, local_ray):
    """A function that builds the algorithm of some settings: in turns, or in parallel."""
    built = []

    def build(parallel, **settings):
        changed = config.copy(copy_frozen=False).training(**{"epochs": 6, **settings})
        built.append(changed.offline(parallel_evaluation=parallel).build_algo())
        return built[-1]

    yield build
    for algo in built:
        algo.stop()


def assert_same_rows(rows, others):
    for row, other in zip(rows, others, strict=True):
        for key in ("epoch", "training_iteration", "done"):
            assert row[key] == other[key], key
        assert ("evaluation" in row) == ("evaluation" in other)
        assert row["seed"].keys() == other["seed"].keys()
        for seed, metrics in row["seed"].items():
            assert metrics == pytest.approx(other["seed"][seed], rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("interval", [1, 2])
def test_parallel_evaluation_gives_the_results_of_evaluating_in_turns(build, pending, interval):
    """Also of a seed that diverges while earlier epochs still wait for their evaluation."""
    in_turns, beside = (build(p, evaluation_interval=interval) for p in (False, True))
    diverges_in = {1: 3, 2: 5}[interval]
    expected, rows, trained = [], [], []
    for _ in range(6):
        for algo in (in_turns, beside):
            if algo.training.epoch == diverges_in - 1:
                diverge(algo, seed=1)
        expected.append(in_turns.train())
        rows.append(beside.train())
        trained.append(beside.training.epoch)
    assert_same_rows(rows, expected)
    assert_same_training(beside, in_turns)
    # An epoch waits until those up to the next evaluation are trained.
    assert trained == {1: [2, 3, 4, 5, 6, 6], 2: [1, 4, 4, 6, 6, 6]}[interval]
    diverged = [row["epoch"] for row in rows if row["seed"]["1"]["diverged"]]
    assert diverged == list(range(diverges_in, 7))


@pytest.mark.parametrize("taken", ["in memory", "as a checkpoint"])
def test_what_ran_ahead_of_its_results_is_restored_with_them(build, pending, taken, tmp_path):
    beside = build(True, evaluation_interval=2)
    rows = [beside.train() for _ in range(2)]
    assert (beside.training.epoch, beside.training_iteration) == (4, 2)
    if taken == "in memory":
        again = build(False, evaluation_interval=2)
        again.set_state(beside.get_state())
    else:
        again = MOPO.from_checkpoint(beside.save_to_path(tmp_path))
    # The state alone, which some seeds may be continued from, has the scores of all its epochs.
    assert (~again.training.scores_SK.isnan()).sum(dim=1).tolist() == [2, 2]
    rows, others = ([*rows, *(algo.train() for _ in range(4))] for algo in (beside, again))
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert_same_rows(rows, others)
    assert_same_training(beside, again)
    again.stop()


def test_a_checkpoint_that_is_due_is_of_the_epoch_that_is_reported(build, pending):
    algo = build(True, evaluation_interval=2)
    for _ in range(2):
        assert "should_checkpoint" not in algo.train()
    assert algo.training.epoch == 4
    algo._last_checkpoint = -math.inf  # it becomes due while two epochs are not reported
    for due in (False, True):
        assert ("should_checkpoint" in algo.train()) == due
    assert algo.training.epoch == algo.training_iteration == 4
    assert (~algo.training.scores_SK.isnan()).sum(dim=1).tolist() == [2, 2]


def test_an_epoch_whose_evaluation_is_interrupted_is_reported_by_the_next_call(build, monkeypatch):
    algo = build(True)
    with monkeypatch.context() as patched:
        patched.setattr("algorithms.rllib.algorithm.wait_for", interrupt)
        with pytest.raises(KeyboardInterrupt):
            algo.train()
    assert algo.train()["epoch"] == algo.training_iteration == 1


def interrupt(_):
    raise KeyboardInterrupt


def test_a_dead_evaluation_ends_the_training(build):
    algo = build(True)
    ray.kill(algo._evaluation._process)
    with pytest.raises(ray.exceptions.RayActorError):  # after which Tune continues a trial
        algo.train()


def test_weights_are_newer_after_every_epoch(algo, trained):
    before = algo.learner.get_state()["weights_seq_no"]
    algo.train()
    assert algo.learner.get_state()["weights_seq_no"] > before


def test_the_module_is_the_stack_and_gives_each_seeds_ordinary_policy(algo):
    obs_SBO = torch.randn(2, 5, 11)
    with torch.no_grad():
        stacked = algo.get_module().forward_inference({"obs": obs_SBO})["action_dist_inputs"]
        alone = algo.get_module(seed=1)(obs_SBO[1])
    assert stacked.shape == (2, 5, 6)
    assert alone.shape == (5, 6)
    torch.testing.assert_close(alone, stacked[1])
    assert not torch.allclose(stacked[0], algo.get_module(seed=1)(obs_SBO[0]))
    with pytest.raises(UserError, match="no seed 7: one of 0, 1"):
        algo.get_module(seed=7)


def test_some_seeds_of_a_checkpoint_can_be_continued_alone(config, checkpoint, trained):
    _, result = trained
    resume = {"checkpoint": str(checkpoint), "positions": [1]}
    alone = config.copy(copy_frozen=False).offline(seeds=[1], resume=resume).build_algo()
    again = alone.train()
    assert again["training_iteration"] == 3
    assert set(again["seed"]) == {"1"}
    for name, value in result["seed"]["1"].items():  # another batch size: not bit for bit
        assert again["seed"]["1"][name] == pytest.approx(value, rel=1e-3), name
    alone.stop()


def test_a_checkpoint_of_another_format_is_refused(checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    (file,) = copy.rglob("training.safetensors")
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header["__metadata__"] | {"format": "999", "code": "1.2.3+abc"}
    file.write_bytes(save(load(content), metadata))
    sentence = rf"format 999, this version reads {CHECKPOINT_FORMAT}: .*1\.2\.3\+abc"
    with pytest.raises(UserError, match=sentence):
        MOPO.from_checkpoint(str(copy))


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (lambda c: c.training(penaltyy="none"), r"unknown setting.*penaltyy.*penalty"),
        (lambda c: c.training(penalty="std"), r"unknown penalty.*std.*max_std"),
        (lambda c: c.training(hidden=[]), r"hidden"),
        (lambda c: c.offline(dataset="bundled/nothing"), r"bundled/hopper-medium-replay"),
        (
            lambda c: c.offline(seeds=[]).build_algo(),
            r"seeds must be a number of seeds .* got \[\]",
        ),
        (lambda c: c.offline(seeds=[3, 3]).build_algo(), r"seeds 3 is listed twice"),
        (lambda c: c.offline(dynamics_seeds="one"), r"one of per_seed, shared"),
        (lambda c: c.offline(compile="yes"), r"compile must be auto, true or false, got 'yes'"),
        (lambda c: c.offline(compile=1), r"compile must be auto, true or false, got 1"),
        (
            lambda c: c.offline(parallel_evaluation=2).build_algo(),
            r"parallel_evaluation must be True or False, got 2",
        ),
        (lambda c: c.environment("Walker2d-v4").build_algo(), r"'Walker2d-v4' does not fit"),
        (lambda c: c.learners(num_learners=1).build_algo(), r"num_learners must be 0"),
        (lambda c: MOPOConfig().environment("Hopper-v4").build_algo(), r"no data set: call"),
    ],
)
def test_a_mistake_is_one_sentence(mistake, sentence, config, local_ray):
    with pytest.raises(UserError, match=sentence) as caught:
        mistake(config.copy(copy_frozen=False))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_tuner_of_ones_own_takes_the_config(algo, config, tmp_path):
    """`algo` has trained the ensembles before."""
    run_config = tune.RunConfig(
        storage_path=str(tmp_path), stop={"training_iteration": 1}, verbose=0
    )
    config = config.copy(copy_frozen=False).offline(parallel_evaluation=True)
    (result,) = tune.Tuner(MOPO, param_space=config, run_config=run_config).fit()
    assert result.error is None
    assert result.metrics["epoch"] == 1
    assert result.metrics["seed"].keys() == {"0", "1"}
    assert "run_score" in result.metrics["mean"]


def test_a_search_space_may_name_hyperparameters(config):
    whole = config.copy(copy_frozen=False).to_dict()
    for point in ({}, {"gamma": 0.9}, {"penalty_coef": 7.0, "evaluation_interval": 5}):
        chosen = MOPOConfig().update_from_dict(whole | point).settings
        assert chosen == config.settings.model_copy(update=point)
    with pytest.raises(UserError, match="penalty_coef: must be greater than or equal to 0"):
        MOPOConfig().update_from_dict({"penalty_coef": -1.0})


STANDALONE = """
import json, sys
from algorithms.rllib import MOPOConfig

storage, settings = sys.argv[1], json.loads(sys.argv[2])
algo = (
    MOPOConfig()
    .environment("Hopper-v4")
    .offline(dataset=sys.argv[3], storage=storage)
    .training(**settings)
    .build_algo()
)
assert algo.train()["training_iteration"] == 1
assert "orchestrator" not in sys.modules
"""


@pytest.mark.slow
def test_neither_the_orchestrator_nor_a_running_ray_is_needed(settings, data_file, tmp_path):
    command = [sys.executable, "-c", STANDALONE, str(tmp_path), json.dumps(settings)]
    command.append(f"file:{data_file}")
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


IDEAS = """
from algorithms.mopo.agent import MOPO
from algorithms.mopo.settings import MOPOSettings
from algorithms.plugins import algorithm, environment, penalty

@penalty("mine", label="Mine")
def mine(p):
    return 2.0 * p.std.norm(dim=-1).amax(dim=-2)

@penalty("late")
def late(p):
    value = p.std.norm(dim=-1).amax(dim=-2)
    return value if value.shape[-1] < 100 else value * float("nan")

@algorithm("cautious", settings=MOPOSettings)
class Cautious(MOPO):
    pass

import gymnasium
gymnasium.register("Jump-v0", "gymnasium.envs.mujoco.hopper_v4:HopperEnv")
environment("Jump-v0", obs_dim=11, action_dim=3, random_return=-20.0, expert_return=3000.0,
            max_episode_steps=50)
"""


@pytest.fixture
def ideas(no_plugins, tmp_path, monkeypatch):
    """A file of one's own in the working directory."""
    (tmp_path / "my_ideas.py").write_text(IDEAS)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def configured(dataset, settings, new_storage):
    """A config with the plugin, and settings that differ."""

    def configured(config, dataset=dataset, **changes):
        return config.offline(
            plugins=["my_ideas.py"], dataset=dataset, storage=new_storage()
        ).training(**settings | changes)

    return configured


def test_a_penalty_of_ones_own_trains_without_the_orchestrator(ideas, configured, local_ray):
    config = configured(MOPOConfig(), penalty="mine", penalty_coef_mode="matched")
    algo = config.build_algo()
    # Matched, twice max_std has half of its coefficient.
    assert algo.training.agent.penalty_coef_S.tolist() == pytest.approx([1.25])
    assert algo.train()["mean"]["penalty"] > 0
    algo.stop()


def test_an_algorithm_of_ones_own_has_a_config(ideas, configured):
    config = configured(config_class("cautious")())
    assert config.row.agent_class().__name__ == "Cautious"
    assert config.algo_class is algorithm_class("cautious")


@pytest.mark.slow
def test_what_was_learned_of_ends_is_the_same_after_an_exact_resume(
    ideas, configured, local_ray, data_file, tmp_path
):
    env = MOPOConfig().environment("Jump-v0")
    algo = configured(env, f"file:{data_file}", epochs=4).build_algo()
    algo.train()
    checkpoint = algo.save_to_path(tmp_path / "checkpoint")
    result = algo.train()
    restored = MOPO.from_checkpoint(checkpoint)
    obs = torch.randn(200, 11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(restored.learner.termination.logit(obs), algo.learner.termination.logit(obs))
    assert restored.train()["seed"] == result["seed"]
    assert_same_training(restored, algo)
    algo.stop()
    restored.stop()


def test_a_penalty_that_fails_on_predictions_alone_is_told_before_the_first_epoch(
    ideas, configured, local_ray
):
    """Made-up input has few rows, which this one minds."""
    sentence = r"my_ideas\.py, line 10: penalty 'late' is NaN or infinite in 1000 of 1000 rows"
    with pytest.raises(UserError, match=sentence):
        configured(MOPOConfig(), penalty="late").build_algo()


@pytest.mark.parametrize(
    ("plugins", "words"),
    [
        (["gone.py"], "gone.py cannot be read: No such file"),
        ("my_ideas.py", "plugins must be a list of files or modules, got 'my_ideas.py'"),
        (["no_such_module"], "no such module is installed"),
    ],
)
def test_a_plugin_that_is_not_there_is_told_at_once(ideas, plugins, words):
    with pytest.raises(UserError, match=words):
        MOPOConfig().offline(plugins=plugins)
    with pytest.raises(UserError, match="unknown penalty 'mine'"):
        MOPOConfig().training(penalty="mine")
