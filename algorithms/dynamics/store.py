"""Published ensembles: `ensembles/<key>/` in the storage, with weights and a description.

A folder appears whole or not at all. No pickled objects: an ensemble can be read by any later
version, and by other tools.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.dynamics.spec import DESCRIPTION, EnsembleSpec, ensemble_folder
from algorithms.identity import code_version
from algorithms.settings import EnsembleSettings
from algorithms.storage import Storage

WEIGHTS = "weights.safetensors"


class PublishedEnsemble(NamedTuple):
    """One seed's ensemble: its weights by value, what is known of it, and where it lies."""

    weights: dict[str, Tensor]  # DynamicsEnsemble.state_dict() with S = 1
    description: dict[str, Any]  # spec, metrics, per-epoch history, seconds, code
    folder: str  # in the storage


def read_ensemble(storage: Storage, key: str) -> PublishedEnsemble | None:
    """The ensemble with this key, or None if it was never published."""
    folder = ensemble_folder(key)
    description = storage.get(f"{folder}/{DESCRIPTION}")
    if description is None:
        return None
    weights = storage.get(f"{folder}/{WEIGHTS}")
    if weights is None:
        raise FileNotFoundError(f"{storage}/{folder}/{WEIGHTS}")
    return PublishedEnsemble(load(weights), json.loads(description), folder)


def publish_ensemble(
    storage: Storage,
    spec: EnsembleSpec,
    ensemble: DynamicsEnsemble,
    metrics: dict[str, Any],
    history: list[dict[str, float]],
    seconds: float,
) -> None:
    """Make an ensemble of one seed visible under its key, unless one is there already."""
    weights: bytes = save({k: v.cpu().contiguous() for k, v in ensemble.state_dict().items()})
    description = {
        "spec": spec.model_dump(mode="json"),
        "obs_dim": ensemble.obs_dim,
        "action_dim": ensemble.action_dim,
        "metrics": metrics,
        "history": history,
        "seconds": seconds,
        "code": code_version(),
    }
    files = {WEIGHTS: weights, DESCRIPTION: json.dumps(description, indent=1).encode()}
    storage.publish(ensemble_folder(spec.key), files, last=DESCRIPTION)


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
