"""Compiled functions do what they do uncompiled; a machine without a compiler is no obstacle."""

import subprocess
import sys

import pytest
import torch

from algorithms.compilation import can_compile, run_compiled

FALLBACK = """
import torch
from algorithms.compilation import can_compile, run_compiled
assert not can_compile("cpu")
def twice(x):
    return x + x
for _ in range(2):
    assert run_compiled(twice, torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
"""


def test_without_a_compiler_a_function_runs_as_it_is_and_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", FALLBACK], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("twice runs without being compiled") == 1


@pytest.mark.slow
@pytest.mark.skipif(not can_compile("cpu"), reason="there is no C++ compiler")
@pytest.mark.parametrize("algorithm", ["mopo", "combo"])
def test_compiled_epochs_are_those_of_the_uncompiled_functions(offline_training, algorithm):
    settings = {"gradient_steps_per_epoch": 10}
    eager, compiled = (offline_training((3, 8), algorithm=algorithm, **settings) for _ in range(2))
    compiled.agent.run = run_compiled
    for _ in range(2):
        expected, statistics = eager.train_epoch(), compiled.train_epoch()
        assert statistics.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(statistics[name], value, rtol=1e-3, atol=1e-4, msg=name)
    for name, value in eager.agent.state_dict().items():
        torch.testing.assert_close(
            compiled.agent.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name
        )
