"""What is in a data set, for a terminal and as one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from algorithms.data import d4rl
from algorithms.data.catalog import CATALOG, D4RL, Bundled
from algorithms.data.checks import Evidence, warnings_of
from algorithms.data.dataset import OfflineDataset
from algorithms.data.source import at_hand, resolve
from algorithms.data.spec import DatasetSpec
from algorithms.data.verify import Replay
from algorithms.environments.table import ENVIRONMENTS
from algorithms.errors import UserError
from algorithms.storage import Storage
from orchestrator.report.table import provenance

BINS, BAR = 10, 40  # of the histogram in a terminal; characters of its longest bar
PICTURES = (".png", ".svg", ".pdf")


def catalogue(storage: Storage) -> list[str]:
    """The data sets of the catalogue, a line each: id, environment, size, state."""
    rows = [
        (dataset_id, entry.env_id, *_size_and_state(dataset_id, entry, storage))
        for dataset_id, entry in CATALOG.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{word:<{width}}" for word, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [*lines, "minari/ID and file:PATH are others"]


def _size_and_state(dataset_id: str, entry: Bundled | D4RL, storage: Storage) -> tuple[str, str]:
    if isinstance(entry, D4RL):
        there = bool(d4rl.present(dataset_id, storage))
        size = decimal(entry.bytes) if entry.bytes is not None else "not known"
        return size, "at hand" if there else "to download"
    spec = resolve(dataset_id)
    state = "at hand" if at_hand(spec, storage) else "to generate"
    return f"{spec.size:,} rows", state


def describe(spec: DatasetSpec, data: OfflineDataset) -> RenderableType:
    """Episodes, returns with a histogram, behaviour score, share terminated, plausibility."""
    env = ENVIRONMENTS[spec.env_id]
    returns, ends = data.episode_returns(), data.episode_ends
    lengths = np.diff(ends, prepend=0)
    terminated = data.terminal[ends - 1] > 0
    rows = {
        "environment": spec.env_id,
        "transitions": f"{len(data.reward):,} ({decimal(data.nbytes)} in memory)",
        "episodes": f"{len(ends):,} complete, {lengths.mean():.0f} steps on average, "
        f"{lengths.min()} to {lengths.max()}",
        "ended": f"{terminated.mean():.1%} by the task, the others by a time limit or the end of "
        "the recording",
        "returns": f"{returns.mean():.1f} on average, {returns.min():.1f} to {returns.max():.1f}",
        "score": f"{data.behaviour_score(spec.env_id):.1f} on average, "
        f"{env.normalized_score(returns.max()):.1f} at best (normalised: 0 random, 100 expert)",
        "actions": f"{np.abs(data.action).mean():.2f} of the bounds on average, "
        f"{(np.abs(data.action) > 0.99).mean():.1%} at the bounds",
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    told = spec.warnings
    if not spec.files:  # known by a hash alone, so that nobody has looked at it
        told = warnings_of(spec.id, Evidence(data, (), (), spec.env_id))
    warnings = [f"warning: {text}" for text in told]
    return Group(
        *provenance(spec), *(warnings or ["no check has anything to say"]), table, _bars(returns)
    )


def _bars(returns: np.ndarray) -> Text:
    """A histogram of returns."""
    counts, edges = np.histogram(returns, bins=BINS)
    lines = [
        f"{low:>9.0f} to {high:>7.0f}  {'#' * round(BAR * count / counts.max()):<{BAR}} {count:,}"
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return Text("\n".join(["returns of episodes", *lines]))


def replay_table(spec: DatasetSpec, result: Replay) -> RenderableType:
    """Errors of a replay, and its verdict."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("error of", "median", "99 %", "largest"):
        table.add_column(heading, justify="left" if heading == "error of" else "right")
    for name, errors in (
        ("next observation", result.next_obs),
        ("next observation / change in a step", result.next_obs_relative),
        ("reward", result.reward),
        ("reward / size of rewards", result.reward_relative),
    ):
        table.add_row(name, *(f"{value:.2g}" for value in errors))
    worst = int(np.argmax(result.per_dimension))
    left_out = f", {result.left_out} left out (a velocity is clipped)" if result.left_out else ""
    return Group(
        *provenance(spec),
        table,
        f"states from {result.states}{left_out}; {result.terminals_differ} rows end in one of the "
        f"two only; largest error in dimension {worst} of the observation",
        str(result),
    )


def write_picture(spec: DatasetSpec, data: OfflineDataset, path: Path) -> None:
    """Returns, lengths, and the spread of every dimension of observations and actions.

    Raises:
        UserError: another kind of picture, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    if path.suffix.lower() not in PICTURES:
        raise UserError(f"{path}: a picture's name ends in {', '.join(PICTURES)}")
    figure = Figure(figsize=(11, 7), layout="constrained")
    figure.suptitle(
        f"{spec.label}: {len(data.reward):,} transitions of {spec.env_id}, "
        f"mean score {data.behaviour_score(spec.env_id):.1f}"
    )
    axes = figure.subplots(2, 2)
    scores = ENVIRONMENTS[spec.env_id].normalized_score(data.episode_returns())
    for axis, values, label in (
        (axes[0, 0], scores, "normalised score of an episode"),
        (axes[0, 1], np.diff(data.episode_ends, prepend=0), "steps of an episode"),
    ):
        axis.hist(values, bins=50, color="#31688e")
        axis.set_xlabel(label)
        axis.set_ylabel("episodes")
    for axis, values, label in (
        (axes[1, 0], data.obs, "dimension of observations"),
        (axes[1, 1], data.action, "dimension of actions"),
    ):
        sample = values[:: max(1, len(values) // 20_000)]
        axis.boxplot(sample, sym="", whis=(1, 99), tick_labels=range(values.shape[1]))
        axis.set_xlabel(f"{label} (boxes: quartiles; whiskers: 1 % and 99 %)")
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
