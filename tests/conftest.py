"""What every test needs before anything else is imported."""

from __future__ import annotations

import os
import signal

# Ray would otherwise write a token into the home folder of whoever runs the tests.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import torch

# Two threads on shared cores are slower than one, and make timings of slow tests erratic.
torch.set_num_threads(1)

# Where the tests are started in the background, SIGINT is ignored, which commands would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
