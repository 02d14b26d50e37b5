"""A user's file or module: found, executed from its source, and its mistakes in one sentence."""

import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch

from algorithms import ALGORITHMS
from algorithms.dynamics.checks import check_on_made_up_input
from algorithms.dynamics.penalties import PENALTIES, Prediction
from algorithms.environments.table import ENVIRONMENTS, make_env
from algorithms.errors import UserError
from algorithms.loading import Plugin, find_plugins, load_plugins
from algorithms.settings import validated

pytestmark = pytest.mark.usefixtures("no_plugins")

PENALTY = """
from algorithms.plugins import penalty

@penalty("mine", label="Mine", colour="#123456")
def mine(p):
    return 2.0 * p.std.norm(dim=-1).amax(dim=-2)
"""
ALGORITHM = """
from algorithms.mopo.agent import MOPO
from algorithms.mopo.settings import MOPOSettings
from algorithms.plugins import algorithm

class CautiousSettings(MOPOSettings):
    caution: float = 2.0

@algorithm("cautious", settings=CautiousSettings)
class Cautious(MOPO):
    pass
"""


@pytest.fixture
def write(tmp_path):
    """Write a file beside the sweep; returns its path."""

    def write(text, name="my_ideas.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def load(write, tmp_path):
    """Text of a file -> what `load_plugins` makes of it."""

    def load(text, name="my_ideas.py"):
        write(text, name)
        plugins = find_plugins([name], tmp_path)
        load_plugins(plugins)
        return plugins

    return load


def prediction(rows=4):
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2, 3, rows, 12, generator=generator)
    return Prediction(mean, mean.abs(), torch.zeros(2, rows, dtype=torch.long))


def test_a_penalty_of_a_file_is_a_row_with_its_origin(load):
    (plugin,) = load(PENALTY)
    row = PENALTIES["mine"]
    assert (row.label, row.colour, row.own_member_only) == ("Mine", "#123456", False)
    torch.testing.assert_close(row(prediction()), 2.0 * PENALTIES["max_std"](prediction()))
    assert PENALTIES.origin("mine") == ("my_ideas.py", plugin.sha256)
    assert "mine" not in PENALTIES.built_in
    load_plugins([])
    assert "mine" not in PENALTIES


def test_an_algorithm_of_a_file_has_its_settings_agent_and_presets(load):
    load(ALGORITHM)
    row = ALGORITHMS["cautious"]
    assert validated(row.settings, {"caution": 3.0, "penalty": "max_std"}).caution == 3.0
    assert row.agent_class().__name__ == "Cautious"
    assert row.base == "cautious"
    assert row.presets is ALGORITHMS["mopo"].presets
    settings = row.settings()
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_the_source_is_enough_where_the_file_is_not(load, write):
    (plugin,) = load(PENALTY)
    write("").unlink()
    code = (
        "import sys, pickle; from algorithms.loading import load_plugins; "
        "from algorithms.dynamics.penalties import PENALTIES; "
        "load_plugins([pickle.loads(bytes.fromhex(sys.argv[1]))]); "
        "print(PENALTIES.origin('mine').sha256)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, pickle.dumps(plugin).hex()],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert ran.stdout.strip() == plugin.sha256


def test_an_edited_file_replaces_its_rows_and_the_first_version_can_come_back(load):
    first = load(PENALTY)
    load(PENALTY.replace('"mine"', '"other"').replace("2.0", "3.0"))
    assert "mine" not in PENALTIES
    torch.testing.assert_close(
        PENALTIES["other"](prediction()), 3.0 * PENALTIES["max_std"](prediction())
    )
    load_plugins(first)
    assert "mine" in PENALTIES
    assert "other" not in PENALTIES


def test_a_file_is_executed_once_per_process(load, tmp_path):
    log = tmp_path / "log"
    plugins = load(f"open({str(log)!r}, 'a').write('x')")
    load_plugins(plugins)
    load_plugins([])
    load_plugins(plugins)
    assert log.read_text() == "x"


def test_two_sweeps_may_have_plugins_with_a_name_in_common(load):
    first = load(PENALTY)
    load(PENALTY.replace("2.0", "5.0"), "others/my_ideas.py")
    value = PENALTIES["mine"](prediction())
    load_plugins(first)
    torch.testing.assert_close(value, 2.5 * PENALTIES["mine"](prediction()))


def test_imported_in_an_ordinary_way_a_plugin_enters_nothing(write, tmp_path):
    write(PENALTY + ALGORITHM)
    code = (
        "import my_ideas; from algorithms import ALGORITHMS; "
        "from algorithms.dynamics.penalties import PENALTIES; "
        "print('mine' in PENALTIES, 'cautious' in ALGORITHMS, my_ideas.mine.__name__)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path)])}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["False", "False", "mine"]


def test_annotations_of_a_file_are_its_own(load):
    """This project's `from __future__ import annotations` does not reach into it."""
    load("def f(x: int): pass\nassert f.__annotations__ == {'x': int}")


ENVIRONMENT = """
from algorithms.plugins import environment
sizes = dict(obs_dim=4, action_dim=1, random_return=5.0, expert_return=1000.0,
             max_episode_steps=200, action_low=-3.0, action_high=3.0)
"""


def test_an_environment_acts_in_units_of_its_bounds(load):
    load(ENVIRONMENT + 'environment("InvertedPendulum-v4", **sizes)')
    row = ENVIRONMENTS["InvertedPendulum-v4"]
    assert row.termination is None
    env = make_env("InvertedPendulum-v4")
    assert (env.action_space.low, env.action_space.high) == (-1.0, 1.0)
    assert env.spec.max_episode_steps == 200
    plain = env.unwrapped
    env.reset(seed=1)
    after = env.step(row.to_unit_actions(torch.tensor([1.5]).numpy()))[0]
    plain.reset(seed=1)
    torch.testing.assert_close(after, plain.step([1.5])[0])


def test_a_termination_function_is_the_rows(load):
    load(ENVIRONMENT + '@environment("X-v0", **sizes)\ndef ends(s): return s[..., 1].abs() > 0.2\n')
    ends = ENVIRONMENTS["X-v0"].termination(torch.tensor([[0.0, 0.3], [0.0, 0.1]]))
    assert ends.tolist() == [True, False]


def test_an_installed_module_is_a_plugin_by_its_name(write, tmp_path, monkeypatch):
    write("from installed_ideas.inner import mine", "installed_ideas/__init__.py")
    inner = write(PENALTY, "installed_ideas/inner.py")
    monkeypatch.syspath_prepend(tmp_path)
    import installed_ideas  # noqa: F401 - as a user may have, before the sweep is read

    assert "mine" not in PENALTIES
    (plugin,) = find_plugins(["installed_ideas"], tmp_path / "elsewhere")
    assert (plugin.source, plugin.path.endswith("__init__.py")) == (None, True)
    load_plugins([plugin])
    assert PENALTIES.origin("mine").sha256 == plugin.sha256
    inner.write_text(inner.read_text() + "\n# changed\n")
    assert find_plugins(["installed_ideas"], tmp_path)[0].sha256 != plugin.sha256
    # Another machine that has another version must not train under this one's key.
    load_plugins([])
    stale = Plugin(**plugin.model_dump() | {"name": "installed_ideas", "sha256": "0" * 64})
    with pytest.raises(UserError, match="another version is installed here"):
        load_plugins([stale])
    for name in ("installed_ideas", "installed_ideas.inner"):
        sys.modules.pop(name)


def test_an_entry_point_needs_no_mention(write, tmp_path, monkeypatch):
    write(PENALTY, "offered_ideas.py")
    write(
        "[orchestrator.plugins]\nideas = offered_ideas\n", "offered-1.0.dist-info/entry_points.txt"
    )
    write("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n", "offered-1.0.dist-info/METADATA")
    monkeypatch.syspath_prepend(tmp_path)
    (plugin,) = find_plugins([], tmp_path)
    assert plugin.name == "offered_ideas"
    assert find_plugins(["offered_ideas"], tmp_path) == (plugin,)  # named as well, it is one
    load_plugins([plugin])
    assert "mine" in PENALTIES
    sys.modules.pop("offered_ideas")


RETURNS = "environment('A-v0', obs_dim=1, action_dim=1, random_return={}, expert_return={}, "
RETURNS += "max_episode_steps=9)"
MISTAKES = {
    "syntax": ("x = 1\nif x\n", ["my_ideas.py, line 2: SyntaxError: expected ':'"]),
    "exception": ("x = 1\n\nx / 0", ["my_ideas.py, line 3: ZeroDivisionError: division by zero"]),
    "raised deeper": (
        "import json\n\njson.loads('{')",
        ["my_ideas.py, line 3: JSONDecodeError: Expecting property name"],
    ),
    "syntax of something else": ("x = 1\neval('1 +')", ["my_ideas.py, line 2: SyntaxError"]),
    "exits": ("import sys\nsys.exit(0)", ["my_ideas.py, line 2: SystemExit: 0"]),
    "several lines": ("raise ValueError('one\\ntwo')", ["line 1: ValueError: one"]),
    "a module that is not there": (
        "import nowhere_to_be_found",
        ["line 1: ModuleNotFoundError: No module named 'nowhere_to_be_found'"],
    ),
    "a penalty of the project's": (
        "from algorithms.plugins import penalty\n\n@penalty('max_std', label='x')\ndef f(p): ...",
        ["line 3: penalty 'max_std' exists already, from the project itself: rename yours"],
    ),
    "an algorithm of the project's": (
        ALGORITHM.replace('"cautious"', '"combo"'),
        ["algorithm 'combo' exists already, from the project itself"],
    ),
    "an environment of the project's": (
        ENVIRONMENT + "environment('Hopper-v4', **sizes)",
        ["line 5: environment 'Hopper-v4' exists already, from the project itself"],
    ),
    "a penalty twice": (
        PENALTY + PENALTY,
        ["penalty 'mine' is there twice"],
    ),
    "a name that cannot be one": (
        "from algorithms.plugins import penalty\npenalty('a, b')",
        ["line 2: penalty 'a, b': a name has 1 to 64 letters"],
    ),
    "no parentheses": (
        PENALTY.replace('("mine", label="Mine", colour="#123456")', ""),
        ["line 4: "],
    ),
    "returns": (
        "from algorithms.plugins import environment\n" + RETURNS.format(5, 5),
        ["line 2: environment A-v0: random_return must be below expert_return"],
    ),
    "returns that are nan": (
        "from algorithms.plugins import environment\n" + RETURNS.format("float('nan')", 5),
        ["random_return must be below expert_return"],
    ),
    "bounds": (
        ENVIRONMENT + "environment('A-v0', **sizes | {'action_low': 3.0})",
        ["action_low must be below action_high"],
    ),
    "an agent that is none": (
        ALGORITHM.replace("(MOPO)", ""),
        ["algorithm 'cautious': must be a class that extends SAC, MOPO or COMBO"],
    ),
    "settings that are none": (
        ALGORITHM.replace("settings=CautiousSettings", "settings=dict"),
        ["settings must be a subclass of OfflineSettings"],
    ),
    "a pinned setting that is none": (
        ALGORITHM.replace("settings=C", "pinned={'penlty': 'none'}, settings=C"),
        ["pinned: unknown setting 'penlty': one of"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_with_file_and_line_and_leaves_nothing(load, mistake):
    text, words = MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        load(text)
    sentence = str(error.value)
    assert sentence.startswith("plugin /")
    assert "\n" not in sentence
    for word in ("my_ideas.py", *words):
        assert word in sentence, sentence
    for table in (PENALTIES, ALGORITHMS, ENVIRONMENTS):
        assert list(table) == table.built_in
    load(PENALTY)  # mended, it is read again
    assert "mine" in PENALTIES


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.py", ["nowhere.py cannot be read: No such file or directory"]),
        ("./", ["cannot be read: Is a directory"]),
        ("a\0.py", ["cannot be read: "]),
        ("~nobody-of-that-name/x.py", ["cannot be read: "]),
        ("latin.py", ["latin.py cannot be read: it is not a text file"]),
        (
            "my_ideas",
            ["my_ideas: no such module is installed; a file is named with its .py"],
        ),
        ("", ["no such module is installed"]),
        ("sys", ["no such module is installed"]),
        (".relative", ["no such module is installed"]),
    ],
)
def test_what_is_not_there_is_told(write, tmp_path, name, words):
    write(PENALTY)
    (tmp_path / "latin.py").write_bytes(b"# \xe4")
    with pytest.raises(UserError) as error:
        find_plugins([name], tmp_path)
    for word in words:
        assert word in str(error.value)


def test_two_plugins_with_one_name_are_told_whichever_was_loaded_before(load, write, tmp_path):
    load(PENALTY, "one.py")
    load(PENALTY, "two.py")
    with pytest.raises(UserError, match=r"two\.py.*'mine' exists already, from plugin one\.py"):
        load_plugins(find_plugins(["one.py", "two.py"], tmp_path))
    write(PENALTY + "# new\n", "two.py")
    both = find_plugins(["one.py", "two.py"], tmp_path)
    load_plugins(both[:1])
    with pytest.raises(UserError, match=r"two\.py, line 4: penalty 'mine' exists already, from pl"):
        load_plugins(both)


BAD_PENALTIES = {
    "sums over rows": (
        "p.std.sum()",
        "returns shape [] for a mean of shape [2, 7, 5, 12]: one",
    ),
    "keeps the members": ("p.std.norm(dim=-1)", "returns shape [2, 7, 5] for a mean"),
    "a number": ("1.0", "returns float, not a tensor of numbers"),
    "booleans": ("p.std.norm(dim=-1).amax(dim=-2) > 1", "returns a tensor of bool, not"),
    "nan": ("p.mean.sum(-1).sum(-2).log()", "is NaN or infinite in "),
    "negative": ("-p.std.norm(dim=-1).amax(dim=-2)", "is negative, -"),
}


def penalty_of(text, **options):
    arguments = "".join(f", {key}={value}" for key, value in options.items())
    return f"""
from algorithms.plugins import penalty

@penalty("mine"{arguments})
def mine(p):
    return {text}
"""


@pytest.mark.parametrize("mistake", BAD_PENALTIES)
def test_what_a_penalty_returns_is_checked_in_a_moment(load, mistake):
    text, words = BAD_PENALTIES[mistake]
    load(penalty_of(text))
    settings = ALGORITHMS["mopo"].settings(penalty="mine")
    with pytest.raises(UserError) as error:
        check_on_made_up_input(settings, "Hopper-v4")
    sentence = str(error.value)
    assert "my_ideas.py, line 4: penalty 'mine'" in sentence
    assert words in sentence
    # Where it is not used, it is nobody's trouble.
    check_on_made_up_input(ALGORITHMS["mopo"].settings(penalty="max_std"), "Hopper-v4")
    without = ALGORITHMS["mopo"].settings(penalty="mine", real_ratio=1.0)
    check_on_made_up_input(without, "Hopper-v4")


def test_a_penalty_that_raises_is_told_with_its_line(load):
    load(penalty_of("p.stdd.sum()"))
    with pytest.raises(UserError, match=r"line 6: AttributeError: .*'stdd' \(in penalty 'mine'\)"):
        check_on_made_up_input(ALGORITHMS["mopo"].settings(penalty="mine"), "Hopper-v4")


def test_a_penalty_of_its_own_member_is_given_that_member_alone(load):
    load(penalty_of("p.std.squeeze(-3).norm(dim=-1)", own_member_only=True))
    check_on_made_up_input(ALGORITHMS["mopo"].settings(penalty="mine"), "Hopper-v4")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("s[..., 0]", "returns a tensor of float32, not a tensor of booleans"),
        ("(s > 0).any()", "returns shape [] for observations of shape [2, 5, 4]"),
        ("s.nothing()", "AttributeError"),
    ],
)
def test_what_a_termination_function_returns_is_checked(load, text, words):
    load(ENVIRONMENT + f'@environment("X-v0", **sizes)\ndef ends(s): return {text}\n')
    with pytest.raises(UserError, match=r"my_ideas\.py, line \d+: ") as error:
        check_on_made_up_input(ALGORITHMS["mopo"].settings(), "X-v0")
    assert words in str(error.value)
    assert "the termination function of X-v0" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"env_id": "Nowhere-v0"}, "Gymnasium cannot make it: "),
        ({"obs_dim": 5}, "has obs_dim 5 in its row, but Gymnasium's has a space of shape (4,)"),
        ({"action_dim": 2}, "has action_dim 2 in its row"),
        ({"action_low": -1.0}, "has action_low -1 in its row, but Gymnasium's actions have -3"),
        ({"env_id": "CartPole-v1"}, "Gymnasium's has a space of shape ()"),
        ({"env_id": "no_module:Env-v0"}, "Gymnasium cannot make it: "),
    ],
)
def test_an_environment_that_is_not_as_its_row_says_is_told(load, changes, words):
    env_id = changes.get("env_id", "InvertedPendulum-v4")
    changes = {k: v for k, v in changes.items() if k != "env_id"}
    load(ENVIRONMENT + f"environment({env_id!r}, **sizes | {changes!r})")
    with pytest.raises(UserError) as error:
        make_env(env_id)
    assert f"environment {env_id}" in str(error.value)
    assert words in str(error.value)
