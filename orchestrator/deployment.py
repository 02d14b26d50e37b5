"""Where things are: the storage, and the addresses of MLflow and Ray."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from algorithms.errors import UserError
from algorithms.storage import DEFAULT_STORAGE, Storage


@dataclass(frozen=True)
class Deployment:
    """Where one command works. Making it touches nothing.

    Attributes:
        storage: of data sets, ensembles, checkpoints and results; on a cluster, one that every
            node reaches.
        tracking_uri: MLflow's store; by default a SQLite file in the storage.
        ray_address: of a running cluster; None starts Ray on this machine.
    """

    storage: Storage
    tracking_uri: str
    ray_address: str | None

    @classmethod
    def from_environment(
        cls, storage: str | Path | None = None, environ: Mapping[str, str] = os.environ
    ) -> Deployment:
        """`storage` wins over ORCHESTRATOR_STORAGE; also reads MLFLOW_TRACKING_URI, RAY_ADDRESS.

        Raises:
            UserError: the storage could not be a folder.
        """
        chosen = Storage(storage or environ.get("ORCHESTRATOR_STORAGE") or DEFAULT_STORAGE)
        root = chosen.path("")
        try:
            existing = next(path for path in (root, *root.parents) if path.exists())
        except OSError as error:
            raise UserError(f"storage {chosen}: {error}") from None
        if not existing.is_dir():
            raise UserError(f"storage {root}: {existing} is not a folder")
        return cls(
            storage=chosen,
            tracking_uri=environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root}/mlflow.db",
            ray_address=environ.get("RAY_ADDRESS") or None,
        )

    @property
    def artifacts(self) -> Path:
        """The embedded MLflow store's artifacts."""
        return self.storage.path("mlartifacts")

    def prepare(self) -> None:
        """Create the storage folder.

        Raises:
            UserError: it cannot be created or written.
        """
        try:
            root = self.storage.path("")
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root):
                pass
        except OSError as error:
            raise UserError(
                f"storage {self.storage} cannot be written ({error.strerror}): "
                "choose another with --storage or ORCHESTRATOR_STORAGE"
            ) from None
