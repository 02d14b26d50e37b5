"""What a data set is: small, picklable and hashable. This module does not import torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_SIZE = 100_000  # transitions of bundled data
FILE_PREFIX = "file:"


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


class DatasetSpec(BaseModel):
    """What a data set is: small, picklable, hashable; `source.load` turns it into arrays.

    Attributes:
        id: `bundled/...`, `d4rl/...`, or `file:` and an absolute path.
        env_id: a key of `ENVIRONMENTS`.
        content_hash: SHA-256 (hex) of a file's bytes, or of the recipe of bundled data.
        size: number of transitions; None for a file of D4RL's, which need not be there yet.
        recipe: of bundled data.
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

    @property
    def label(self) -> str:
        """The id, with the size where that is not the default: a data set's name in tables."""
        if self.recipe is None or self.size == DEFAULT_SIZE:
            return self.id
        return f"{self.id} ({self.size:,})"

    @property
    def slug(self) -> str:
        """The name as part of a file name: `d4rl-hopper-medium-v2`, or a file's own name."""
        if self.id.startswith(FILE_PREFIX):
            return Path(self.id).stem
        return self.id.replace("/", "-")

    @property
    def unique_slug(self) -> str:
        """The `slug` and what else tells this data set apart from others of that name."""
        if self.id.startswith(FILE_PREFIX):
            return f"{self.slug}-{self.content_hash[:8]}"  # folders may hold files of one name
        if self.size in (DEFAULT_SIZE, None):
            return self.slug
        return f"{self.slug}-{self.size}"
