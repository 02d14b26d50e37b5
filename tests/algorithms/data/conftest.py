"""What the tests of data share; the helpers themselves lie beside them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithms.data import hdf5
from algorithms.data.bundled.generate import generate
from algorithms.data.bundled.source import make_recipe
from algorithms.data.catalog import CATALOG

# For `file_server` and `small_files`.
sys.path.append(str(Path(__file__).parent))

# Batches here are tiny: a second thread costs more than it brings.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def rolled_out():
    """1,000 real transitions of Hopper-v4, in several episodes."""
    recipe = make_recipe(CATALOG["bundled/hopper-medium-replay"], 1_000)
    data, _ = generate(recipe, lambda _: None, processes=1)
    return data


@pytest.fixture
def columns(rolled_out):
    """The same under D4RL's names; a test may change them."""
    named = {hdf5.KEYS[name]: array.copy() for name, array in rolled_out._asdict().items()}
    return named | {"terminals": np.asarray(named["terminals"] > 0)}
