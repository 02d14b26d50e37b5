"""What a data set is: small, picklable and hashable. This module does not import torch."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_SIZE = 100_000  # transitions of bundled data
FILE_PREFIX, MINARI_PREFIX = "file:", "minari/"
FILE_SEPARATOR = " + "  # between the paths of several files


class Part(BaseModel):
    """`size` transitions of one level."""

    model_config = ConfigDict(frozen=True)

    level: str
    sha256: str  # of the policy's weights
    size: Annotated[int, Field(ge=1)]


class Recipe(BaseModel):
    """All that decides the content of a bundled data set."""

    model_config = ConfigDict(frozen=True)

    generator_version: int
    env_id: str
    policies: str  # folder name of a `PolicySet`
    parts: tuple[Part, ...]
    seed: int

    @property
    def content_hash(self) -> str:
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


ActionChoice = Literal["clip", "rescale"]


class DataFile(BaseModel):
    """A file with its content."""

    model_config = ConfigDict(frozen=True)

    path: str  # absolute
    sha256: str


class Choices(BaseModel):
    """How files of one's own are to be taken: what a user says beside their paths.

    Attributes:
        env: environment of files that do not name their own.
        size: transitions of bundled data.
        task: the key of `TASKS` that files of one's own stand in for.
        actions: what is done to actions beyond the environment's bounds: `clip` cuts them off,
            `rescale` divides all by the largest in units of the bounds.
        allow: names of `checks.CHECKS` that are silenced.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    env: str | None = None
    size: int | None = None
    task: str | None = None
    actions: ActionChoice | None = None
    allow: Annotated[tuple[str, ...], Field(strict=False)] = ()


class DatasetSpec(BaseModel):
    """What a data set is: small, picklable, hashable; `source.load` turns it into arrays.

    Attributes:
        id: `bundled/...`, `d4rl/...`, `minari/...`, or `file:` and absolute paths.
        env_id: a key of `ENVIRONMENTS`.
        content_hash: SHA-256 (hex) of a file's bytes, or of the recipe of bundled data. Of
            several files, or where columns are derived or changed, of all that decides the values.
        size: number of transitions; None for a file of D4RL's, which need not be there yet.
        recipe: of bundled data.
        files: that it is read from, where their paths are known beforehand.
        actions: of `Choices`.
        version: of the data, in its source's words.
        notes: what was derived or converted to read it, one sentence each.
        warnings: what its plausibility checks warn of.
        silenced: what they would say of the checks that are allowed.
        action_bounds: of the actions in a file; loaded, they are in [-1, 1].
        task: a key of `TASKS`, the one that the data are or stand in for. Presets look
            hyperparameters up by it; it is no part of the data's identity.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    env_id: str
    content_hash: str
    size: int | None = None
    recipe: Recipe | None = None
    action_bounds: tuple[float, float] = (-1.0, 1.0)
    task: str | None = None
    files: tuple[DataFile, ...] = ()
    actions: ActionChoice | None = None
    version: str = ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    silenced: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """A data set's name in tables: the id, with the choices that tell it from its like."""
        if self.actions is not None:
            return f"{self.id} (actions: {self.actions})"
        if self.recipe is None or self.size == DEFAULT_SIZE:
            return self.id
        return f"{self.id} ({self.size:,})"

    @property
    def slug(self) -> str:
        """The name as part of a file name: `d4rl-hopper-medium-v2`, or a file's own name."""
        if self.id.startswith(FILE_PREFIX):
            paths = self.id.removeprefix(FILE_PREFIX).split(FILE_SEPARATOR)
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(paths[0]).stem).strip("-")
            return f"{name or 'files'}-and-{len(paths) - 1}-more" if paths[1:] else name or "files"
        return self.id.replace("/", "-")

    @property
    def unique_slug(self) -> str:
        """The `slug` and what else tells this data set apart from others of that name."""
        if self.id.startswith(FILE_PREFIX):
            return f"{self.slug}-{self.content_hash[:8]}"  # folders may hold files of one name
        if self.size in (DEFAULT_SIZE, None):
            return self.slug
        return f"{self.slug}-{self.size}"
