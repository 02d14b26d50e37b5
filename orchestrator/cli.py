"""The command line: arguments in, calls to the rooms behind it, a mistake as one line out.

Exit codes: 0 done, 1 some of the work failed, 2 a mistake of the user's, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from algorithms.errors import UserError
from algorithms.identity import code_version
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.sweep import Sweep, Trial

# What a command needs beyond these is imported inside it: `plan` and every mistake
# answer at once, without the seconds that Ray, torch and MLflow take to import.

console = Console(markup=False, emoji=False, highlight=False)  # paths may look like markup
Command = Callable[[argparse.Namespace, Settings], int]


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        parser = _parser()
        options = parser.parse_args(arguments)
        if options.version:
            print(f"orchestrator {code_version()}")
            return 0
        if options.command is None:
            parser.error("a COMMAND is missing")
        return int(options.command(options, Settings.from_environment(options.storage)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command continues where this one stopped", file=sys.stderr)
        return 130


def plan(options: argparse.Namespace, settings: Settings) -> int:
    """Show what `run` would do."""
    from orchestrator.plan import make_plan
    from orchestrator.sweep import load_sweep, trials

    sweep = load_sweep(options.file)
    planned = make_plan(sweep, trials(sweep), settings.storage)
    if options.json:
        print(json.dumps(planned.to_json(), indent=2))
    else:
        console.print(planned.render())
    return 0


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Train what is missing, then print the table."""
    from orchestrator.plan import make_plan
    from orchestrator.sweep import load_sweep, trials

    sweep = load_sweep(options.file)
    cells = trials(sweep)
    planned = make_plan(sweep, cells, settings.storage)
    if planned.missing_data:
        raise UserError("; ".join(planned.missing_data))
    settings.prepare()
    console.print(planned.summary())
    code = 0
    if planned.jobs:
        from orchestrator import tuning

        # `ray job stop` ends a sweep as Ctrl-C does: in order.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        code = tuning.run(sweep, cells, settings, console)
    _print_table(sweep, cells, settings)
    # As the user has called it: it need not be on the PATH.
    program = sys.argv[0] if Path(sys.argv[0]).name == "orchestrator" else "orchestrator"
    console.print(f"dashboard: {program} ui --storage {settings.storage}", soft_wrap=True)
    return code


def report(options: argparse.Namespace, settings: Settings) -> int:
    """Print the table of what is trained so far."""
    from orchestrator.sweep import load_sweep, trials

    sweep = load_sweep(options.file)
    _print_table(sweep, trials(sweep), settings)
    return 0


def _print_table(sweep: Sweep, cells: list[Trial], settings: Settings) -> None:
    from orchestrator import report as tables
    from orchestrator.results import ResultStore

    frame = tables.summary(cells, ResultStore(settings.storage))
    console.print(tables.render(sweep, frame))


def export(options: argparse.Namespace, settings: Settings) -> int:
    """Write one trained policy to a file that loads with torch alone."""
    from orchestrator.export import USAGE, export_policy

    path, result = export_policy(options.trial, options.seed, options.out, settings.storage)
    score = "no score yet" if result.run_score is None else f"score {result.run_score:.1f}"
    print(f"wrote {path}: {result.epochs} epochs, {score}; to use it:")
    print(USAGE.format(path=str(path)))
    return 0


def data(options: argparse.Namespace, settings: Settings) -> int:
    """Generate a data set if it has to be, and describe it."""
    from algorithms.data.catalog import resolve
    from algorithms.data.datasets import load

    spec = resolve(options.dataset, env=options.env, size=options.size)
    settings.prepare()
    dataset = load(spec, settings.storage)
    console.print(
        f"{spec.id}: {spec.env_id}, {len(dataset.reward):,} transitions, "
        f"mean normalised score of its episodes {dataset.behaviour_score(spec.env_id):.1f}, "
        f"content {spec.content_hash[:12]}",
        soft_wrap=True,
    )
    return 0


def ui(options: argparse.Namespace, settings: Settings) -> int:
    """Serve MLflow's dashboard until Ctrl-C."""
    from orchestrator import dashboard

    return dashboard.serve(settings, options.host, options.port, console)


class _Parser(argparse.ArgumentParser):
    """Mistakes in arguments are told like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help says more)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="orchestrator",
        description="Experiments with model-based offline reinforcement learning.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="COMMAND")

    def command(function: Command) -> argparse.ArgumentParser:
        added = commands.add_parser(
            function.__name__,
            help=function.__doc__,
            description=function.__doc__,
            allow_abbrev=False,
        )
        added.add_argument(
            "--storage",
            type=Path,
            metavar="FOLDER",
            help="root of everything that is kept (default: $ORCHESTRATOR_STORAGE, "
            "else ~/orchestrator); on a cluster, a path that all nodes share",
        )
        added.set_defaults(command=function)
        return added

    file: dict[str, Any] = {"type": Path, "metavar": "FILE", "help": "sweep file (YAML)"}
    command_plan = command(plan)
    command_plan.add_argument("file", **file)
    command_plan.add_argument("--json", action="store_true", help="for programs")
    command(run).add_argument("file", **file)
    command(report).add_argument("file", **file)

    command_export = command(export)
    command_export.add_argument(
        "trial", metavar="TRIAL", help="a trial's name, as `plan --json` lists it"
    )
    command_export.add_argument("--seed", type=int, required=True)
    command_export.add_argument("--out", type=Path, metavar="FILE")

    command_data = command(data)
    command_data.add_argument(
        "dataset", metavar="DATASET", help="bundled/NAME, d4rl/NAME or file:PATH"
    )
    command_data.add_argument("--env", help="environment of a file that does not name its own")
    command_data.add_argument("--size", type=int, help="transitions of bundled data")

    command_ui = command(ui)
    command_ui.add_argument("--host", default="127.0.0.1")
    command_ui.add_argument("--port", type=int, default=5000)
    return parser


if __name__ == "__main__":
    sys.exit(main())
