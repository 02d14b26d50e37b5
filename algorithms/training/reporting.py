"""What is reported of an epoch: metrics of each seed, and their means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from algorithms.training.evaluation import Scores
from algorithms.training.loop import OfflineTraining


def report_epoch(
    training: OfflineTraining,
    epoch: int,
    statistics: Mapping[str, Tensor],
    scores: Scores | None,
) -> dict[str, Any]:
    """`{"seed": {"0": {metric: value}, ...}, "mean": {metric: value}}` of an epoch.

    An evaluation's scores are recorded, and repeated until the next one. A seed that has
    diverged has NaN for everything but `diverged`, and is no part of the means.

    Args:
        training: whose epoch it is; it may have trained more epochs since.
        epoch: its number.
        statistics: of `train_epoch`, `[S]` each.
        scores: of its evaluation, if it was evaluated.
    """
    metrics = dict(statistics)
    diverged_S = metrics["diverged"].bool()
    if scores is not None:
        training.record_scores(scores["normalized_score"])
        metrics |= scores
    if epoch >= training.settings.evaluation_interval:
        metrics["normalized_score"] = training.scores_SK[:, -1]
        metrics["run_score"] = training.run_score(diverged_S)
    for name in metrics.keys() - {"diverged"}:
        metrics[name] = metrics[name].masked_fill(diverged_S, torch.nan)
    return {
        # A seed that turned NaN does not hide the others' mean.
        "mean": {name: float(value.nanmean()) for name, value in metrics.items()},
        "seed": of_seeds(metrics, training.seeds),
    }


def of_seeds(metrics: Mapping[str, Tensor], seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    """Values `[S]` by metric -> by seed, plain numbers by metric."""
    return {
        str(seed): {name: float(value[s]) for name, value in metrics.items()}
        for s, seed in enumerate(seeds)
    }
