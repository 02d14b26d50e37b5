"""Names of data sets, and the recipes of the bundled ones."""

import ast
import math
import pickle
import subprocess
import sys
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.data import d4rl
from algorithms.data.bundled.recipe import (
    Level,
    apportion,
    equal,
    policies_folder,
    policy_set,
    replay,
)
from algorithms.data.bundled.source import make_recipe
from algorithms.data.catalog import CATALOG, D4RL_FILES, TASKS, Bundled
from algorithms.data.source import resolve
from algorithms.data.spec import DatasetSpec
from algorithms.environments.table import ENVIRONMENTS
from algorithms.errors import UserError
from algorithms.identity import file_sha256

BUNDLED = [name for name, entry in CATALOG.items() if isinstance(entry, Bundled)]
KNOWN = [name for name, entry in CATALOG.items() if name in BUNDLED or entry.sha256]


def level(steps: int) -> Level:
    return Level(
        file="",
        sha256="",
        steps=steps,
        gradient_steps=0,
        episodes=1,
        return_mean=0,
        return_std=0,
        normalized_score=0,
    )


@pytest.mark.parametrize("dataset_id", KNOWN)
def test_every_entry_of_known_content_resolves_without_its_data(dataset_id):
    spec = resolve(dataset_id)
    assert spec == resolve(dataset_id)
    assert spec.id == dataset_id
    assert spec.env_id in ENVIRONMENTS
    if spec.env_id == "InvertedDoublePendulum-v4":  # no task of D4RL's
        assert spec.task is None
    else:
        assert TASKS[spec.task] == spec.env_id
        assert spec.task in dataset_id
    assert spec.slug == dataset_id.replace("/", "-")
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert DatasetSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize("dataset_id", BUNDLED)
def test_every_bundled_entry_resolves_to_policies_that_are_shipped(dataset_id):
    spec = resolve(dataset_id, size=12_345)
    assert spec == resolve(dataset_id, size=12_345)
    assert hash(spec) == hash(resolve(dataset_id, size=12_345))
    assert sum(part.size for part in spec.recipe.parts) == spec.size == 12_345
    for part in spec.recipe.parts:
        shipped = policy_set(spec.recipe.policies).levels[part.level]
        assert file_sha256(policies_folder(spec.recipe.policies) / shipped.file) == part.sha256


def test_the_hash_follows_from_name_size_and_seed():
    specs = [resolve(name, size=size) for name in BUNDLED for size in (1000, 2000)]
    entry = CATALOG["bundled/hopper-medium"]
    hashes = [spec.content_hash for spec in specs]
    hashes += [make_recipe(entry, 1000, seed=1).content_hash]
    assert len(set(hashes)) == len(hashes) == len(specs) + 1
    assert resolve("bundled/hopper-medium").size == 100_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"dataset_id": "hopper-medium"}, "one of bundled/.*, file:PATH"),
        ({"dataset_id": "bundled/hopper-medium", "size": 999}, "give 1,000 to 1,000,000"),
        ({"dataset_id": "bundled/hopper-medium", "size": 1_000_001}, "give 1,000 to 1,000,000"),
        ({"dataset_id": "bundled/hopper-medium", "env": "Hopper-v3"}, "unknown env 'Hopper-v3'"),
        ({"dataset_id": "bundled/hopper-medium", "env": "Walker2d-v4"}, "is of env Hopper-v4"),
        ({"dataset_id": "file:x.hdf5", "size": 5000}, "size applies to bundled data sets only"),
        ({"dataset_id": "d4rl/hopper-medium-v2", "size": 5000}, "size applies to bundled data"),
        ({"dataset_id": "d4rl/hopper-medium-v2", "env": "Walker2d-v4"}, "is of env Hopper-v4"),
        ({"dataset_id": "d4rl/hopper-medium-v0"}, "unknown data set .*, d4rl/hopper-medium-v2, "),
        (
            {"dataset_id": "d4rl/hopper-medium-v2", "task": "hopper-medium"},
            "given for file: data only: remove it from d4rl/.*, whose task is hopper-medium$",
        ),
        ({"dataset_id": "bundled/hopper-medium", "task": "hopper-medium"}, "for file: data only"),
        ({"dataset_id": "file:x.hdf5", "task": "hopper-simple"}, "unknown task 'hopper-simple'"),
    ],
)
def test_user_mistakes(arguments, said):
    with pytest.raises(UserError, match=said):
        resolve(**arguments)


@pytest.fixture(scope="module")
def infos(tmp_path_factory):
    """The tables of `d4rl/infos.py`, read without importing the package, which would not work."""
    folder = tmp_path_factory.mktemp("d4rl")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "d4rl==1.1"]
    command += ["--retries=0", "--timeout=5", "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("d4rl-*.whl"))
    if not wheels:
        pytest.skip(f"no package d4rl to compare with: {done.stderr.strip().splitlines()[-1:]}")
    source = ast.parse(zipfile.ZipFile(wheels[0]).read("d4rl/infos.py"))
    assert all(isinstance(node, ast.Expr | ast.Assign | ast.For) for node in source.body)
    tables: dict = {}
    exec(compile(source, "infos.py", "exec"), {"__builtins__": {}}, tables)
    return tables


@pytest.mark.slow
@pytest.mark.parametrize("name", D4RL_FILES)
def test_addresses_and_reference_returns_are_those_of_the_d4rl_package(infos, name):
    row = D4RL_FILES[name]
    assert d4rl.addresses(f"d4rl/{name}")[0] == infos["DATASET_URLS"][name]
    env = ENVIRONMENTS[row.env_id]
    assert env.random_return == infos["REF_MIN_SCORE"][name]
    assert env.expert_return == infos["REF_MAX_SCORE"][name]


def test_every_file_has_a_mirror_of_its_name():
    for name, row in D4RL_FILES.items():
        assert [url.rpartition("/")[2] for url in d4rl.addresses(f"d4rl/{name}")] == [row.file] * 2


def test_replay_gives_each_level_the_training_steps_nearest_to_it():
    levels = {
        "b": level(200),
        "random": level(0),
        "a": level(100),
        "m": level(400),
        "x": level(900),
    }
    assert replay(until="m")(levels) == {"random": 50, "a": 100, "b": 150, "m": 100}
    assert equal("a", "m")(levels) == {"a": 1, "m": 1}


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20), st.integers(0, 10**6))
def test_apportioned_numbers_sum_to_the_total_and_are_within_one_of_exact(shares, total):
    counts = apportion(shares, total)
    assert sum(counts) == total
    for count, share in zip(counts, shares, strict=True):
        assert math.floor(total * share / sum(shares) - 1e-6) <= count
        assert count <= math.ceil(total * share / sum(shares) + 1e-6)
