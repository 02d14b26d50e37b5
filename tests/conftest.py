"""What every test needs before anything else is imported."""

from __future__ import annotations

import os

# Ray would otherwise write a token into the home folder of whoever runs the tests.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import torch

# Two threads on shared cores are slower than one, and make timings of slow tests erratic.
torch.set_num_threads(1)
