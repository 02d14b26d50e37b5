"""Ray actors that train each dynamics ensemble once, whoever asks and however often.

`EnsembleService` is one coordinator per cluster and storage: asked for an
ensemble, it returns the published one, or has it trained by an
`EnsembleTrainer`, an actor of its own that holds a GPU if the cluster has one
and is killed when it is done. Callers of the same key wait for the same
training; a trainer that dies continues from its last epoch.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from rich.console import Console

from algorithms.data.source import load
from algorithms.dynamics.spec import EnsembleSpec, is_published
from algorithms.dynamics.store import (
    PublishedEnsemble,
    publish_ensemble,
    read_ensemble,
)
from algorithms.dynamics.training import EnsembleTraining
from algorithms.errors import UserError
from algorithms.identity import code_hash
from algorithms.loading import Plugin, load_plugins
from algorithms.progress import StageProgress
from algorithms.stack.compilation import call_compiled, call_eagerly, can_compile
from algorithms.stack.transitions import Transition
from algorithms.storage import Storage

log = logging.getLogger(__name__)
NAMESPACE = "orchestrator"
# Compiling takes about ten seconds, and saves a few milliseconds in each batch.
BATCHES_WORTH_COMPILING = 5_000
POLL_SECONDS = 1.0


class EnsembleTrainer:
    """Trains one ensemble and publishes it; restarted, it goes on after its last epoch."""

    def train(
        self, spec: EnsembleSpec, storage: Storage, service: Any, plugins: Sequence[Plugin]
    ) -> None:
        load_plugins(plugins)
        on_gpu = bool(ray.get_gpu_ids())
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        torch.set_num_threads(max(1, int(cpus)))
        # Of several clusters that share a storage one trains it, and the others wait.
        with storage.lease(f"ensemble-{spec.key}"):
            if is_published(storage, spec.key):
                return
            for epoch in train_ensemble(spec, storage, device="cuda" if on_gpu else "cpu"):
                service.report.remote(spec.key, epoch)


def train_ensemble(
    spec: EnsembleSpec, storage: Storage, device: str = "cpu"
) -> Iterator[dict[str, float]]:
    """Train and publish one ensemble, yielding the metrics of every epoch.

    A checkpoint is written after each epoch and removed with the publication.

    Raises:
        UserError: the ensemble diverged, so there is nothing to publish.
    """
    # One for each kind of device: their random numbers differ, so neither continues the other.
    checkpoint = f"ensembles/.{spec.key}-{torch.device(device).type}.pt"
    data = load(spec.dataset, storage)
    batches = len(data.reward) // spec.settings.dynamics_batch_size
    worth_it = batches * spec.settings.dynamics_max_epochs >= BATCHES_WORTH_COMPILING
    training = EnsembleTraining(
        Transition.from_numpy(data),
        spec.settings,
        seeds=[spec.seed],
        device=device,
        call=call_compiled if worth_it and can_compile(device) else call_eagerly,
    )
    history: list[dict[str, float]] = []
    seconds = 0.0
    if saved := storage.get(checkpoint):
        state = torch.load(BytesIO(saved), map_location=device, weights_only=True)
        training.load_state_dict(state["training"])
        history, seconds = json.loads(state["history"]), state["seconds"]
    while not training.finished:
        begin = time.monotonic()
        metrics = {name: values[0] for name, values in training.train_epoch().items()}
        seconds += time.monotonic() - begin
        history.append(metrics)
        state = {
            "training": training.state_dict(),
            "history": json.dumps(history),
            "seconds": seconds,
        }
        content = BytesIO()
        torch.save(state, content)
        storage.put(checkpoint, content.getvalue())
        yield {"epoch": training.epoch, **metrics}
    if not training.has_elites:
        storage.delete(checkpoint)
        raise UserError(
            f"the dynamics ensemble of {spec.dataset.id} seed {spec.seed} diverged: "
            "lower dynamics_lr, or check the scale of the data"
        )
    ensemble, result = training.result()
    publish_ensemble(storage, spec, ensemble, result[0], history, seconds)
    storage.delete(checkpoint)


class EnsembleService:
    """Single-flight per key: concurrent callers get the result of one training."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._locks: dict[str, asyncio.Lock] = {}
        self._progress: dict[str, dict[str, float]] = {}

    async def obtain(
        self, spec: EnsembleSpec, resources: dict[str, float], plugins: Sequence[Plugin] = ()
    ) -> PublishedEnsemble:
        """The ensemble, trained with `resources` (`num_cpus`, `num_gpus`) if need be."""
        async with self._locks.setdefault(spec.key, asyncio.Lock()):
            published = await asyncio.to_thread(read_ensemble, self._storage, spec.key)
            if published is None:
                await self._train(spec, resources, plugins)
                published = await asyncio.to_thread(read_ensemble, self._storage, spec.key)
            assert published is not None
            return published

    async def _train(
        self, spec: EnsembleSpec, resources: dict[str, float], plugins: Sequence[Plugin]
    ) -> None:
        # DEFAULT scheduling: inside a trial's placement group the trainer would wait for
        # the very resources that the trial holds.
        trainer = _TRAINER.options(scheduling_strategy="DEFAULT", **resources).remote()
        service = ray.get_runtime_context().current_actor
        try:
            await trainer.train.remote(spec, self._storage, service, plugins)
        finally:
            ray.kill(trainer)  # gives its GPU back at once
            self._progress.pop(spec.key, None)

    async def report(self, key: str, epoch: dict[str, float]) -> None:
        self._progress[key] = epoch

    async def progress(self) -> dict[str, dict[str, float]]:
        """The last epoch's metrics of every ensemble in training."""
        return self._progress


_TRAINER: Any = ray.remote(max_restarts=3, max_task_retries=3)(EnsembleTrainer)
_SERVICE: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(EnsembleService)


def ensemble_service(storage: Storage) -> Any:
    """The cluster's coordinator for this storage and version of the code, started if needed."""
    if not ray.is_initialized():  # an algorithm built on its own, outside of any cluster
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    identity = f"{storage}|{code_hash()}"
    name = f"ensembles-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    return _SERVICE.options(
        name=name,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        scheduling_strategy="DEFAULT",
    ).remote(storage)


def trainer_resources(device: str = "auto", trainers: int = 1) -> dict[str, float]:
    """What each of `trainers` asks for: a whole GPU and a CPU where there is a GPU, else CPUs.

    A trainer lives on one node: asked for more than any has, it would wait for ever.
    """
    if device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1:
        return {"num_cpus": 1, "num_gpus": 1}
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return {"num_cpus": max(1, min(max(cpus), sum(cpus) // trainers)), "num_gpus": 0}


def train_ensembles(
    specs: Sequence[EnsembleSpec],
    storage: Storage,
    resources: dict[str, float],
    plugins: Sequence[Plugin],
    console: Console,
) -> tuple[dict[str, PublishedEnsemble], dict[str, Exception]]:
    """Have ensembles trained side by side, showing how each gets on.

    Args:
        specs: each once.
        storage: where they are published; what is there already is not trained again.
        resources: of each trainer, as of `trainer_resources`.
        plugins: that a trainer has to execute first.
        console: for progress.

    Returns:
        By key: the ensembles, and why others could not be trained.
    """
    service = ensemble_service(storage)
    waiting = {service.obtain.remote(spec, resources, plugins): spec for spec in specs}
    obtained: dict[str, PublishedEnsemble] = {}
    failed: dict[str, Exception] = {}
    with StageProgress(console) as progress:
        bars = {
            spec.key: progress.add(name_of(spec), spec.settings.dynamics_max_epochs)
            for spec in specs
            if not is_published(storage, spec.key)
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
                    obtained[spec.key] = ray.get(reference)
                except RayError as error:
                    failed[spec.key] = error
                    continue
                metrics = obtained[spec.key].description["metrics"]
                if spec.key in bars:
                    note = f"holdout mse {metrics['elite_holdout_mse']:.4f}"
                    progress.finish(bars[spec.key], int(metrics["epochs"]), note)
    return obtained, failed


def name_of(spec: EnsembleSpec) -> str:
    """An ensemble as people are told of it."""
    return f"ensemble {spec.dataset.slug} seed {spec.seed}"


def obtain_ensembles(
    specs: Sequence[EnsembleSpec], storage: Storage, plugins: Sequence[Plugin] = ()
) -> list[PublishedEnsemble]:
    """Published ensembles in the order of `specs`; what is missing is trained first."""
    if not specs:
        return []
    distinct = {spec.key: spec for spec in specs}
    ensemble_service(storage)  # starts Ray, where nobody has
    # One CPU: the caller may be a trial on a full cluster.
    resources = trainer_resources() | {"num_cpus": 1}
    console = Console(stderr=True)
    obtained, failed = train_ensembles(
        list(distinct.values()), storage, resources, plugins, console
    )
    for error in failed.values():
        raise error
    return [obtained[spec.key] for spec in specs]
