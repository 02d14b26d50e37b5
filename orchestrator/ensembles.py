"""The first stage of a sweep: every dynamics ensemble it needs, trained once.

It ends before the first trial starts. Trials that held a GPU while they waited
for a trainer that needs one would wait for ever; so they only fetch.
"""

from __future__ import annotations

from collections.abc import Sequence

import ray
from ray.exceptions import RayError, RayTaskError
from rich.console import Console

from algorithms.dynamics.service import ensemble_service, trainer_resources
from algorithms.dynamics.spec import EnsembleSpec
from algorithms.loading import Plugin
from algorithms.storage import Storage
from orchestrator.progress import StageProgress

POLL_SECONDS = 1.0


def train(
    specs: Sequence[EnsembleSpec],
    storage: Storage,
    device: str,
    plugins: Sequence[Plugin],
    console: Console,
) -> dict[str, str]:
    """Train and publish the given ensembles, side by side, showing how each gets on.

    Returns why ensembles could not be trained, by key.
    """
    if not specs:
        return {}
    resources = trainer_resources(device, len(specs))
    service = ensemble_service(storage)
    waiting = {service.obtain.remote(spec, resources, plugins): spec for spec in specs}
    names = {spec.key: f"ensemble {spec.dataset.slug} seed {spec.seed}" for spec in specs}
    failed: dict[str, str] = {}
    with StageProgress(console) as progress:
        bars = {
            spec.key: progress.add(names[spec.key], spec.settings.dynamics_max_epochs)
            for spec in specs
        }
        while waiting:
            done, _ = ray.wait(list(waiting), timeout=POLL_SECONDS)
            for key, epoch in ray.get(service.progress.remote()).items():
                if key in bars:
                    note = f"holdout mse {epoch['best_elite_holdout_mse']:.4f}"
                    progress.update(bars[key], int(epoch["epoch"]), note)
            for reference in done:
                spec = waiting.pop(reference)
                try:
                    metrics = ray.get(reference).description["metrics"]
                except RayError as error:
                    failed[spec.key] = f"{names[spec.key]}: {_reason(error)}"
                else:
                    note = f"holdout mse {metrics['elite_holdout_mse']:.4f}"
                    progress.finish(bars[spec.key], int(metrics["epochs"]), note)
    return failed


def _reason(error: Exception) -> str:
    """The last line of what went wrong inside: it comes back wrapped by each actor on the way."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    return str(error).strip().splitlines()[-1]
