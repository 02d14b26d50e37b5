import math
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.errors import UserError
from orchestrator.sweep.cell import cells_of
from orchestrator.sweep.model import Sweep, load_sweep

ROOT = Path(__file__).parents[3]


def test_quickstart_expands_to_one_trial_per_penalty():
    cells = cells_of(load_sweep(ROOT / "sweeps" / "quickstart.yaml"))
    assert [cell.variant for cell in cells] == ["penalty=none", "penalty=max_std"]
    assert [cell.settings.penalty for cell in cells] == ["none", "max_std"]
    assert [cell.settings.penalty_coef for cell in cells] == [0.0, 2.5]  # none has none
    assert all(cell.seeds == (0, 1) for cell in cells)


def test_a_sweep_without_grid_is_one_trial(quickstart, expand):
    del quickstart["grid"]
    (cell,) = expand(quickstart)
    assert (cell.variant, cell.choices) == ("default", {})


def test_every_variant_meets_every_data_set(quickstart, expand):
    quickstart["datasets"].append({"id": "bundled/hopper-medium", "size": 2000})
    quickstart["grid"]["rollout_length"] = [1, 5]
    cells = expand(quickstart)
    assert [(cell.dataset.id, cell.variant) for cell in cells[3:5]] == [
        ("bundled/hopper-medium-replay", "penalty=max_std, rollout_length=5"),
        ("bundled/hopper-medium", "penalty=none, rollout_length=1"),
    ]
    assert len(cells) == 8
    assert cells[4].dataset.size == 2000


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1e3),
        ("-.5e-2", -0.005),
        ("+2.", 2.0),
        ("2", 2.0),
        ("50_000", 50_000.0),
    ],
)
def test_numbers_are_read_as_in_yaml_1_2(load, written, read):
    sweep = load(f"""
        name: s
        algorithm: mopo
        datasets: [bundled/hopper-medium]
        seeds: 1
        fixed: {{target_entropy: {written}}}
    """)
    (cell,) = cells_of(sweep)
    assert cell.settings.target_entropy == read


def test_anchors_and_merge_keys_work(load):
    sweep = load("""
        name: s
        algorithm: mopo
        datasets: [bundled/hopper-medium]
        seeds: &seeds [3, 5]
        grid: {num_critics: &both [1, 2], batch_size: *both}
        fixed: {<<: {epochs: 7}, epochs: 9}
    """)
    assert sweep.seeds == (3, 5)
    assert sweep.fixed == {"epochs": 9}
    assert len(cells_of(sweep)) == 4


# Mistakes: (what is changed in the quickstart, words that the sentence must contain).
ALL_PENALTIES = "combined, ensemble_variance, max_center_distance"
MISTAKES = {
    "unknown key": ({"sed": 3}, ["sed: unknown key", "'seeds'", "name, question, algorithm"]),
    "misspelt required key": ({"datasets": ..., "dataset": []}, ["dataset: unknown key", "'datas"]),
    "unknown key in grid": (
        {"grid": {"penlty": ["none"]}},
        ["grid.penlty: unknown key", "'penalty'", "rollout_length"],
    ),
    "unknown key in fixed": (
        {"fixed": {"horizon": 5}},
        ["fixed.horizon: unknown key", "rollout_length"],
    ),
    "a last epoch that is not evaluated": (
        {"fixed": {"epochs": 5, "evaluation_interval": 2}},
        ["fixed.epochs, fixed.evaluation_interval: ", "2 does not divide epochs 5"],
    ),
    "unknown key of a data set": (
        {"datasets": [{"id": "bundled/hopper-medium", "sise": 5000}]},
        ["datasets[0].sise: unknown key", "'size'", "env, size, task, actions, allow, id"],
    ),
    "missing name": ({"name": ...}, ["name: this key is required"]),
    "unknown algorithm": ({"algorithm": "ppo"}, ["algorithm: unknown algorithm 'ppo'", "mopo"]),
    "unknown penalty in grid": (
        {"grid": {"penalty": ["none", "foo"]}},
        ["grid.penalty: unknown penalty 'foo'", ALL_PENALTIES],
    ),
    "unknown penalty in fixed": (
        {"grid": {}, "fixed": {"penalty": "foo"}},
        ["fixed.penalty: unknown penalty 'foo'", ALL_PENALTIES],
    ),
    "unknown data set": (
        {"datasets": ["bundled/hoper"]},
        ["datasets[0]: ", "'bundled/hoper'", "bundled/hopper-medium", "file:"],
    ),
    "missing data file": ({"datasets": ["file:/no/such.hdf5"]}, ["datasets[0]: ", "/no/such.hdf5"]),
    "data set twice": (
        {"datasets": ["bundled/hopper-medium", {"id": "bundled/hopper-medium"}]},
        ["datasets[1]: bundled/hopper-medium holds the same data"],
    ),
    "no data set": ({"datasets": []}, ["datasets: ", "at least 1"]),
    "data sets not a list": (
        {"datasets": "bundled/hopper-medium"},
        ["datasets: must be a list, got 'bundled/hopper-medium'"],
    ),
    "a data set that is a number": ({"datasets": [3]}, ["datasets[0]: must be text or a mapping"]),
    "size as text": (
        {"datasets": [{"id": "bundled/hopper-medium", "size": "big"}]},
        ["datasets[0].size: must be a whole number, got 'big'"],
    ),
    "seeds 0": ({"seeds": 0}, ["seeds: must be a number of seeds from 1", "got 0"]),
    "negative seeds": ({"seeds": -2}, ["seeds: must be", "got -2"]),
    "too many seeds": ({"seeds": 10**9}, ["seeds: must be", "1000"]),
    "seeds as a boolean": ({"seeds": True}, ["seeds: must be", "got True"]),
    "a boolean among seeds": ({"seeds": [0, True]}, ["seeds: must be", "got [0, True]"]),
    "seeds as a fraction": ({"seeds": 2.0}, ["seeds: must be", "got 2.0"]),
    "seeds as text": ({"seeds": "two"}, ["seeds: must be", "got 'two'"]),
    "no seeds": ({"seeds": []}, ["seeds: must be", "got []"]),
    "a negative seed": ({"seeds": [1, -1]}, ["seeds: must be", "got [1, -1]"]),
    "a seed twice": ({"seeds": [1, 2, 1]}, ["seeds: 1 is listed twice"]),
    "grid not a mapping": ({"grid": ["penalty"]}, ["grid: must be a mapping"]),
    "grid value not a list": (
        {"grid": {"penalty": "none"}},
        ["grid.penalty: must be a list, got 'none'"],
    ),
    "grid value an empty list": ({"grid": {"penalty": []}}, ["grid.penalty: ", "at least one"]),
    "grid value twice": (
        {"grid": {"penalty": ["none", "max_std", "none"]}},
        ["grid.penalty: 'none' is listed twice"],
    ),
    "equal numbers twice": (
        {"grid": {"penalty_coef": [1, 1.0]}, "fixed": {}},
        ["grid.penalty_coef: 1.0 is listed twice"],
    ),
    "epochs in grid": ({"grid": {"epochs": [1, 2]}, "fixed": {}}, ["grid.epochs: ", "'fixed'"]),
    "key in grid and fixed": (
        {"fixed": {"penalty": "none"}},
        ["grid.penalty: ", "'fixed' as well"],
    ),
    "text for a number": (
        {"fixed": {"penalty_coef": "ten"}},
        ["fixed.penalty_coef: must be a number, got 'ten'"],
    ),
    "fraction for an int": (
        {"fixed": {"epochs": 2.5}},
        ["fixed.epochs: must be a whole number, got 2.5"],
    ),
    "boolean for an int": (
        {"fixed": {"epochs": True}},
        ["fixed.epochs: must be a whole number, got True"],
    ),
    "out of bounds": (
        {"fixed": {"gamma": 1.5}},
        ["fixed.gamma: must be less than or equal to 1, got 1.5"],
    ),
    "NaN": ({"fixed": {"penalty_coef": math.nan}}, ["fixed.penalty_coef: ", "finite", "got nan"]),
    "infinite": (
        {"grid": {"penalty_coef": [math.inf]}, "fixed": {}},
        ["grid.penalty_coef: ", "inf"],
    ),
    "a layer of width 0": ({"fixed": {"hidden": [256, 0]}}, ["fixed.hidden: ", "got 0"]),
    "two keys that clash": (
        {"grid": {"num_elites": [5, 9]}, "fixed": {"num_ensemble": 7}},
        ["grid.num_elites", "fixed.num_ensemble", "9 exceeds num_ensemble 7"],
    ),
    "a key that clashes with a default": (
        {"fixed": {"num_ensemble": 3}},
        ["fixed.num_ensemble: num_elites 5 exceeds num_ensemble 3"],
    ),
    "a key that clashes with a default that it does not name": (
        {"fixed": {"dynamics_hidden": [200, 200]}},
        ["fixed: dynamics_weight_decay has 5 values for 3 layers"],
    ),
    "name with a slash": ({"name": "a/b"}, ["name: 'a/b' must be", "letters"]),
    "name like a path": ({"name": ".."}, ["name: '..' must be"]),
    "empty name": ({"name": ""}, ["name: '' must be"]),
    "name as a number": ({"name": 3}, ["name: must be text, got 3"]),
    "unknown device": ({"device": "tpu"}, ["device: must be 'auto', 'cpu' or 'cuda', got 'tpu'"]),
    "unknown mode of dynamics seeds": (
        {"dynamics_seeds": "both"},
        ["dynamics_seeds: must be 'per_seed' or 'shared', got 'both'"],
    ),
    "unknown dtype of products": (
        {"fixed": {"matmul_dtype": "float16"}},
        ["fixed.matmul_dtype: must be 'float32' or 'bfloat16', got 'float16'"],
    ),
    "compile as text": (
        {"compile": "yes"},
        ["compile: must be auto, true or false, got 'yes'"],
    ),
    "compile as a number": ({"compile": 1}, ["compile: must be auto, true or false, got 1"]),
    "parallel_evaluation as a number": (
        {"parallel_evaluation": 2},
        ["parallel_evaluation: must be auto, true or false, got 2"],
    ),
    "no GPU": ({"gpus_per_trial": 0}, ["gpus_per_trial: must be greater than 0, got 0"]),
    "more than a GPU": (
        {"gpus_per_trial": 2},
        ["gpus_per_trial: must be less than or equal to 1, got 2"],
    ),
    "a GPU in words": (
        {"gpus_per_trial": "half"},
        ["gpus_per_trial: must be a number, got 'half'"],
    ),
    "a GPU as a boolean": (
        {"gpus_per_trial": True},
        ["gpus_per_trial: must be a number, got True"],
    ),
    "no CPU": ({"cpus_per_trial": 0}, ["cpus_per_trial: must be", "got 0"]),
    "fixed without values": ({"fixed": None}, ["fixed: must be a mapping", "None"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(quickstart, expand, mistake):
    changes, words = MISTAKES[mistake]
    changed = {k: v for k, v in (quickstart | changes).items() if v is not ...}
    with pytest.raises(UserError) as error:
        expand(changed)
    _assert_one_sentence(str(error.value), words)


TEXT_MISTAKES = {
    "empty": ("", ["is empty", "name, algorithm, datasets, seeds"]),
    "only a comment": ("# later\n", ["is empty"]),
    "not a mapping": ("- a\n- b\n", ["must be a mapping", "['a', 'b']"]),
    "syntax": ("name: a\nseeds: [1, 2\n", ["line 3", "not a valid sweep"]),
    "tab": ("name: a\n\tseeds: 2\n", ["line 2"]),
    "duplicate key": ("name: a\nseeds: 2\nname: b\n", ["line 3", "'name'", "second time"]),
    "nested duplicate key": ("fixed: {epochs: 1, epochs: 2}\n", ["line 1", "'epochs'", "second"]),
    "a key that is a number": ("1: a\n", ["line 1", "a key must be text"]),
    "a key that is a list": ("[a]: a\n", ["line 1", "a key must be text"]),
    "two documents": ("name: a\n---\nname: b\n", ["line 2"]),
    "a Python object": ("name: !!python/object:os.system {}\n", ["line 1"]),
    "control characters": ("name: a\x00b\n", ["not a text file"]),
    "too deep": ("[" * 5000, ["nested too deeply"]),
}


@pytest.mark.parametrize("mistake", TEXT_MISTAKES)
def test_a_file_that_is_no_sweep_is_told_in_one_sentence(load, mistake):
    text, words = TEXT_MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        load(text)
    _assert_one_sentence(str(error.value), ["sweep.yaml", *words])


def test_yaml_1_1_booleans_are_text(load):
    with pytest.raises(UserError, match=r"seeds: must be .*, got 'yes'"):
        load("name: a\nalgorithm: mopo\ndatasets: [bundled/hopper-medium]\nseeds: yes\n")


def test_a_file_that_cannot_be_read_is_told_in_one_sentence(tmp_path):
    binary = tmp_path / "data.hdf5"
    binary.write_bytes(b"\x89HDF\r\n\x1a\n\xff\xfe")
    for path, words in [
        (tmp_path / "missing.yaml", ["no such file", "missing.yaml"]),
        (tmp_path, ["is a folder"]),
        (binary, ["not a text file"]),
        (binary / "below", ["cannot be read"]),
    ]:
        with pytest.raises(UserError) as error:
            load_sweep(path)
        _assert_one_sentence(str(error.value), words)


def _assert_one_sentence(sentence: str, words: list[str]) -> None:
    assert "\n" not in sentence
    assert "pydantic" not in sentence
    assert "Input should" not in sentence
    assert len(sentence) < 800
    for word in words:
        assert word in sentence


# Names


def test_files_of_the_same_name_have_different_trial_names(quickstart, expand, hopper_file):
    paths = [hopper_file("a/x.hdf5"), hopper_file("b/x.hdf5", seed=1)]
    quickstart["datasets"] = [{"id": f"file:{path}", "env": "Hopper-v4"} for path in paths]
    names = [cell.name for cell in expand(quickstart)]
    assert len(set(names)) == 4


def test_the_same_recipe_in_two_sizes_is_two_data_sets(quickstart, expand):
    quickstart["datasets"] = [
        "bundled/hopper-medium",
        {"id": "bundled/hopper-medium", "size": 500_000},
    ]
    cells = expand(quickstart)
    assert len({cell.name for cell in cells}) == 4
    assert len({cell.dataset_label for cell in cells}) == 2
    assert len({cell.ensemble(0).key for cell in cells}) == 2


GRID_VALUES = {
    "penalty": st.sampled_from(["none", "max_std", "combined", "mixture_std"]),
    "penalty_coef": st.floats(0, 1e300) | st.integers(0, 100),
    "target_entropy": st.floats(-1e3, 1e3) | st.none(),
    "rollout_length": st.integers(1, 50),
    "hidden": st.lists(st.integers(1, 512), min_size=1, max_size=5),
    "num_ensemble": st.integers(5, 12),
}


@st.composite
def grids(draw):
    keys = draw(st.lists(st.sampled_from(list(GRID_VALUES)), unique=True, max_size=4))
    return {
        key: draw(st.lists(GRID_VALUES[key], min_size=1, max_size=3, unique_by=_number_or_text))
        for key in keys
    }


def _number_or_text(value: object) -> object:
    return value + 0.0 if isinstance(value, int | float) else str(value)


@given(grids())
def test_expansion_has_the_size_of_the_product_and_unique_identities(grid):
    sweep = Sweep(
        name="s", algorithm="mopo", datasets=["bundled/hopper-medium"], seeds=2, grid=grid
    )
    cells = cells_of(sweep)
    size = math.prod(len(values) for values in grid.values())
    if "none" in grid.get("penalty", ()) and "penalty_coef" in grid:
        # Without a penalty the coefficient means nothing: such a cell is trained once.
        size -= (
            size
            // len(grid["penalty"])
            * (len(grid["penalty_coef"]) - 1)
            // len(grid["penalty_coef"])
        )
    assert len(cells) == size
    assert len({cell.name for cell in cells}) == size
    assert len({cell.variant for cell in cells}) == size
    assert len({cell.cell_key for cell in cells}) == size
    assert len({cell.result_key(seed) for cell in cells for seed in (0, 1)}) == 2 * size
    for cell in cells:
        # A folder's name (255 bytes) and an MLflow run's.
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,250}", cell.name)


def test_trials_can_be_sent_to_other_processes(quickstart, expand):
    cells = expand(quickstart)
    assert pickle.loads(pickle.dumps(cells)) == cells
    assert len(set(cells)) == 2


@pytest.mark.parametrize("module", ["sweep.cell", "plan", "results", "deployment", "cli"])
def test_planning_imports_neither_ray_nor_torch_nor_mlflow(module):
    code = (
        f"import sys, orchestrator.{module}\n"
        "print([name for name in ('ray', 'torch', 'mlflow', 'pandas') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.stdout == "[]\n", run.stderr
