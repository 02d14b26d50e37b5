"""Results of a sweep -> the table: one row per variant and data set, over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from algorithms.data.spec import DatasetSpec
from orchestrator.results import ResultStore, SeedResult
from orchestrator.sweep.cell import Cell
from orchestrator.sweep.model import Sweep

MIN_SEEDS_TO_COMPARE = 3  # a standard deviation of two says next to nothing about the spread


def summary(cells: Sequence[Cell], store: ResultStore) -> pd.DataFrame:
    """One row per cell, in the cells' order.

    Columns:
        variant, dataset: of the cell.
        seeds: asked for. seeds_done: finished, diverged ones included.
        seeds_diverged: those whose Q turned non-finite, or larger than any return could be.
        epochs: asked for. epochs_done: after how many the scores were, at most; 0 without one.
        run_score, score_std: mean and sample standard deviation (ddof 1) over the seeds that are
            done and did not diverge, each seed counting with the mean of its last 10
            evaluations (normalised); NaN without a seed, and score_std with only one.
        scores: how many seeds the two are over.
        behaviour_score: mean normalised score of the data's own episodes.
        data: what the data set is known by, and what was done to read it.
        codes: versions of the algorithms' code that trained the seeds that are done.
        uses_model: whether the variant trains on a dynamics ensemble.
        minutes: wall time of training. Seeds of one checkpoint trained together: counted once.
    """
    return pd.DataFrame([_row(cell, store) for cell in cells])


def _row(cell: Cell, store: ResultStore) -> dict[str, object]:
    epochs = cell.settings.epochs
    found = [r for r in (store.get(cell.result_key(seed)) for seed in cell.seeds) if r]
    done = [result for result in found if result.done(epochs)]
    scores = pd.Series([score for r in done if (score := r.score(epochs)) is not None], dtype=float)
    behaviour = [r.behaviour_score for r in found if r.behaviour_score is not None]
    return {
        "variant": cell.variant,
        "dataset": cell.dataset_label,
        "seeds": len(cell.seeds),
        "seeds_done": len(done),
        "seeds_diverged": sum(result.diverged_before(epochs) for result in done),
        "epochs": epochs,
        "epochs_done": max((result.scored_at(epochs) for result in done), default=0),
        "run_score": scores.mean(),
        "score_std": scores.std(ddof=1),
        "scores": len(scores),
        "behaviour_score": behaviour[0] if behaviour else math.nan,
        "data": provenance(cell.dataset),
        "uses_model": cell.settings.uses_model,
        "minutes": _minutes(found),
        "codes": {result.code for result in done if result.code},
    }


def provenance(dataset: DatasetSpec) -> tuple[str, ...]:
    """Lines below the table: content and version of a data set, then a sentence each of what was
    derived, converted or allowed.
    """
    version = f"{dataset.version}, " if dataset.version else ""
    content = f"data {dataset.label}: {version}content {dataset.content_hash[:12]}"
    return (content, *dataset.notes, *dataset.silenced)


def _minutes(results: Sequence[SeedResult]) -> float:
    per_program: dict[str, float] = {}
    for result in results:
        program = result.checkpoint or result.key
        per_program[program] = max(result.minutes, per_program.get(program, 0.0))
    return sum(per_program.values())


def inconclusive(cells: pd.DataFrame) -> str | None:
    """Why the variants of ONE data set cannot be ranked, or None if nothing forbids it.

    They cannot if a variant has fewer than 3 scored seeds, or if the largest difference
    between two variants' means is not above the pooled standard deviation over seeds,
    sqrt(sum (n - 1) std^2 / sum (n - 1)). This is a bar against reading noise as a
    finding; passing it is not a test of significance.

    Args:
        cells: rows of `summary`. One variant alone has nothing to be compared with: None.
    """
    if len(cells) < 2:
        return None
    if cells["scores"].min() < MIN_SEEDS_TO_COMPARE:
        return f"fewer than {MIN_SEEDS_TO_COMPARE} seeds per variant"
    if cells["seeds_diverged"].any():
        return "some seeds diverged"
    freedom = cells["scores"] - 1
    pooled_std = math.sqrt((freedom * cells["score_std"] ** 2).sum() / freedom.sum())
    if cells["run_score"].max() - cells["run_score"].min() <= pooled_std:
        return "the variants differ by less than their spread over seeds"
    return None


def notes(sweep: Sweep, frame: pd.DataFrame) -> list[str]:
    """What a reader of the table has to know, one sentence each."""
    found = []
    groups = list(frame.groupby("dataset", sort=False))
    for dataset, cells in groups:
        if reason := inconclusive(cells):
            where = f" on {dataset}" if len(groups) > 1 else ""
            found.append(f"demo scale: no conclusion{where} ({reason})")
    if (frame["seeds_done"] < frame["seeds"]).any():
        found.append("partial: some seeds are not trained to the end; their scores are left out")
    if frame["seeds_diverged"].any():
        found.append("diverged seeds are left out of the scores")
    if (frame["epochs_done"] > frame["epochs"]).any():
        found.append("some seeds were trained for more epochs than this sweep asks for")
    if frame["codes"].map(len).sum() > 1 and len(set().union(*frame["codes"])) > 1:
        found.append("the seeds were trained by different versions of the algorithms' code")
    if sweep.dynamics_seeds == "shared" and frame["uses_model"].any():
        found.append(
            "dynamics_seeds: shared: all seeds train on one dynamics ensemble, "
            "so the spread leaves out the ensemble's share"
        )
    return found


def render(sweep: Sweep, frame: pd.DataFrame) -> RenderableType:
    """The table for a terminal, its notes below."""
    table = Table(box=SIMPLE_HEAD, title=f"{sweep.name}: {sweep.question}".removesuffix(": "))
    # Numbers are never cut: on a narrow terminal the names fold.
    table.add_column("variant", overflow="fold")
    table.add_column("dataset", overflow="fold")
    table.add_column("seeds", no_wrap=True)
    table.add_column("normalised\nscore", justify="right", no_wrap=True)
    table.add_column("data's\nscore", justify="right", no_wrap=True)
    table.add_column("minutes", justify="right", no_wrap=True)
    for row in frame.to_dict("records"):
        table.add_row(
            row["variant"],
            row["dataset"],
            _seeds(row["seeds_done"], row["seeds"], row["seeds_diverged"]),
            f"{_number(row['run_score'])} +- {_number(row['score_std'])}" if row["scores"] else "-",
            _number(row["behaviour_score"]),
            _number(row["minutes"]),
        )
    lines = {line: None for data in frame["data"] for line in data}
    return Group(table, *lines, *notes(sweep, frame))


def _seeds(done: int, asked: int, diverged: int) -> str:
    text = str(asked) if done == asked else f"{done} of {asked} seeds"
    return f"{text}\n{diverged} diverged" if diverged else text


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"
