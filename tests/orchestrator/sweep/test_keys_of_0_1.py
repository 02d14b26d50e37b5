"""Keys of results and ensembles are those of version 0.1: what it has trained is found again."""

import json
from pathlib import Path

import pytest

from orchestrator.sweep.cell import cells_of
from orchestrator.sweep.model import load_sweep

SWEEPS = Path(__file__).parents[3] / "sweeps"
KEYS = json.loads((Path(__file__).parent / "keys_of_0_1.json").read_text())
BASELINES = ("mbpo", "sac", "cql", "mopo", "combo")
OTHERS = {
    "baselines": {"variants": {name: {"algorithm": name} for name in BASELINES}},
    "dtype": {"algorithm": "mopo", "fixed": {"matmul_dtype": "bfloat16"}},
    "cosine": {"algorithm": "combo", "preset": "offlinerlkit_v2"},
    "learned": {"algorithm": "combo", "fixed": {"beta": "learned", "importance": "balanced"}},
    "matched": {
        "algorithm": "mopo",
        "fixed": {"penalty": "combined", "penalty_coef_mode": "matched"},
        "dynamics_seeds": "shared",
    },
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_those_of_version_0_1(name, load):
    if name in OTHERS:
        content = {"name": "k", "datasets": ["bundled/hopper-medium"], "seeds": 1}
        sweep = load(content | OTHERS[name])
    else:
        sweep = load_sweep(SWEEPS / f"{name}.yaml")
    keys = {
        cell.name: {
            "cell": cell.cell_key,
            "seed0": cell.result_key(0),
            "ensemble": (ensemble := cell.ensemble(0)) and ensemble.key,
        }
        for cell in cells_of(sweep)
    }
    assert {cell: keys[cell] for cell in KEYS[name]} == KEYS[name]
