"""The public Python API: a sweep as an object, its results as pandas data frames."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console

from algorithms.loading import load_plugins
from orchestrator.deployment import Deployment
from orchestrator.plan import Plan, make_plan
from orchestrator.results import ResultStore, SeedResult, remembered
from orchestrator.sweep.cell import Cell, cells_of, resolve_in
from orchestrator.sweep.model import Sweep, load_sweep

if TYPE_CHECKING:
    from algorithms.sac.policy import DeterministicPolicy


class Experiment:
    """A sweep file together with the storage that it works on.

    Args:
        sweep: validated.
        deployment: where storage, MLflow and Ray are.
    """

    def __init__(self, sweep: Sweep, deployment: Deployment) -> None:
        self.sweep, self.deployment = sweep, deployment

    def __repr__(self) -> str:
        return f"Experiment({self.sweep.name!r}, storage={str(self.deployment.storage)!r})"

    def plan(self) -> Plan:
        """What `run` would do; changes nothing.

        Raises:
            UserError: a data set is unknown or unreadable.
        """
        load_plugins(self.sweep.loaded_plugins)  # another sweep's may have been loaded since
        storage = self.deployment.storage
        return make_plan(self.sweep, cells_of(self.sweep, resolve_in(storage)), storage)

    def run(self) -> pd.DataFrame:
        """Train what is missing; returns `results()`.

        What fails is told on the terminal, and missing in the results.

        Raises:
            UserError: as `orchestrator run` tells it.
        """
        from orchestrator.run import run

        load_plugins(self.sweep.loaded_plugins)
        console = Console(markup=False, emoji=False, highlight=False)
        outcome = run(self.sweep, self.deployment, console)
        for error in outcome.failed:
            console.print(f"failed: {error}", style="red", soft_wrap=True)
        return self.results()

    def results(self) -> pd.DataFrame:
        """One row per seed of each cell, in the order of the table; of seeds without a result too.

        Columns:
            cell, variant, dataset, seed: which.
            status: `finished`, `running` (a checkpoint, but not all epochs), `diverged`, `missing`.
            epochs: after how many the score is; 0 without one.
            score: mean of the last ten evaluations, normalised: 0 for a policy that acts at
                random, 100 for D4RL's expert. NaN without one.
            behaviour_score: mean normalised score of the data's own episodes.
            minutes: wall time of the job that trained the seed, which other seeds may share.
            result_key, ensemble_key, data_content: what its content is known by.
            data_version: of the data set, in its source's words.
            data_notes: what was derived or converted to read it, and which of its checks are
                allowed to fail.
            code: hash of the code that trained it.
        """
        store = ResultStore(self.deployment.storage)
        return pd.DataFrame(
            [
                _row(cell, seed, store.get(cell.result_key(seed)))
                for cell in self._cells()
                for seed in cell.seeds
            ]
        )

    def curves(self) -> pd.DataFrame:
        """One row per epoch, seed and cell: `cell`, `variant`, `dataset`, `seed`, `epoch`, metrics.

        Up to the last checkpoint of each seed. Metrics are those of MLflow, without `seed_k/`.
        """
        store = ResultStore(self.deployment.storage)
        frames = [pd.DataFrame(columns=["cell", "variant", "dataset", "seed", "epoch"])]
        for cell in self._cells():
            for seed in cell.seeds:
                curve = store.get_curve(cell.result_key(seed))
                if curve.empty:
                    continue
                where: dict[str, Any] = {
                    "cell": cell.name,
                    "variant": cell.variant,
                    "dataset": cell.dataset_label,
                    "seed": seed,
                }
                frames.append(curve.assign(**where)[[*where, *curve.columns]])
        return pd.concat(frames[1:] or frames, ignore_index=True)

    def _cells(self) -> list[Cell]:
        load_plugins(self.sweep.loaded_plugins)
        return cells_of(self.sweep, remembered(self.deployment.storage))


def load(file: str | Path, *, storage: str | Path | None = None, **overrides: Any) -> Experiment:
    """A sweep file, read and validated.

    Args:
        file: of the sweep (YAML).
        storage: root of everything that is kept; by default as for the command line.
        overrides: keys of the sweep, or of its `fixed`, with other values: `seeds=3, epochs=5`.

    Raises:
        UserError: the file, in one sentence, is wrong.
    """
    deployment = Deployment.from_environment(storage)
    return Experiment(load_sweep(Path(file), overrides), deployment)


def policy(cell: str, seed: int, *, storage: str | Path | None = None) -> DeterministicPolicy:
    """One trained policy as a torch module: observations `[B, O]` to actions `[B, A]`.

    Args:
        cell: its name, as in `results()`.
        seed: which of its seeds.
        storage: where the results are; by default as for the command line.

    Raises:
        UserError: no such cell or seed, it diverged, or its checkpoint is gone.
    """
    from orchestrator.export import find_result, read_policy

    return read_policy(find_result(cell, seed, Deployment.from_environment(storage).storage))


def _row(cell: Cell, seed: int, result: SeedResult | None) -> dict[str, Any]:
    epochs = cell.settings.epochs
    score = result.score(epochs) if result else None
    ensemble = cell.ensemble(seed)
    return {
        "cell": cell.name,
        "variant": cell.variant,
        "dataset": cell.dataset_label,
        "seed": seed,
        "status": _status(result, epochs),
        "epochs": result.scored_at(epochs) if result and score is not None else 0,
        "score": math.nan if score is None else score,
        "behaviour_score": math.nan
        if result is None or result.behaviour_score is None
        else result.behaviour_score,
        "minutes": result.minutes if result else math.nan,
        "result_key": cell.result_key(seed),
        "ensemble_key": ensemble and ensemble.key,
        "data_content": cell.dataset.content_hash,
        "data_version": cell.dataset.version,
        "data_notes": "; ".join((*cell.dataset.notes, *cell.dataset.silenced)),
        "code": result.code if result else None,
    }


def _status(result: SeedResult | None, epochs: int) -> str:
    if result is None:
        return "missing"
    if result.diverged_before(epochs):
        return "diverged"
    return "finished" if result.done(epochs) else "running"
