"""Uncertainty penalties: an ensemble's prediction -> one non-negative number per row.

To add one, write the function and enter it in `PENALTIES`. Formulae use tensor
methods only, so the table of names can be read without importing torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Prediction(NamedTuple):
    """What an ensemble says of a batch of (s, a): a Gaussian over D = O + 1 outputs per member.

    The outputs are the change of the observation, then the reward, unnormalised.
    """

    mean: Tensor  # [..., E, B, D]
    std: Tensor  # [..., E, B, D]
    member: Tensor  # [..., B], the index of the member that produced each row


def none(p: Prediction) -> Tensor:
    """No penalty: offline MBPO."""
    return p.mean.new_zeros(p.member.shape)


def max_std(p: Prediction) -> Tensor:
    """max_E ||std||: the penalty of MOPO's code (the paper, section 4.3, writes Sigma)."""
    return p.std.norm(dim=-1).amax(-2)


def max_pairwise_distance(p: Prediction) -> Tensor:
    """max_{i,j} ||m_i - m_j|| over the members' mean next-observation deltas m."""
    means = _delta_means(p)
    differences = means.unsqueeze(-3) - means.unsqueeze(-4)  # [..., E, E, B, O]
    return differences.norm(dim=-1).amax((-3, -2))


def max_center_distance(p: Prediction) -> Tensor:
    """max_E ||m_i - mean_E m|| over the members' mean next-observation deltas m."""
    means = _delta_means(p)
    return (means - means.mean(-3, keepdim=True)).norm(dim=-1).amax(-2)


def ensemble_variance(p: Prediction) -> Tensor:
    """sum_E ||std|| + sum_E ||mean|| - ||sum_E mean||.

    Non-negative by the triangle inequality, but not invariant to a shift of all means.
    """
    spread = p.mean.norm(dim=-1).sum(-2) - p.mean.sum(-3).norm(dim=-1)
    return p.std.norm(dim=-1).sum(-2) + spread.clamp(min=0.0)  # rounding can dip below 0


def member_std(p: Prediction) -> Tensor:
    """||std|| of the member that produced the row."""
    return p.std.norm(dim=-1).gather(-2, p.member.unsqueeze(-2)).squeeze(-2)


def combined(p: Prediction) -> Tensor:
    """The mean of `member_std` and `max_std`."""
    return 0.5 * member_std(p) + 0.5 * max_std(p)


def mixture_std(p: Prediction) -> Tensor:
    """Root of the total variance of the members' equally weighted Gaussian mixture.

    Law of total variance: the mean of the variances plus the variance of the means.
    """
    variance = p.std.square().mean(-3) + p.mean.var(-3, unbiased=False)
    return variance.sum(-1).sqrt()


def _delta_means(p: Prediction) -> Tensor:
    return p.mean[..., :-1]


# Those that see only the member that produced the row: the others need not be evaluated.
OWN_MEMBER_ONLY = frozenset({"none", "member_std"})

PENALTIES: dict[str, Callable[[Prediction], Tensor]] = {
    "none": none,
    "max_std": max_std,
    "max_pairwise_distance": max_pairwise_distance,
    "max_center_distance": max_center_distance,
    "ensemble_variance": ensemble_variance,
    "member_std": member_std,
    "combined": combined,
    "mixture_std": mixture_std,
}
