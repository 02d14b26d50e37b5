"""Content keys: two things with the same key are the same thing, and are made once."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from algorithms.data.catalog import DatasetSpec
from algorithms.settings import EnsembleSettings

ENSEMBLE_FORMAT = 1


def content_key(payload: Mapping[str, Any]) -> str:
    """16 hex digits of the SHA-256 of `payload` as canonical JSON."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def code_version() -> str:
    """The installed version of this project, with the git commit where there is one."""
    try:
        release = version("orchestrator-rl")
    except PackageNotFoundError:  # run from a working directory, not installed
        release = "source"
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return release
    return f"{release}+{git.stdout.strip()}"


class EnsembleSpec(BaseModel):
    """Everything that decides what a dynamics ensemble is, and nothing else.

    Penalties, coefficients and anything of the policy stay out, so that every
    variant of a sweep uses the same ensembles.
    """

    model_config = ConfigDict(frozen=True)

    dataset: DatasetSpec
    settings: EnsembleSettings
    seed: int

    @property
    def key(self) -> str:
        return content_key(
            {
                "format": ENSEMBLE_FORMAT,
                "dataset": self.dataset.content_hash,
                "settings": self.settings.model_dump(mode="json"),
                "seed": self.seed,
            }
        )
