"""`orchestrator data ...`: which data sets there are, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import StorageOption, console, deployment_of

if TYPE_CHECKING:
    from algorithms.data.dataset import OfflineDataset
    from algorithms.data.spec import DatasetSpec
    from orchestrator.deployment import Deployment

data = typer.Typer(
    help="List, fetch, show, verify, collect and convert data sets.",
    rich_markup_mode=None,
    no_args_is_help=True,
)

Dataset = Annotated[
    str,
    typer.Argument(metavar="DATASET", help="bundled/NAME, d4rl/NAME, minari/ID or file:PATH"),
]
Env = Annotated[str | None, typer.Option(help="Environment of files that do not name their own.")]
Size = Annotated[int | None, typer.Option(help="Transitions of bundled data.")]
Actions = Annotated[
    str | None,
    typer.Option(help="What is done to actions beyond the bounds: clip or rescale."),
]
Allow = Annotated[list[str], typer.Option(metavar="CHECK", help="Silence a check of plausibility.")]


@data.command("list")
def list_(context: typer.Context, *, storage: StorageOption = None) -> None:
    """List the data sets that have names, and whether they are at hand."""
    from orchestrator.report.dataset import catalogue

    for line in catalogue(deployment_of(context, storage).storage):
        print(line)


@data.command()
def fetch(
    context: typer.Context,
    datasets: Annotated[list[str], typer.Argument(metavar="DATASET...")],
    *,
    size: Size = None,
    storage: StorageOption = None,
) -> None:
    """Download or generate data sets, so that nothing has to be when a sweep runs."""
    deployment = deployment_of(context, storage)
    for dataset_id in datasets:
        spec, loaded = _load(dataset_id, deployment, size=size)
        console.print(f"{spec.id}: {len(loaded.reward):,} transitions", soft_wrap=True)


@data.command()
def show(
    context: typer.Context,
    dataset: Dataset,
    *,
    env: Env = None,
    size: Size = None,
    actions: Actions = None,
    allow: Allow = [],  # noqa: B006 - typer's way
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the picture there (PNG, SVG, PDF).")
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Describe a data set: episodes, returns, score, plausibility; and draw it."""
    from orchestrator.report.dataset import describe, write_picture

    deployment = deployment_of(context, storage)
    spec, loaded = _load(dataset, deployment, env=env, size=size, actions=actions, allow=allow)
    console.print(describe(spec, loaded))
    if picture is not None:
        write_picture(spec, loaded, picture)
        console.print(f"wrote {picture}", soft_wrap=True)


@data.command()
def verify(
    context: typer.Context,
    dataset: Dataset,
    *,
    env: Env = None,
    size: Size = None,
    rows: Annotated[int, typer.Option(min=1, help="Transitions to replay.")] = 500,
    storage: StorageOption = None,
) -> int:
    """Replay a sample of transitions in MuJoCo, and report how far the data are off."""
    from algorithms.data.checks import CHECKS
    from algorithms.data.verify import Verdict, replay, states_of
    from orchestrator.report.dataset import replay_table

    deployment = deployment_of(context, storage)
    # The replay is to tell what is wrong, so no check may end the command before it.
    own = dataset.startswith(("file:", "minari/"))
    allow = list(CHECKS) if own else []
    spec, loaded = _load(dataset, deployment, env=env, size=size, allow=allow)
    states = states_of(spec, loaded, deployment.storage)
    qpos, qvel = states if states is not None else (None, None)
    result = replay(loaded, spec.env_id, rows=rows, qpos=qpos, qvel=qvel)
    console.print(replay_table(spec, result))
    return 1 if result.verdict is Verdict.CONTRADICTS else 0


@data.command()
def collect(
    policy: Annotated[
        str,
        typer.Argument(
            metavar="POLICY",
            help="A file of `orchestrator export`, or a bundled level: hopper/medium",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new file (.hdf5).")],
    *,
    env: Annotated[
        str | None, typer.Option(help="Where it acts; a bundled level has its own.")
    ] = None,
    size: Annotated[int, typer.Option(min=1, help="Transitions.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="Of initial states and actions.")] = 0,
    deterministic: Annotated[
        bool, typer.Option(help="The policy's mode; an exported policy has nothing else.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="At most (default: one per core).")
    ] = None,
) -> None:
    """Roll a policy out in MuJoCo, into a file in D4RL's layout."""
    from rich.progress import Progress

    from algorithms.data.convert import refuse_unusable, write_new
    from algorithms.online.collect import collect as roll_out

    refuse_unusable(str(out.absolute()))
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"collecting {policy}", total=size)
        collection = roll_out(
            policy,
            env,
            size,
            seed,
            deterministic=deterministic,
            processes=processes,
            advance=lambda rows: progress.advance(task, rows),
        )
    write_new(out, collection.encode())
    score = collection.data.behaviour_score(collection.env_id)
    console.print(
        f"wrote {out}: {size:,} transitions of {collection.env_id}, mean score {score:.1f}",
        soft_wrap=True,
    )


@data.command()
def convert(
    context: typer.Context,
    dataset: Dataset,
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="A new file in D4RL's layout (.hdf5), or minari/ID for Minari's."
        ),
    ],
    *,
    env: Env = None,
    size: Size = None,
    actions: Actions = None,
    allow: Allow = [],  # noqa: B006 - typer's way
    storage: StorageOption = None,
) -> None:
    """Write any data set that can be read as D4RL's layout or Minari's."""
    from algorithms.data.convert import refuse_unusable, write_d4rl, write_minari

    refuse_unusable(out)
    deployment = deployment_of(context, storage)
    spec, loaded = _load(dataset, deployment, env=env, size=size, actions=actions, allow=allow)
    if out.startswith("minari/"):
        write_minari(loaded, spec, out)
    else:
        write_d4rl(loaded, spec, Path(out))
    console.print(f"wrote {out}: {len(loaded.reward):,} transitions", soft_wrap=True)


def _load(
    dataset_id: str, deployment: Deployment, **choices: object
) -> tuple[DatasetSpec, OfflineDataset]:
    from algorithms.data.source import load, resolve

    spec = resolve(dataset_id, storage=deployment.storage, **choices)  # type: ignore[arg-type]
    deployment.prepare()  # nothing is made for a data set that is not there
    return spec, load(spec, deployment.storage)
