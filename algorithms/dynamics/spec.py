"""What a dynamics ensemble is: everything that decides its weights, and nothing else."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from algorithms.data.spec import DatasetSpec
from algorithms.environments.table import ENVIRONMENTS
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
        # A plugin's environment says in which units the data's actions are.
        if origin := ENVIRONMENTS.origin(self.dataset.env_id):
            payload["environment"] = origin.sha256
        return content_key(payload)


def ensemble_folder(key: str) -> str:
    """Where an ensemble is kept in a storage."""
    return f"ensembles/{key}"


def is_published(storage: Storage, key: str) -> bool:
    return storage.get(f"{ensemble_folder(key)}/{DESCRIPTION}") is not None
