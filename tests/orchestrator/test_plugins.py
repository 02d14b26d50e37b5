"""A sweep with plugins: whose keys know them, what `plan` says, and mistakes."""

import io
import json
import subprocess
import sys

import h5py
import numpy as np
import pytest

import orchestrator as o
from algorithms.dynamics.penalties import PENALTIES
from algorithms.storage import Storage
from orchestrator import cli
from orchestrator.plan import make_plan
from orchestrator.sweep.cell import cells_of

pytestmark = pytest.mark.usefixtures("no_plugins")

IDEAS = """
from algorithms.mopo.agent import MOPO
from algorithms.mopo.settings import MOPOSettings
from algorithms.plugins import algorithm, environment, penalty

@penalty("mine", label="Mine")
def mine(p):
    return p.std.norm(dim=-1).amax(dim=-2)

environment("InvertedPendulum-v4", obs_dim=4, action_dim=1, random_return=5.0,
            expert_return=1000.0, max_episode_steps=200, action_low=-3.0, action_high=3.0)

class CautiousSettings(MOPOSettings):
    caution: float = 2.0

@algorithm("cautious", settings=CautiousSettings)
class Cautious(MOPO):
    pass
"""


@pytest.fixture
def ideas(tmp_path):
    """Write the plugin beside the sweep, with other text if that is given."""

    def ideas(text=IDEAS):
        (tmp_path / "my_ideas.py").write_text(text)

    ideas()
    return ideas


@pytest.fixture
def pendulum_file(tmp_path):
    """A small file of the plugin's environment; its actions are in [-3, 3]."""
    random, rows = np.random.default_rng(0), 300
    path = tmp_path / "pendulum.hdf5"
    states = random.normal(size=(rows + 1, 4)).astype(np.float32)
    ends = np.arange(rows) % 10 == 9
    with h5py.File(path, "w") as file:
        file["observations"] = states[:-1]
        file["next_observations"] = np.where(ends[:, None], -states[1:], states[1:])
        file["actions"] = random.uniform(-3, 3, size=(rows, 1)).astype(np.float32)
        file["rewards"] = np.ones(rows, dtype=np.float32)
        file["terminals"] = ends
        file["timeouts"] = np.zeros(rows, dtype=bool)
    return path


@pytest.fixture
def with_ideas(comparison, pendulum_file):
    """A sweep with cells that use each of the plugin's rows, and some that use none."""
    return comparison | {
        "plugins": ["my_ideas.py"],
        "algorithm": "mopo",
        "datasets": [
            "bundled/hopper-medium-replay",
            {"id": f"file:{pendulum_file}", "env": "InvertedPendulum-v4"},
        ],
        "variants": {
            "built-in": {},
            "mine": {"penalty": "mine"},
            "cautious": {"algorithm": "cautious"},
            "unused": {"penalty": "mine", "real_ratio": 1.0},
        },
    }


def keys(cells):
    """{(variant, environment): (cell, seed 1, ensemble of seed 1)} of cells."""
    return {
        (cell.variant, cell.dataset.env_id): (
            cell.cell_key,
            cell.result_key(1),
            (ensemble := cell.ensemble(1)) and ensemble.key,
        )
        for cell in cells
    }


def test_an_edit_makes_new_what_uses_the_plugin_and_nothing_else(ideas, with_ideas, expand):
    before = keys(expand(with_ideas))
    ideas(IDEAS + "\n# another comment\n")
    after = keys(expand(with_ideas))
    assert before.keys() == after.keys()
    assert len(before) == 8
    for (variant, env_id), (cell, seed, ensemble) in before.items():
        new_cell, new_seed, new_ensemble = after[variant, env_id]
        uses = env_id != "Hopper-v4" or variant in ("mine", "cautious")
        assert (cell != new_cell, seed != new_seed) == (uses, uses), (variant, env_id)
        assert ensemble == new_ensemble, (variant, env_id)  # none is trained again for an idea


def test_where_no_row_of_a_plugin_is_used_keys_are_as_without_it(ideas, with_ideas, expand):
    found = keys(expand(with_ideas))
    del with_ideas["plugins"], with_ideas["variants"]
    plain = with_ideas | {
        "datasets": with_ideas["datasets"][:1],
        "variants": {"built-in": {}, "unused": {"real_ratio": 1.0}},
    }
    for key, value in keys(expand(plain)).items():
        assert found[key] == value


def test_other_bounds_of_the_actions_are_other_ensembles(ideas, with_ideas, expand, monkeypatch):
    monkeypatch.setattr("orchestrator.sweep.cell.make_env", lambda _: io.StringIO())
    before = keys(expand(with_ideas))["built-in", "InvertedPendulum-v4"]
    ideas(IDEAS.replace("3.0", "4.0"))
    after = keys(expand(with_ideas))["built-in", "InvertedPendulum-v4"]
    assert before[2] != after[2]


def test_the_order_and_place_of_plugins_are_no_part_of_keys(ideas, with_ideas, expand, tmp_path):
    before = keys(expand(with_ideas))
    (tmp_path / "sub").mkdir()
    (tmp_path / "my_ideas.py").rename(tmp_path / "sub" / "renamed.py")
    (tmp_path / "empty.py").write_text("")
    assert keys(expand(with_ideas | {"plugins": ["empty.py", "sub/renamed.py"]})) == before


def test_cells_keep_their_keys_when_another_sweep_is_read(ideas, with_ideas, quickstart, expand):
    cells = expand(with_ideas)
    before = keys(cells)
    expand(quickstart)
    assert "mine" not in PENALTIES
    assert keys(cells) == before


def test_a_notebook_may_hold_two_sweeps_with_ideas_of_one_name(
    ideas, with_ideas, tmp_path, write_sweep, storage
):
    write_sweep(with_ideas, "a.yaml")
    (tmp_path / "other.py").write_text(IDEAS + "# other\n")
    write_sweep(with_ideas | {"plugins": ["other.py"]}, "b.yaml")
    a = o.load(tmp_path / "a.yaml", storage=storage)
    first = a.results()
    b = o.load(tmp_path / "b.yaml", storage=storage)
    other = b.results()
    assert list(a.results()["result_key"]) == list(first["result_key"])
    assert a.plan().to_json()["plugins"][0]["name"] == "my_ideas.py"
    same = (first["result_key"] == other["result_key"]).groupby(first["variant"]).sum()
    assert same.to_dict() == {"built-in": 2, "mine": 0, "cautious": 0, "unused": 2}


@pytest.fixture
def write_sweep(tmp_path):
    """A mapping -> a file of it in this test's folder."""

    def write_sweep(content, name="sweep.yaml"):
        path = tmp_path / name
        path.write_text(json.dumps(content))  # JSON is YAML
        return path

    return write_sweep


def test_plan_says_which_plugins_are_part_of_which_keys(
    ideas, with_ideas, write_sweep, storage, capsys, load
):
    sweep = load(with_ideas)
    (plugin,) = sweep.loaded_plugins
    told = make_plan(sweep, cells_of(sweep), Storage(storage)).to_json()
    assert told["plugins"] == [{"name": "my_ideas.py", "sha256": plugin.sha256}]
    assert cli.main(["plan", str(write_sweep(with_ideas)), "--storage", str(storage)]) == 0
    out = capsys.readouterr().out
    assert f"plugin my_ideas.py: source {plugin.sha256[:12]}, part of the keys of 6 cells" in out
    unused = write_sweep(with_ideas | {"variants": {}, "datasets": with_ideas["datasets"][:1]})
    assert cli.main(["plan", str(unused), "--storage", str(storage)]) == 0
    assert f"source {plugin.sha256[:12]}, used by no cell" in capsys.readouterr().out


def test_a_plan_with_a_penalty_of_ones_own_needs_neither_torch_nor_gymnasium(
    ideas, comparison, write_sweep, storage, tmp_path
):
    penalty, _, _ = IDEAS.partition("environment(")
    ideas(penalty.replace("from algorithms.mopo.agent import MOPO\n", ""))
    file = write_sweep(
        comparison
        | {"algorithm": "mopo", "plugins": ["my_ideas.py"], "grid": {"penalty": ["mine"]}}
    )
    code = (
        "import sys; from orchestrator.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or 10 * bool({'torch', 'gymnasium', 'ray'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, "plan", str(file), "--storage", str(storage)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


MISTAKES = {
    "no such file": ({"plugins": ["gone.py"]}, None, ["gone.py cannot be read: No such file"]),
    "not a list": (
        {"plugins": "my_ideas.py"},
        None,
        ["plugins: must be a list of Python files or module names, got 'my_ideas.py'"],
    ),
    "nothing": ({"plugins": None}, None, ["plugins: must be a list"]),
    "no such module": ({"plugins": ["my_ideas"]}, None, ["no such module is installed"]),
    "it does not parse": ({}, "x = (", ["my_ideas.py, line 1: SyntaxError: '(' was never closed"]),
    "it raises": ({}, "\n1 / 0", ["my_ideas.py, line 2: ZeroDivisionError: division by zero"]),
    "a misspelt penalty": (
        {"variants": {"a": {"penalty": "mien"}}},
        None,
        ["variants.a.penalty: unknown penalty 'mien': one of ", " member_std, mine, mixture_std"],
    ),
    "a setting that its algorithm lacks": (
        {"variants": {"a": {"algorithm": "cautious", "cuation": 1.0}}},
        None,
        ["variants.a.cuation: unknown key for cautious (did you mean 'caution')"],
    ),
    "an environment of other sizes": (
        {},
        IDEAS.replace("action_low=-3.0, action_high=3.0", ""),
        ["InvertedPendulum-v4 has action_low -1 in its row, but Gymnasium's actions have -3"],
    ),
    "data of other sizes": (
        {},
        IDEAS.replace("obs_dim=4", "obs_dim=5"),
        ["InvertedPendulum-v4 has obs_dim 5 in its row, but Gymnasium's has a space of shape (4,)"],
    ),
}


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_and_starts_nothing(
    ideas, with_ideas, write_sweep, storage, capsys, mistake, command
):
    changes, text, words = MISTAKES[mistake]
    if text is not None:
        ideas(text)
    file = write_sweep(with_ideas | changes)
    assert cli.main([command, str(file), "--storage", str(storage)]) == 2
    out, err = capsys.readouterr()
    (sentence,) = err.splitlines()
    assert sentence.startswith("error: ")
    for word in words:
        assert word in sentence
    assert out == ""
    assert not storage.exists()


def test_an_environment_that_no_data_set_is_of_is_not_made(ideas, comparison, expand):
    ideas(IDEAS.replace("InvertedPendulum-v4", "Nowhere-v0"))
    content = comparison | {"algorithm": "mopo", "plugins": ["my_ideas.py"]}
    assert len(expand(content)) == 1


def test_a_penalty_that_returns_nonsense_is_told_before_anything_is_trained(
    ideas, comparison, write_sweep, storage, capsys, monkeypatch
):
    monkeypatch.setattr("orchestrator.run.load", lambda *_: pytest.fail("data were generated"))
    ideas(IDEAS.replace(".amax(dim=-2)", ""))
    file = write_sweep(
        comparison
        | {"algorithm": "mopo", "plugins": ["my_ideas.py"], "grid": {"penalty": ["mine"]}}
    )
    assert cli.main(["run", str(file), "--storage", str(storage)]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "my_ideas.py, line 6: penalty 'mine' returns shape [2, 7, 5]" in sentence
