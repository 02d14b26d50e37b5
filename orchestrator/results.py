"""What is known of each seed: small JSON pointers to checkpoints, one per result key.

A pointer is written for the job that trained the seed, after the checkpoint it points to, and
read by every later plan and report of any sweep that needs the same result. So it is named by its
key alone: sweeps may call the same cell by different names. Its curve lies beside it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from algorithms.data.catalog import is_known_by_name
from algorithms.data.file import absolute_id
from algorithms.data.spec import FILE_PREFIX, DatasetSpec
from algorithms.environments.table import ENVIRONMENTS
from algorithms.errors import UserError
from algorithms.identity import content_key
from algorithms.storage import Storage, is_dir
from orchestrator.sweep.cell import Resolve, resolve_entry
from orchestrator.sweep.model import DatasetEntry
from orchestrator.tracking.records import DatasetRecord

if TYPE_CHECKING:
    import pandas as pd


class SeedResult(BaseModel):
    """One seed of one cell: how far it is, how good, and where its state lies.

    What it does not know in a file, of a later version, it leaves out.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    key: str
    # Name of the cell that trained it; `trial` in files of version 0.1.
    cell: str = Field(validation_alias=AliasChoices("cell", "trial"))
    other_names: tuple[str, ...] = ()  # of cells of which it is the result as well
    seed: int
    epochs: int  # done in all
    run_score: float | None  # normalised; mean of the last 10 evaluations; None if it diverged
    # The score at the end of each training that reached its goal, by epochs: a sweep that
    # asked for 100 epochs keeps its number when another one goes on to 1000.
    finished_scores: dict[int, float] = {}
    dataset: DatasetRecord | None = None  # None in files of version 0.1
    behaviour_score: float | None  # mean normalised score of the data's complete episodes
    minutes: float  # wall time of the job's training up to here, over all its runs
    checkpoint: str | None  # folder; in the file relative to the storage, which may move
    # In the checkpoint's stack of seeds; `index` in files of version 0.1.
    position: int = Field(validation_alias=AliasChoices("position", "index"))
    ensemble_key: str | None  # None: trained without a model
    action_bounds: tuple[float, float] = (-1.0, 1.0)  # of the environment's actions
    code: str = ""  # `algorithms.identity.code_hash`
    mlflow_run_id: str | None = None
    status: Literal["running", "finished", "diverged"]

    @property
    def names(self) -> tuple[str, ...]:
        """All cells of which it is the result, the one that trained it first."""
        return (self.cell, *self.other_names)

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
        return self.checkpoint if self.checkpoint and is_dir(Path(self.checkpoint)) else None


class ResultStore:
    """The pointers below `results/` in a storage. Reading creates nothing."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def get(self, key: str) -> SeedResult | None:
        """The result with this key, or None if the seed was never checkpointed.

        Raises:
            UserError: the file is damaged or of another version of the project.
        """
        content = self._storage.get(_name(key))
        if content is None:
            return None
        try:
            return self._located(SeedResult.model_validate_json(content))
        except ValidationError:
            raise UserError(
                f"{self._storage}/{_name(key)} is not a result that this version can read: "
                "delete it to train the seed again"
            ) from None

    def accepts(self, result: SeedResult) -> bool:
        """Whether `put` would write a result.

        One that stands at more epochs stays, while it can be of use: a training that starts
        anew, or lags behind another, does not undo what is there.
        """
        old = self.get(result.key)
        if old is None:
            return True
        useful = old.status == "finished" or old.existing_checkpoint
        return old.epochs <= result.epochs or not useful

    def put(self, result: SeedResult) -> None:
        """Write or replace a result, if it is accepted."""
        if not self.accepts(result):
            return
        old = self.get(result.key)
        if old is not None:
            scores = old.finished_scores | result.finished_scores
            names = [name for name in (*result.names, *old.names) if name != result.cell]
            others = tuple(dict.fromkeys(names))
            result = result.model_copy(update={"finished_scores": scores, "other_names": others})
        self._write(result)

    def add_name(self, key: str, cell: str) -> None:
        """Remember that a result is that of `cell` as well."""
        result = self.get(key)
        if result is not None and cell not in result.names:
            names = (*result.other_names, cell)
            self._write(result.model_copy(update={"other_names": names}))

    def _write(self, result: SeedResult) -> None:
        root = self._storage.path("")
        if result.checkpoint and Path(result.checkpoint).is_relative_to(root):
            relative = Path(result.checkpoint).relative_to(root)
            result = result.model_copy(update={"checkpoint": str(relative)})
        self._storage.put(_name(result.key), (result.model_dump_json(indent=1) + "\n").encode())

    def all(self) -> list[SeedResult]:
        """Every result in the storage, in the order of their keys."""
        keys = [n.removesuffix(".json") for n in self._storage.list("results") if ".json" in n]
        return [result for result in map(self.get, keys) if result is not None]

    def put_curve(self, key: str, curve: pd.DataFrame) -> None:
        """Write or replace the curve of a result: a column `epoch`, and one per metric."""
        self._storage.put(_curve(key), curve.to_csv(index=False).encode())

    def get_curve(self, key: str) -> pd.DataFrame:
        """The curve of a result, up to its last checkpoint; empty where there is none."""
        import pandas as pd  # a third of a second, which no plan needs

        content = self._storage.get(_curve(key))
        return pd.DataFrame() if content is None else pd.read_csv(io.BytesIO(content))

    def _located(self, result: SeedResult) -> SeedResult:
        if result.checkpoint is None:
            return result
        path = self._storage.path(result.checkpoint)
        return result.model_copy(update={"checkpoint": str(path)})


def _name(key: str) -> str:
    return f"results/{key}.json"


def _curve(key: str) -> str:
    return f"curves/{key}.csv"


# --- what a data set was when a sweep ran: results are looked up without opening its file


def remember_datasets(resolved: Mapping[DatasetEntry, DatasetSpec], storage: Storage) -> None:
    """Keep what a sweep's data sets are, where that does not follow from their names."""
    for entry, spec in resolved.items():
        if not is_known_by_name(entry.id):
            storage.put(_dataset(entry), spec.model_dump_json(indent=1).encode())


def remembered(storage: Storage) -> Resolve:
    """Resolves the entries of a sweep, files as they were when it last ran."""

    def resolve(entry: DatasetEntry) -> DatasetSpec:
        content = None if is_known_by_name(entry.id) else storage.get(_dataset(entry))
        spec = None if content is None else DatasetSpec.model_validate_json(content)
        # Its environment may have been a plugin's that the sweep no longer names.
        return spec if spec and spec.env_id in ENVIRONMENTS else resolve_entry(entry, storage)

    return resolve


def _dataset(entry: DatasetEntry) -> str:
    # The same words name another file in another folder.
    name = absolute_id(entry.id).removeprefix(FILE_PREFIX)
    said = {"id": name, "env": entry.env, "size": entry.size, "task": entry.task}
    later = entry.model_dump(mode="json", include={"actions", "allow"}, exclude_defaults=True)
    return f"datasets/{content_key(said | later)}.json"
