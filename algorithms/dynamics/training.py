"""Training of dynamics ensembles: early stopping per member, elites, resumable by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from algorithms.dynamics.ensemble import (
    DynamicsEnsemble,
    Gaussian,
    calibration,
    ensemble_gradients,
    holdout_mse,
)
from algorithms.dynamics.penalties import PENALTIES, Prediction
from algorithms.settings import EnsembleSettings
from algorithms.stack.compilation import Call, call_eagerly
from algorithms.stack.optimizers import step_along
from algorithms.stack.randomness import (
    generator_states,
    randint,
    randperm,
    seed_generators,
    set_generator_states,
)
from algorithms.stack.transitions import Transition

SPLIT_STREAM, WEIGHT_STREAM, EPOCH_STREAM = 0xD101, 0xD102, 0xD103
MIN_IMPROVEMENT = 0.01  # relative to the member's own best holdout error
EVALUATION_CHUNK = 1024


class EnsembleTraining:
    """Trains the ensembles of S seeds on one data set, epoch by epoch.

    Every seed draws its own holdout, bootstraps and order, and stops on its own;
    a finished seed's snapshot no longer changes while the others go on.

    Args:
        data: all transitions `[n]`, on `device`.
        settings: architecture, optimizer and stopping.
        seeds: one ensemble is trained per seed.
        device: where data and networks live.
        call: calls the arithmetic of a batch, compiled or not.
    """

    def __init__(
        self,
        data: Transition,
        settings: EnsembleSettings,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
        call: Call = call_eagerly,
    ) -> None:
        self.settings, self.seeds, self.call = settings, tuple(seeds), call
        data = data.to(device)
        self.inputs_NI = torch.cat([data.obs, data.action], dim=-1)
        self.targets_ND = torch.cat([data.next_obs - data.obs, data.reward[:, None]], dim=-1)

        split = seed_generators(SPLIT_STREAM, seeds, device)
        self.holdout_SN, train_SN = _split(data.rows, settings, split)
        num_train = train_SN.shape[1]
        # One bootstrap with replacement per member (PETS, section 4).
        bootstrap = randint(split, num_train, settings.num_ensemble * num_train)
        self.rows_SEN = train_SN.gather(1, bootstrap).view(
            len(seeds), settings.num_ensemble, num_train
        )
        obs_dim, action_dim = data.obs.shape[-1], data.action.shape[-1]
        self.ensemble = DynamicsEnsemble(
            obs_dim, action_dim, settings, seed_generators(WEIGHT_STREAM, seeds)
        ).to(device)
        train_inputs = self.inputs_NI[train_SN]
        self.ensemble.set_input_statistics(
            train_inputs.mean(dim=1), train_inputs.std(dim=1, unbiased=False)
        )
        self.optimizer = torch.optim.Adam(
            self.ensemble.parameters(), settings.dynamics_lr, fused=True
        )
        self.generators = seed_generators(EPOCH_STREAM, seeds, device)

        self.epoch = 0
        shape = (len(seeds), settings.num_ensemble)
        self.best_mse_SE = torch.full(shape, torch.inf, device=device)
        self.epochs_without_improvement_S = torch.zeros(len(seeds), dtype=torch.long)
        self.best = [p.detach().clone() for p in self.ensemble.parameters()]

    @property
    def still_training(self) -> Tensor:
        """Which seeds still train: none of whose members stood still for `patience` epochs."""
        return self.epochs_without_improvement_S < self.settings.dynamics_patience

    @property
    def finished(self) -> bool:
        everyone_stopped = not bool(self.still_training.any())
        return everyone_stopped or self.epoch >= self.settings.dynamics_max_epochs

    @property
    def has_elites(self) -> bool:
        """Whether every seed has as many members with a finite holdout error as it needs."""
        usable_S = self.best_mse_SE.isfinite().sum(dim=1)
        return bool((usable_S >= self.settings.num_elites).all())

    def train_epoch(self) -> dict[str, list[float]]:
        """One pass over every member's bootstrap; returns metrics, one value per seed."""
        loss_S = self._pass()
        mse_SE = holdout_mse(*self._holdout())
        self._snapshot(mse_SE)
        self.epoch += 1
        elite_mse_S = self.best_mse_SE.sort(dim=1).values[:, : self.settings.num_elites].mean(1)
        return {
            "train_loss": loss_S.tolist(),
            "holdout_mse": mse_SE.mean(dim=1).tolist(),
            "best_elite_holdout_mse": elite_mse_S.tolist(),
        }

    def _pass(self) -> Tensor:
        num_train = self.rows_SEN.shape[-1]
        batch_size = min(self.settings.dynamics_batch_size, num_train)
        num_batches = num_train // batch_size  # the remainder is in another epoch's order
        order = torch.stack(
            [
                torch.stack(
                    [
                        torch.randperm(num_train, generator=g, device=g.device)
                        for _ in range(self.settings.num_ensemble)
                    ]
                )
                for g in self.generators
            ]
        )
        rows_SEN = self.rows_SEN.gather(2, order)
        total_S = torch.zeros(len(self.seeds), device=rows_SEN.device)
        for b in range(num_batches):
            index_SEB = rows_SEN[:, :, b * batch_size : (b + 1) * batch_size]
            gradients, loss_S = self.call(
                ensemble_gradients,
                self.ensemble,
                self.inputs_NI[index_SEB],
                self.targets_ND[index_SEB],
                self.settings.dynamics_weight_decay,
            )
            step_along(self.optimizer, gradients)
            total_S += loss_S
        return total_S / num_batches

    @torch.no_grad()
    def _holdout(self) -> tuple[Gaussian, Tensor]:
        """The current networks' Gaussians on the holdout, and its targets `[S, B, D]`."""
        inputs, targets = self.inputs_NI[self.holdout_SN], self.targets_ND[self.holdout_SN]
        chunks = [self.ensemble(chunk[:, None]) for chunk in inputs.split(EVALUATION_CHUNK, dim=1)]
        gaussian = Gaussian(
            torch.cat([c.mean_SEBD for c in chunks], dim=2),
            torch.cat([c.log_var_SEBD for c in chunks], dim=2),
        )
        return gaussian, targets

    @torch.no_grad()
    def _snapshot(self, mse_SE: Tensor) -> None:
        """Keep the weights of members that improved, and count for the early stop.

        The log-variance bounds belong to all members: they are kept whenever any improved.
        """
        improved_SE = mse_SE < self.best_mse_SE * (1.0 - MIN_IMPROVEMENT)
        improved_SE &= self.still_training.to(mse_SE.device)[:, None]
        improved_S = improved_SE.any(dim=1)
        self.best_mse_SE = torch.where(improved_SE, mse_SE, self.best_mse_SE)
        for best, current in zip(self.best, self.ensemble.parameters(), strict=True):
            improved = improved_SE if best.dim() > 2 else improved_S
            mask = improved.view(*improved.shape, *(1 for _ in best.shape[improved.dim() :]))
            best.copy_(torch.where(mask, current, best))
        count = torch.where(improved_S.cpu(), 0, self.epochs_without_improvement_S + 1)
        self.epochs_without_improvement_S = torch.where(
            self.still_training, count, self.epochs_without_improvement_S
        )

    @torch.no_grad()
    def result(self) -> tuple[DynamicsEnsemble, list[dict[str, Any]]]:
        """The ensembles with every member's best weights and the elites, and metrics per seed.

        `penalty_mean` holds each penalty's mean over the holdout with the stored
        actions: their scales differ, and so what one coefficient means to each. A plugin's
        penalty is not among them: its source may change while the ensemble stays.
        """
        for parameter, best in zip(self.ensemble.parameters(), self.best, strict=True):
            parameter.copy_(best)
        elites_SK = self.best_mse_SE.argsort(dim=1)[:, : self.settings.num_elites]
        self.ensemble.elites_SK.copy_(elites_SK)
        gaussian, targets = self._holdout()
        mse_SE = holdout_mse(gaussian, targets)
        within = {k: calibration(gaussian, targets, elites_SK, float(k)) for k in (1, 2)}
        # Rows take their elites in turn: each elite produces the same share.
        turn = torch.arange(targets.shape[1], device=targets.device) % elites_SK.shape[1]
        std = (0.5 * gaussian.log_var_SEBD).exp()
        prediction = Prediction(gaussian.mean_SEBD, std, elites_SK[:, turn])
        penalties = {name: PENALTIES[name](prediction).mean(dim=-1) for name in PENALTIES.built_in}
        metrics = [
            {
                "epochs": self.epoch,
                "holdout_rows": targets.shape[1],
                "holdout_mse": mse_SE[s].tolist(),
                "elites": elites_SK[s].tolist(),
                "elite_holdout_mse": float(mse_SE[s, elites_SK[s]].mean()),
                "target_variance": float(targets[s].var(dim=0, unbiased=False).mean()),
                "within_1_std": float(within[1][s]),
                "within_2_std": float(within[2][s]),
                "penalty_mean": {name: float(mean_S[s]) for name, mean_S in penalties.items()},
            }
            for s in range(len(self.seeds))
        ]
        return self.ensemble, metrics

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes from epoch to epoch; the split follows from the seeds."""
        return {
            "ensemble": self.ensemble.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": generator_states(self.generators),
            "best": self.best,
            "best_mse": self.best_mse_SE,
            "epochs_without_improvement": self.epochs_without_improvement_S,
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.best_mse_SE.device
        self.ensemble.load_state_dict(state["ensemble"])
        self.optimizer.load_state_dict(state["optimizer"])
        set_generator_states(self.generators, state["generators"])
        self.best = [best.to(device) for best in state["best"]]
        self.best_mse_SE = state["best_mse"].to(device)
        self.epochs_without_improvement_S = state["epochs_without_improvement"].cpu()
        self.epoch = state["epoch"]


def _split(
    rows: int, settings: EnsembleSettings, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Row indices of each seed's random holdout `[S, h]` and of its train split `[S, n - h]`."""
    size = min(int(rows * settings.holdout_fraction), settings.holdout_max)
    if size < 1 or size >= rows:
        raise ValueError(f"{rows} transitions are too few to hold some out")
    shuffled = randperm(generators, rows)
    return shuffled[:, :size], shuffled[:, size:]
