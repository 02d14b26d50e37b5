"""The command line: arguments in, calls to the rooms behind it, a mistake as one line out.

Exit codes: 0 done, 1 some of the work failed, 2 a mistake of the user's, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.exceptions import TyperException

from algorithms.errors import UserError, expected
from orchestrator.cli.data import data
from orchestrator.cli.options import StorageOption, console, deployment_of

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.sweep.model import Sweep

# What a command needs beyond these is imported inside it: `--help` and every mistake answer at
# once, without the seconds that Ray, torch and MLflow take to import.

INTERRUPTED = 130  # typer's exit code of a KeyboardInterrupt

app = typer.Typer(
    help="Experiments with model-based offline reinforcement learning.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data, name="data")

SweepFile = Annotated[Path, typer.Argument(metavar="FILE", help="Sweep file (YAML).")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the sweep: epochs=5, seeds=3, 'grid.penalty=[none, max_std]'.",
    ),
]


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if not (sys.argv[1:] if arguments is None else arguments):
        arguments = ["--help"]
    try:
        code = int(app(arguments, prog_name="orchestrator", standalone_mode=False) or 0)
        sys.stdout.flush()
    except TyperException as error:
        print(f"error: {_sentence(error)} (--help says more)", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # of `plan --json | head`: whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if code == INTERRUPTED:
        print("interrupted: the same command continues where this one stopped", file=sys.stderr)
    return code


def _sentence(error: TyperException) -> str:
    """Typer's message in one line, with the option or argument that it is about."""
    tell = getattr(error, "format_message", error.__str__)
    return " ".join(tell().rstrip(".").split())


def _version(value: bool) -> None:  # noqa: FBT001 - typer's callback
    if value:
        from orchestrator import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    *,
    storage: StorageOption = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command are those of the command."""
    del version
    context.obj = storage


@app.command()
def plan(
    context: typer.Context,
    file: SweepFile,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    storage: StorageOption = None,
    overrides: Overrides = [],  # noqa: B006 - typer's way
) -> None:
    """Show what `run` would do."""
    from orchestrator.plan import make_plan
    from orchestrator.sweep.cell import cells_of, resolve_in
    from orchestrator.sweep.model import load_sweep, parse_overrides

    kept = deployment_of(context, storage).storage
    sweep = load_sweep(file, parse_overrides(overrides))
    planned = make_plan(sweep, cells_of(sweep, resolve_in(kept)), kept)
    if as_json:
        print(json.dumps(planned.to_json(), indent=2))
    else:
        console.print(planned.render())


@app.command()
def run(
    context: typer.Context,
    file: SweepFile,
    *,
    storage: StorageOption = None,
    overrides: Overrides = [],  # noqa: B006 - typer's way
) -> int:
    """Train what is missing, then print the table."""
    from orchestrator.run import run as train
    from orchestrator.sweep.model import load_sweep, parse_overrides

    deployment = deployment_of(context, storage)
    sweep = load_sweep(file, parse_overrides(overrides))
    # `ray job stop` ends a sweep as Ctrl-C does: in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    outcome = train(sweep, deployment, console)
    _print_table(sweep, outcome.table)
    for error in outcome.failed:
        console.print(f"failed: {error}", style="red", soft_wrap=True)
    # As the user has called it: it need not be on the PATH.
    program = sys.argv[0] if Path(sys.argv[0]).name == "orchestrator" else "orchestrator"
    console.print(f"dashboard: {program} ui --storage {deployment.storage}", soft_wrap=True)
    return 1 if outcome.failed else 0


@app.command()
def report(
    context: typer.Context,
    file: SweepFile,
    *,
    storage: StorageOption = None,
    overrides: Overrides = [],  # noqa: B006 - typer's way
) -> None:
    """Print the table of what is trained so far."""
    from orchestrator.report.table import summary
    from orchestrator.results import ResultStore, remembered
    from orchestrator.sweep.cell import cells_of
    from orchestrator.sweep.model import load_sweep, parse_overrides

    deployment = deployment_of(context, storage)
    sweep = load_sweep(file, parse_overrides(overrides))
    found = cells_of(sweep, remembered(deployment.storage))
    _print_table(sweep, summary(found, ResultStore(deployment.storage)))


def _print_table(sweep: Sweep, table: pd.DataFrame) -> None:
    from orchestrator.report.table import render

    console.print(render(sweep, table))


@app.command()
def export(
    context: typer.Context,
    cell: Annotated[str, typer.Argument(metavar="CELL", help="A cell's name: `plan --json`.")],
    *,
    seed: Annotated[int, typer.Option(help="Which of the cell's seeds.")],
    out: Annotated[Path | None, typer.Option(metavar="PATH", help="File or folder.")] = None,
    storage: StorageOption = None,
) -> None:
    """Write one trained policy to a file that loads with torch alone."""
    from orchestrator.export import USAGE, export_policy

    deployment = deployment_of(context, storage)
    path, result = export_policy(cell, seed, out, deployment.storage)
    score = "no score yet" if result.run_score is None else f"score {result.run_score:.1f}"
    print(f"wrote {path}: {result.epochs} epochs, {score}; to use it:")
    print(USAGE.format(path=str(path)))


@app.command()
def ui(
    context: typer.Context,
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
    storage: StorageOption = None,
) -> int:
    """Serve MLflow's dashboard until Ctrl-C."""
    from orchestrator import dashboard

    return dashboard.serve(deployment_of(context, storage), host, port, console)


@app.command()
def schema() -> None:
    """Print the JSON Schema of sweep files, for editors."""
    from orchestrator.sweep.schema import sweep_schema

    print(json.dumps(sweep_schema(), indent=1))


@app.command()
def example(
    name: Annotated[str, typer.Argument(metavar="NAME", help="For example: quickstart")],
) -> None:
    """Print one of the sweeps that come with the project."""
    folder = resources.files("orchestrator") / "examples"
    names = [file.name.removesuffix(".yaml") for file in folder.iterdir() if "yaml" in file.name]
    if name not in names:
        raise UserError(expected("example", name, names))
    print("# The schema, with which editors complete this file: orchestrator schema > FILE")
    print((folder / f"{name}.yaml").read_text(encoding="utf-8"), end="")
