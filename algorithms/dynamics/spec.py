"""What a dynamics ensemble is: everything that decides its weights, and nothing else."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from algorithms.data.spec import DatasetSpec
from algorithms.environments.table import UNIT_BOUNDS
from algorithms.identity import content_key
from algorithms.settings import EnsembleSettings
from algorithms.storage import Storage

ENSEMBLE_FORMAT = 1
DESCRIPTION = "ensemble.json"  # says that an ensemble is published


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
        payload = {
            "format": ENSEMBLE_FORMAT,
            "dataset": self.dataset.content_hash,
            "settings": self.settings.model_dump(mode="json"),
            "seed": self.seed,
        }
        if self.dataset.action_bounds != UNIT_BOUNDS:  # by which the data's actions are rescaled
            payload["action_bounds"] = self.dataset.action_bounds
        return content_key(payload)


def ensemble_folder(key: str) -> str:
    """Where an ensemble is kept in a storage."""
    return f"ensembles/{key}"


def is_published(storage: Storage, key: str) -> bool:
    return storage.get(f"{ensemble_folder(key)}/{DESCRIPTION}") is not None
