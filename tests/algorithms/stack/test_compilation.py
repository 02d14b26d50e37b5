"""Compiled functions do what they do uncompiled; a machine without a compiler is no obstacle."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from algorithms.stack import compilation
from algorithms.stack.compilation import call_compiled, can_compile
from algorithms.stack.mlp import MANY_ROWS

FALLBACK = """
import torch
from algorithms.stack.compilation import can_compile, call_compiled
assert not can_compile("cpu")
def twice(x):
    return x + x
for _ in range(2):
    assert call_compiled(twice, torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
"""


def test_without_a_compiler_a_function_runs_as_it_is_and_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", FALLBACK], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("twice runs without being compiled") == 1


@pytest.fixture
def without_kernels(monkeypatch):
    """All that torch.compile does but the last stage, which takes a C++ compiler half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    compilation._compiled.cache_clear()
    yield
    compilation._compiled.cache_clear()


def assert_compiled_epochs_are_the_same(make, tolerance):
    """Of two trainings that `make` makes, one of them compiled; no function may refuse to be."""
    eager, compiled = make(), make()
    compiled.agent.call = call_compiled
    for _ in range(2):
        expected, statistics = eager.train_epoch(), compiled.train_epoch()
        assert statistics.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(statistics[name], value, rtol=tolerance, atol=tolerance, msg=name)
    state = compiled.state_dict()
    for name, value in eager.state_dict().items():
        assert_close(state[name], value, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)
    assert not compilation._REFUSED


LEARNED = {"beta": "learned", "actor_lr_schedule": "cosine", "epochs": 3}
VARIANTS = {
    "mopo": ("mopo", {}),
    "many_rows": ("mopo", {"rollout_batch_size": MANY_ROWS}),
    "combo": ("combo", LEARNED),
    "previous_policy": ("combo", {"prior": "previous_policy", "backup": "soft"}),
    "cql": ("cql", {"importance": "balanced"}),
    "mobile": ("mobile", {}),
    "mobile_soft_backup": ("mobile", {"backup": "soft", "alpha": 0.2, "clamp_target": False}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_epochs_are_the_same_as_dynamo_reads_them(offline_training, without_kernels, variant):
    algorithm, changes = VARIANTS[variant]
    settings = changes | {"gradient_steps_per_epoch": 5}
    assert_compiled_epochs_are_the_same(
        lambda: offline_training((3, 8), algorithm, **settings), tolerance=1e-5
    )


@pytest.mark.slow
@pytest.mark.skipif(not can_compile("cpu"), reason="there is no C++ compiler")
def test_epochs_are_the_same_in_compiled_kernels(offline_training):
    """COMBO with few kernels, each of which takes gcc a second."""
    small = {"prior": "previous_policy", "hidden": (8,), "gradient_steps_per_epoch": 5}
    assert_compiled_epochs_are_the_same(
        lambda: offline_training((3, 8), "combo", **LEARNED, **small), tolerance=1e-3
    )
