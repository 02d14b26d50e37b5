"""Whether the network may be used."""

from __future__ import annotations

import os

OFFLINE = "ORCHESTRATOR_OFFLINE"


def is_offline() -> bool:
    """Whether the user has said that nothing is downloaded: `ORCHESTRATOR_OFFLINE=1`."""
    return os.environ.get(OFFLINE, "").lower() not in ("", "0", "false", "no")
