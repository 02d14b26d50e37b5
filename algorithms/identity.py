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


def content_key(payload: Mapping[str, Any]) -> str:
    """16 hex digits of the SHA-256 of `payload` as canonical JSON."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def git_commit() -> str | None:
    """The commit of the git checkout that this code runs from, None where there is none."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--show-prefix", "HEAD"],  # noqa: S607 - the user's own git
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    # Installed elsewhere, this file may lie in a repository that is not this project's.
    if answer.returncode != 0 or not answer.stdout.startswith("algorithms/\n"):
        return None
    return answer.stdout.split()[1]


@cache
def code_version() -> str:
    """The installed version of this project, with the git commit where there is one."""
    try:
        release = version("orchestrator-rl")
    except PackageNotFoundError:  # run from a working directory, not installed
        release = "source"
    commit = git_commit()
    return f"{release}+{commit}" if commit else release


@cache
def code_hash() -> str:
    """8 hex digits of the source of this package: it tells uploads of different code apart."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:8]


DYNAMICS_SEEDS = ("per_seed", "shared")


def ensemble_seed(seed: int, dynamics_seeds: str) -> int:
    """The seed of the dynamics ensemble on which a seed trains: its own, or 0 for all."""
    return 0 if dynamics_seeds == "shared" else seed
