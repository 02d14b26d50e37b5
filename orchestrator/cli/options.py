"""What the commands share: the console, and options that several have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from orchestrator.deployment import Deployment

console = Console(markup=False, emoji=False, highlight=False)  # paths may look like markup

StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="FOLDER",
        help="Root of everything that is kept (default: $ORCHESTRATOR_STORAGE, else "
        "~/orchestrator); on a cluster, a path that all nodes share.",
    ),
]


def deployment_of(context: typer.Context, storage: str | None) -> Deployment:
    """Where a command works: its own option, else that before the command."""
    from orchestrator.deployment import Deployment

    before = context.find_root().obj
    return Deployment.from_environment(storage if storage is not None else before)
