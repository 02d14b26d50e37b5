"""What every test needs before anything else is imported."""

from __future__ import annotations

import os
import signal
import sys

# Ray would otherwise write a token into the home folder of whoever runs the tests.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import pytest
import torch

from algorithms import loading
from algorithms.registry import Registry

# Two threads on shared cores are slower than one, and make timings of slow tests erratic.
torch.set_num_threads(1)

# Where the tests are started in the background, SIGINT is ignored, which commands would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def no_plugins():
    """Whatever plugins a test loads, in this process, are gone after it."""
    loading.load_plugins([])
    executed, modules = set(loading._LOADED), set(sys.modules)
    rows = [dict(table._rows) for table in Registry.everyone]
    yield
    loading._LOADED.clear()
    loading._LOADED.update(executed)
    for table, before in zip(Registry.everyone, rows, strict=False):
        table._rows.clear()
        table._rows.update(before)
    loading._activate([])
    for name in set(sys.modules) - modules:
        if name.startswith("orchestrator_plugin_"):
            del sys.modules[name]
