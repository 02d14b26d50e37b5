"""The JSON Schema by which editors complete and check sweep files."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from orchestrator.sweep.schema import sweep_schema
from orchestrator.sweep.yaml_file import read_yaml

SWEEPS = Path(__file__).parents[3] / "sweeps"
SCHEMA = Draft202012Validator(sweep_schema())
BASE = {"name": "x", "algorithm": "mopo", "datasets": ["bundled/hopper-medium"], "seeds": 2}


def complaints(content):
    return [(list(error.path), error.message) for error in SCHEMA.iter_errors(content)]


def test_it_is_a_schema_and_the_one_that_lies_beside_the_sweeps():
    """`orchestrator schema > sweeps/sweep.schema.json` after a change of the settings."""
    Draft202012Validator.check_schema(sweep_schema())
    assert json.loads((SWEEPS / "sweep.schema.json").read_text()) == sweep_schema()


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_fits_and_names_it_for_editors(file):
    assert file.read_text().startswith("# yaml-language-server: $schema=sweep.schema.json\n")
    assert complaints(read_yaml(file)) == []


@pytest.mark.parametrize(
    "keys",
    [
        {"fixed": {"beta": "learned", "hidden": [64, 64]}, "compile": "auto"},
        {"grid": {"penalty": ["none", "of_a_plugin"], "algorithm": ["mopo", "combo"]}},
        {"variants": {"a b": {"algorithm": "sac"}}, "trackers": ["mlflow", "files"]},
        {"datasets": ["file:/x.hdf5", {"id": "d4rl/hopper-medium-v2"}], "seeds": [3, 5]},
        {"datasets": ["minari/D4RL/pen/human-v2", "hopper-medium-v2"]},
        {"datasets": [{"id": ["file:a.npz", "file:b.npz"], "actions": "clip", "allow": ["flags"]}]},
    ],
    ids=str,
)
def test_what_a_sweep_may_say_is_accepted(keys):
    assert complaints(BASE | keys) == []


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"fixed": {"penalty_coeff": 1.0}}, ["fixed"]),
        ({"fixed": {"tau": "high"}}, ["fixed", "tau"]),
        ({"fixed": {"epochs": 0}}, ["fixed", "epochs"]),
        ({"grid": {"beta": 1.0}}, ["grid", "beta"]),
        ({"grid": {"beta": ["learnt"]}}, ["grid", "beta", 0]),
        ({"variants": {"a": {"algorthm": "sac"}}}, ["variants", "a"]),
        ({"datasets": ["hopper-medium"]}, ["datasets", 0]),
        ({"datasets": [{"id": "file:x.npz", "actions": "cut"}]}, ["datasets", 0]),
        ({"seeds": 0}, ["seeds"]),
        ({"device": "gpu"}, ["device"]),
        ({"trackers": ["wandb"]}, ["trackers", 0]),
        ({"sedes": 2}, []),
    ],
    ids=str,
)
def test_a_mistake_is_marked_where_it_stands(keys, path):
    assert path in [where for where, _ in complaints(BASE | keys)]
