"""The first stage of a sweep: every dynamics ensemble it needs, trained once.

It ends before the first trial starts. Trials that held a GPU while they waited
for a trainer that needs one would wait for ever; so they only fetch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ray
from ray.exceptions import RayTaskError
from rich.console import Console

from algorithms.dynamics.actor import ensemble_service, trainer_resources
from algorithms.dynamics.store import PublishedEnsemble
from algorithms.errors import UserError
from algorithms.identity import EnsembleSpec
from orchestrator.progress import StageProgress

POLL_SECONDS = 1.0


def train(specs: Sequence[EnsembleSpec], storage: Path, device: str, console: Console) -> None:
    """Train and publish the given ensembles, side by side, showing how each gets on.

    Raises:
        UserError: an ensemble diverged.
        ray.exceptions.RayError: an ensemble could not be trained, after retries.
    """
    if not specs:
        return
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    # A trainer lives on one node: asked for more than any has, it would wait for ever.
    num_cpus = max(1, min(max(nodes), sum(nodes) // len(specs)))
    resources = trainer_resources(device, num_cpus=num_cpus)
    service = ensemble_service(storage)
    waiting = {service.obtain.remote(spec, resources): spec for spec in specs}
    with StageProgress(console) as progress:
        bars = {
            spec.key: progress.add(
                f"ensemble {spec.dataset.slug} seed {spec.seed}", spec.settings.dynamics_max_epochs
            )
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
                metrics = _outcome(reference).description["metrics"]
                note = f"holdout mse {metrics['elite_holdout_mse']:.4f}"
                progress.finish(bars[spec.key], int(metrics["epochs"]), note)


def _outcome(reference: ray.ObjectRef[PublishedEnsemble]) -> PublishedEnsemble:
    try:
        published: PublishedEnsemble = ray.get(reference)
    except RayTaskError as error:
        # A user's mistake comes back through two actors, wrapped by each.
        cause: Exception = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        raise cause if isinstance(cause, UserError) else error from None
    return published
