"""MOPO: Model-based Offline Policy Optimization (Yu et al. 2020, arXiv 2005.13239).

Algorithm 2 of the paper, and where each line of it is:

    train an ensemble of N probabilistic dynamics     dynamics/training.py (once, shared)
    for epoch 1, 2, ...                               training/loop.py
        sample states from the data set
        for h steps: a ~ pi, model ~ elites           dynamics/rollout.py
            r~ = r - lambda u(s, a)                   here: `penalty` and `penalty_coef_S`
            add (s, a, r~, s') to the model buffer    stack/transitions.py
        update pi with SAC on 5 % real, 95 % model    sac/agent.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from algorithms.dynamics.penalties import PENALTIES
from algorithms.dynamics.rollout import PENALTY_QUANTILES, Rollout
from algorithms.errors import UserError
from algorithms.mopo.settings import MOPOSettings
from algorithms.sac.agent import SAC, Context


class MOPO(SAC):
    """Soft actor-critic on model rollouts whose rewards are less by the model's uncertainty."""

    settings: MOPOSettings

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        if self.ensemble is None:  # offline SAC: no reward is the model's
            return
        self.penalty = PENALTIES[self.settings.penalty]
        coefs = penalty_coefficients(self.settings, context.penalty_mean, context.num_seeds)
        self.penalty_coef_S = torch.tensor(coefs, device=context.device)

    @property
    def penalises(self) -> bool:
        """Whether any reward is less than the model's: not for MBPO and offline SAC."""
        return self.penalty is not PENALTIES["none"]

    def describe_rollout(self, model: Rollout) -> dict[str, Tensor]:
        """The penalty's mean and quantiles, before the coefficient."""
        if not self.penalises:
            return {}
        quantiles = zip(PENALTY_QUANTILES, model.penalty_quantiles_QS, strict=True)
        return {
            "penalty": model.penalty_S,
            **{f"penalty_q{100 * q:.0f}": value_S for q, value_S in quantiles},
        }

    def largest_q(self, statistics: Mapping[str, Tensor]) -> Tensor:
        """As of `SAC`, and what the largest penalties take away at every step to come."""
        largest_S = super().largest_q(statistics)
        if self.penalises and self.settings.gamma < 1.0:
            penalty_S = self.penalty_coef_S.cpu() * statistics["penalty_q99"]
            largest_S += penalty_S / (1.0 - self.settings.gamma)
        return largest_S


def penalty_coefficients(
    settings: MOPOSettings, penalty_mean: Sequence[Mapping[str, float]], num_seeds: int
) -> list[float]:
    """Every seed's coefficient: as set, or `matched` to `max_std` on the seed's own ensemble.

    Raises:
        UserError: a penalty is 0 everywhere on the holdout, so nothing can match it.
    """
    coef, name = settings.penalty_coef, settings.matched_penalty
    if name is None:
        return [coef] * num_seeds
    assert len(penalty_mean) == num_seeds
    if any(mean[name] == 0.0 for mean in penalty_mean):
        raise UserError(
            f"penalty_coef_mode: matched cannot scale {name}, which is 0 on the holdout: use raw"
        )
    return [coef * mean["max_std"] / mean[name] for mean in penalty_mean]
