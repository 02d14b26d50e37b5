"""The dynamics ensemble: E probabilistic models of (s, a) -> (s' - s, r), for S seeds.

PETS (Chua et al. 2018) and MBPO (Janner et al. 2019), as MOPO uses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms.dynamics.penalties import Prediction
from algorithms.settings import EnsembleSettings
from algorithms.stack.mlp import StackedMLP, truncated_normal

LOG_VAR_INIT = (-10.0, 0.5)  # the learnt bounds' first values
LOG_VAR_BOUND_COEF = 0.01


class Gaussian(NamedTuple):
    """A diagonal Gaussian per member and row over D = O + 1 outputs: `s' - s`, then `r`."""

    mean_SEBD: Tensor
    log_var_SEBD: Tensor


class DynamicsEnsemble(nn.Module):
    """S x E networks with a mean and a log-variance head, input standardised per seed.

    Args:
        obs_dim: O.
        action_dim: A.
        settings: architecture and number of members and elites.
        generators: one CPU generator per seed, for the initial weights.
    """

    input_mean_SI: Tensor
    input_std_SI: Tensor
    elites_SK: Tensor

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        settings: EnsembleSettings,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.num_ensemble = settings.num_ensemble
        num_seeds, inputs, outputs = len(generators), obs_dim + action_dim, obs_dim + 1
        self.network = StackedMLP(
            (inputs, *settings.dynamics_hidden, 2 * outputs),
            generators,
            members=(settings.num_ensemble,),
            activation=F.silu,
            initializer=truncated_normal,
        )
        low, high = LOG_VAR_INIT
        self.min_log_var_SD = nn.Parameter(torch.full((num_seeds, outputs), low))
        self.max_log_var_SD = nn.Parameter(torch.full((num_seeds, outputs), high))
        self.register_buffer("input_mean_SI", torch.zeros(num_seeds, inputs))
        self.register_buffer("input_std_SI", torch.ones(num_seeds, inputs))
        self.register_buffer("elites_SK", torch.arange(settings.num_elites).repeat(num_seeds, 1))

    @property
    def num_seeds(self) -> int:
        return self.elites_SK.shape[0]

    def forward(self, inputs: Tensor) -> Gaussian:
        """`[S, E or 1, B, O + A]` (unnormalised `[obs, action]`) -> a Gaussian `[S, E, B, D]`.

        The log-variance is clamped softly between the learnt bounds (PETS, appendix A.1).
        """
        mean = self.input_mean_SI[:, None, None]
        std = self.input_std_SI[:, None, None]
        return self._gaussian(self.network((inputs - mean) / std))

    def _gaussian(self, output: Tensor) -> Gaussian:
        mean, log_var = output.chunk(2, dim=-1)
        low, high = self.min_log_var_SD[:, None, None], self.max_log_var_SD[:, None, None]
        log_var = high - F.softplus(high - log_var)
        log_var = low + F.softplus(log_var - low)
        return Gaussian(mean, log_var)

    def predict(self, obs_SBO: Tensor, action_SBA: Tensor, member_SB: Tensor) -> Prediction:
        """All members' Gaussians at (s, a), with the member that shall produce each row."""
        inputs = torch.cat([obs_SBO, action_SBA], dim=-1)[:, None]
        gaussian = self(inputs)
        return Prediction(gaussian.mean_SEBD, (0.5 * gaussian.log_var_SEBD).exp(), member_SB)

    def predict_one(self, obs_SBO: Tensor, action_SBA: Tensor, member_S: Tensor) -> Prediction:
        """The Gaussian of one member per seed alone, as a prediction with E = 1."""
        inputs = torch.cat([obs_SBO, action_SBA], dim=-1)
        inputs = (inputs - self.input_mean_SI[:, None]) / self.input_std_SI[:, None]
        gaussian = self._gaussian(self.network.one_member(inputs, member_S)[:, None])
        std = (0.5 * gaussian.log_var_SEBD).exp()
        own = torch.zeros(obs_SBO.shape[:-1], dtype=torch.long, device=obs_SBO.device)
        return Prediction(gaussian.mean_SEBD, std, own)

    def set_input_statistics(self, mean_SI: Tensor, std_SI: Tensor) -> None:
        """Standardise inputs with these; a std below 1e-12 (a constant input) becomes 1."""
        self.input_mean_SI.copy_(mean_SI)
        self.input_std_SI.copy_(torch.where(std_SI < 1e-12, torch.ones_like(std_SI), std_SI))


def sample_member(prediction: Prediction, noise_SBD: Tensor) -> Tensor:
    """The outcome mean + std * noise of each row's own member, `[S, B, D]`."""
    index = prediction.member[:, None, :, None].expand(-1, 1, -1, noise_SBD.shape[-1])
    mean = prediction.mean.gather(1, index).squeeze(1)
    std = prediction.std.gather(1, index).squeeze(1)
    return mean + std * noise_SBD


def ensemble_loss(
    ensemble: DynamicsEnsemble,
    gaussian: Gaussian,
    target_SEBD: Tensor,
    weight_decay: Sequence[float],
) -> Tensor:
    """Gaussian negative log-likelihood without constants, plus regularisers, `[S]`.

    sum_E mean_{B, D} ((mean - y)^2 exp(-lv) + lv) + sum_l wd_l ||W_l||^2 / 2
    + 0.01 (sum max_lv - sum min_lv): MBPO's loss, PETS eq. 1.
    """
    error = (gaussian.mean_SEBD - target_SEBD).square() * (-gaussian.log_var_SEBD).exp()
    likelihood_S = (error + gaussian.log_var_SEBD).mean(dim=(-2, -1)).sum(dim=-1)
    weights = zip(weight_decay, ensemble.network.weights, strict=True)
    decay_S = sum(0.5 * wd * weight.square().flatten(1).sum(dim=1) for wd, weight in weights)
    bounds_S = (ensemble.max_log_var_SD - ensemble.min_log_var_SD).sum(dim=-1)
    return likelihood_S + decay_S + LOG_VAR_BOUND_COEF * bounds_S


def ensemble_gradients(
    ensemble: DynamicsEnsemble,
    inputs_SEBI: Tensor,
    target_SEBD: Tensor,
    weight_decay: Sequence[float],
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Gradients of the sum over seeds of `ensemble_loss`, by all parameters, and the loss `[S]`."""
    loss_S = ensemble_loss(ensemble, ensemble(inputs_SEBI), target_SEBD, weight_decay)
    gradients = torch.autograd.grad(loss_S.sum(), list(ensemble.parameters()))
    return gradients, loss_S.detach()


def holdout_mse(gaussian: Gaussian, target_SBD: Tensor) -> Tensor:
    """Mean squared error of the means over rows and outputs, `[S, E]`."""
    return (gaussian.mean_SEBD - target_SBD[:, None]).square().mean(dim=(-2, -1))


def calibration(gaussian: Gaussian, target_SBD: Tensor, elites_SK: Tensor, stds: float) -> Tensor:
    """Share of targets within `stds` predicted stds of the elites' means, `[S]`.

    A calibrated Gaussian has 0.683 within one and 0.954 within two.
    """
    distance = (gaussian.mean_SEBD - target_SBD[:, None]).abs()
    within_SE = (distance <= stds * (0.5 * gaussian.log_var_SEBD).exp()).float().mean(dim=(-2, -1))
    return within_SE.gather(1, elites_SK).mean(dim=1)
