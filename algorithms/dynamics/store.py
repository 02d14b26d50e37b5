"""Published ensembles: `<storage>/ensembles/<key>/` with weights and a description.

A folder appears whole or not at all: it is written aside and renamed. No pickled
objects: an ensemble can be read by any later version, and by other tools.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.dynamics.spec import EnsembleSpec
from algorithms.identity import code_version
from algorithms.settings import EnsembleSettings

WEIGHTS, DESCRIPTION = "weights.safetensors", "ensemble.json"


class PublishedEnsemble(NamedTuple):
    """One seed's ensemble: its weights by value, what is known of it, and where it lies."""

    weights: dict[str, Tensor]  # DynamicsEnsemble.state_dict() with S = 1
    description: dict[str, Any]  # spec, metrics, per-epoch history, seconds, code
    path: str


def ensemble_folder(storage: Path, key: str) -> Path:
    return storage / "ensembles" / key


def read_ensemble(storage: Path, key: str) -> PublishedEnsemble | None:
    """The ensemble with this key, or None if it was never published."""
    folder = ensemble_folder(storage, key)
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
    except FileNotFoundError:
        return None
    return PublishedEnsemble(load_file(folder / WEIGHTS), description, str(folder))


def publish_ensemble(
    storage: Path,
    spec: EnsembleSpec,
    ensemble: DynamicsEnsemble,
    metrics: dict[str, Any],
    history: list[dict[str, float]],
    seconds: float,
) -> None:
    """Make an ensemble of one seed visible under its key, unless one is there already."""
    folder = ensemble_folder(storage, spec.key)
    aside = folder.with_name(f".{spec.key}-{uuid.uuid4().hex}")
    aside.mkdir(parents=True)
    try:
        _write(aside, spec, ensemble, metrics, history, seconds)
        aside.rename(folder)
    except OSError:  # of the rename: somebody else published the same ensemble first
        if not (folder / DESCRIPTION).is_file():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(
    folder: Path,
    spec: EnsembleSpec,
    ensemble: DynamicsEnsemble,
    metrics: dict[str, Any],
    history: list[dict[str, float]],
    seconds: float,
) -> None:
    save_file({k: v.cpu().contiguous() for k, v in ensemble.state_dict().items()}, folder / WEIGHTS)
    description = {
        "spec": spec.model_dump(mode="json"),
        "obs_dim": ensemble.obs_dim,
        "action_dim": ensemble.action_dim,
        "metrics": metrics,
        "history": history,
        "seconds": seconds,
        "code": code_version(),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))


def stack_ensembles(published: Sequence[PublishedEnsemble]) -> DynamicsEnsemble:
    """One `DynamicsEnsemble` whose seed axis holds the given ensembles in order."""
    description = published[0].description
    settings = EnsembleSettings.model_validate(description["spec"]["settings"])
    unused = [torch.Generator() for _ in published]  # every weight is loaded below
    ensemble = DynamicsEnsemble(description["obs_dim"], description["action_dim"], settings, unused)
    ensemble.load_state_dict(
        {name: torch.cat([p.weights[name] for p in published]) for name in published[0].weights}
    )
    return ensemble
