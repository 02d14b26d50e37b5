"""What the tests of the maths share; the helpers themselves lie beside the golden values."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "golden"))

import small_tasks


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def float64():
    """Networks and random numbers in double precision: rounding is then no excuse."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def linear_data():
    """`small_tasks.linear_data`."""
    return small_tasks.linear_data


@pytest.fixture
def offline_training():
    """`small_tasks.offline_training`: `make(seeds, algorithm="mopo", **changes)`."""
    return small_tasks.offline_training
