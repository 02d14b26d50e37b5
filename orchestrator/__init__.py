"""What runs where, and what is recorded. For notebooks:

import orchestrator as o

sweep = o.load("sweep.yaml")
sweep.run()
sweep.results()
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api import Experiment, load, policy

__all__ = ["Experiment", "__version__", "load", "policy"]

try:
    __version__ = version("orchestrator-rl")
except PackageNotFoundError:  # run from a working directory, not installed
    __version__ = "0+source"


def __getattr__(name: str) -> Any:
    # What a sweep needs takes half a second to import: not for `orchestrator --help`.
    if name not in ("Experiment", "load", "policy"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from orchestrator import api

    return getattr(api, name)
