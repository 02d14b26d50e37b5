"""What a dynamics ensemble is: everything that decides its weights, and nothing else."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from algorithms.data.catalog import DatasetSpec
from algorithms.identity import content_key
from algorithms.settings import EnsembleSettings

ENSEMBLE_FORMAT = 1


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
