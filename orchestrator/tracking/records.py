"""What trackers are told, as values: they cross processes as plain dictionaries and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict

from algorithms.data.spec import DatasetSpec

Status = Literal["FINISHED", "FAILED", "KILLED"]


class DatasetRecord(BaseModel):
    """A data set, in a word and by its content: the provenance of every number it leads to."""

    model_config = ConfigDict(frozen=True)

    id: str
    digest: str  # SHA-256 (hex) of its content, or of the recipe it is made from
    env_id: str
    version: str = ""
    notes: tuple[str, ...] = ()  # what was derived or converted
    silenced: tuple[str, ...] = ()  # what the checks that are allowed would say

    @classmethod
    def of(cls, spec: DatasetSpec) -> Self:
        return cls(
            id=spec.id,
            digest=spec.content_hash,
            env_id=spec.env_id,
            version=spec.version,
            notes=spec.notes,
            silenced=spec.silenced,
        )


class SweepRecord(BaseModel):
    """A sweep, as its file has it."""

    model_config = ConfigDict(frozen=True)

    name: str
    question: str = ""
    params: dict[str, Any] = {}


class CellRecord(BaseModel):
    """A cell of a sweep, and those of its seeds that a job trains."""

    model_config = ConfigDict(frozen=True)

    key: str  # `Cell.cell_key`
    name: str
    variant: str
    params: dict[str, Any]  # the resolved settings
    dataset: DatasetRecord
    seeds: tuple[int, ...]  # that the job trains
    cell_seeds: tuple[int, ...]  # all of the cell's
    ensemble_keys: tuple[str, ...] = ()
    diverged: tuple[int, ...] = ()  # seeds that have diverged so far

    @property
    def is_whole(self) -> bool:
        """Whether the job trains every seed of the cell, so that its means are the cell's."""
        return set(self.seeds) == set(self.cell_seeds)


class JobRecord(BaseModel):
    """What callbacks on the driver know of a job, kept in its trial's config."""

    model_config = ConfigDict(frozen=True)

    cell: CellRecord
    epochs: int  # to be reached
    epochs_done: int  # before
    other_names: tuple[str, ...] = ()  # of cells of which it is the result as well
    action_bounds: tuple[float, float] = (-1.0, 1.0)  # of the environment's actions
    # In the order of the seeds.
    result_keys: tuple[str, ...]
    ensemble_of_seed: tuple[str | None, ...]


class EpochRecord(NamedTuple):
    """Metrics of one epoch of a job."""

    epoch: int
    seeds: Mapping[int, Mapping[str, float]]  # of each seed
    mean: Mapping[str, float] = {}  # over all seeds of the cell; empty if the job trains but some
    minutes: float | None = None  # of training and evaluation so far


class EnsembleRecord(NamedTuple):
    """A trained dynamics ensemble."""

    key: str  # `EnsembleSpec.key`
    name: str
    params: Mapping[str, Any]  # its settings
    dataset: DatasetRecord
    seed: int
    folder: str  # where it is published
    metrics: Mapping[str, float]  # of the published ensemble: holdout error, calibration
    history: tuple[Mapping[str, float], ...] = ()  # metrics of each epoch, from the first
    files: tuple[Path, ...] = ()  # kept with it under their names; read when they are written
