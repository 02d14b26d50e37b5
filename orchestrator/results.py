"""What is known of each seed: small JSON pointers to checkpoints, one per result key.

A pointer is written by the trial that trained the seed, after the checkpoint it
points to, and read by every later plan and report of any sweep that needs the
same result.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from algorithms.errors import UserError


class SeedResult(BaseModel):
    """One seed of one cell: how far it is, how good, and where its state lies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    trial: str  # name of the trial that trained it
    seed: int
    epochs: int  # done in all
    run_score: float | None  # normalised; mean of the last 10 evaluations; None if it diverged
    # The score at the end of each training that reached its goal, by epochs: a sweep that
    # asked for 100 epochs keeps its number when another one goes on to 1000.
    finished_scores: dict[int, float] = {}
    behaviour_score: float | None  # mean normalised score of the data's complete episodes
    minutes: float  # wall time of the trial's training up to here, over all its runs
    checkpoint: str | None  # folder; in the file relative to the storage, which may move
    index: int  # position in the checkpoint's stack of seeds
    ensemble_key: str | None  # None: trained without a model
    code: str = ""  # `algorithms.identity.code_hash`
    mlflow_run_id: str | None = None
    status: Literal["running", "finished", "diverged"]

    def done(self, epochs: int) -> bool:
        """Whether nothing is left to train of a seed that should reach `epochs`.

        A diverged seed is done: it would diverge again.
        """
        return self.status == "diverged" or self.epochs >= epochs

    def diverged_before(self, epochs: int) -> bool:
        """Whether the seed diverged, and no score is kept of it at `epochs`."""
        return self.status == "diverged" and epochs not in self.finished_scores

    def score(self, epochs: int) -> float | None:
        """The run score at `epochs`, or the last one; None for a seed that diverged before."""
        if self.diverged_before(epochs):
            return None
        return self.finished_scores.get(epochs, self.run_score)

    def scored_at(self, epochs: int) -> int:
        """After how many epochs `score(epochs)` was."""
        return epochs if epochs in self.finished_scores else self.epochs

    @property
    def existing_checkpoint(self) -> str | None:
        """The checkpoint if it still exists; without it the seed starts anew."""
        return self.checkpoint if self.checkpoint and Path(self.checkpoint).is_dir() else None


class ResultStore:
    """The pointers below `<storage>/results`. Reading creates nothing."""

    def __init__(self, storage: Path) -> None:
        self._storage = storage
        self._folder = storage / "results"

    def get(self, key: str) -> SeedResult | None:
        """The result with this key, or None if the seed was never checkpointed.

        Raises:
            UserError: the file is damaged or of another version of the project.
        """
        try:
            text = self._path(key).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            result = SeedResult.model_validate_json(text)
            return self._located(result)
        except ValidationError:
            raise UserError(
                f"{self._path(key)} is not a result that this version can read: "
                "delete it to train the seed again"
            ) from None

    def put(self, result: SeedResult) -> None:
        """Write or replace a result; a reader sees the old one or the new one, whole.

        A result that stands at more epochs stays, while it can be of use: a training that
        starts anew, or lags behind another, does not undo what is there.
        """
        old = self.get(result.key)
        if old is not None:
            useful = old.status == "finished" or old.existing_checkpoint
            if old.epochs > result.epochs and useful:
                return
            scores = old.finished_scores | result.finished_scores
            result = result.model_copy(update={"finished_scores": scores})
        if result.checkpoint and Path(result.checkpoint).is_relative_to(self._storage):
            relative = Path(result.checkpoint).relative_to(self._storage)
            result = result.model_copy(update={"checkpoint": str(relative)})
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(result.key)
        aside = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        aside.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
        aside.replace(path)

    def all(self) -> list[SeedResult]:
        """Every result in the storage, in the order of their keys."""
        found = (self.get(path.stem) for path in sorted(self._folder.glob("*.json")))
        return [result for result in found if result is not None]

    def _located(self, result: SeedResult) -> SeedResult:
        if result.checkpoint is None:
            return result
        return result.model_copy(update={"checkpoint": str(self._storage / result.checkpoint)})

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"
