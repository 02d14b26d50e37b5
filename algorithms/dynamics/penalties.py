"""Uncertainty penalties: an ensemble's prediction -> one non-negative number per row.

To add one, write the function and its row above it. Formulae use tensor methods only, so the
table can be read without importing torch. `label` is the name in the report whose experiments
the sweeps reproduce, where the penalty is one of its six.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from algorithms.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


class Prediction(NamedTuple):
    """What an ensemble says of a batch of (s, a): a Gaussian over D = O + 1 outputs per member.

    The outputs are the change of the observation, then the reward, unnormalised.
    """

    mean: Tensor  # [..., E, B, D]
    std: Tensor  # [..., E, B, D]
    member: Tensor  # [..., B], the index of the member that produced each row


Formula = Callable[[Prediction], "Tensor"]  # -> [..., B]


class Penalty(NamedTuple):
    """One row of the table; called, it is its formula."""

    formula: Formula
    label: str  # for reports
    colour: str | None  # in figures; None: that of text
    # Whether it sees the member that produced a row alone: the others need not be evaluated.
    own_member_only: bool

    def __call__(self, prediction: Prediction) -> Tensor:
        return self.formula(prediction)


PENALTIES: Registry[Penalty] = Registry("penalty")


def penalty(
    name: str, *, label: str, colour: str | None = None, own_member_only: bool = False
) -> Callable[[Formula], Formula]:
    """Enter the function below it in the table.

    Args:
        name: as a sweep says it.
        label: for reports.
        colour: in figures, as matplotlib takes it.
        own_member_only: the function looks at `mean` and `std` of the row's own member alone.
            E is then 1, and the other members are not evaluated.

    Raises:
        UserError: there is a penalty of that name.
    """

    def enter(formula: Formula) -> Formula:
        PENALTIES.add(name, Penalty(formula, label, colour, own_member_only))
        return formula

    return enter


@penalty("none", label="No penalty", own_member_only=True)
def none(p: Prediction) -> Tensor:
    """No penalty: offline MBPO."""
    return p.mean.new_zeros(p.member.shape)


@penalty("max_std", label="Original", colour="#d1495b")
def max_std(p: Prediction) -> Tensor:
    """max_E ||std||: the penalty of MOPO's code (the paper, section 4.3, writes Sigma)."""
    return p.std.norm(dim=-1).amax(-2)


@penalty("max_pairwise_distance", label="Difference of Means", colour="#e08e00")
def max_pairwise_distance(p: Prediction) -> Tensor:
    """max_{i,j} ||m_i - m_j|| over the members' mean next-observation deltas m."""
    means = _delta_means(p)
    differences = means.unsqueeze(-3) - means.unsqueeze(-4)  # [..., E, E, B, O]
    return differences.norm(dim=-1).amax((-3, -2))


@penalty("max_center_distance", label="Means Diff from Center", colour="#2a9d5c")
def max_center_distance(p: Prediction) -> Tensor:
    """max_E ||m_i - mean_E m|| over the members' mean next-observation deltas m."""
    means = _delta_means(p)
    return (means - means.mean(-3, keepdim=True)).norm(dim=-1).amax(-2)


@penalty("ensemble_variance", label="Ensemble Variance")
def ensemble_variance(p: Prediction) -> Tensor:
    """sum_E ||std|| + sum_E ||mean|| - ||sum_E mean||.

    Non-negative by the triangle inequality, but not invariant to a shift of all means.
    """
    spread = p.mean.norm(dim=-1).sum(-2) - p.mean.sum(-3).norm(dim=-1)
    return p.std.norm(dim=-1).sum(-2) + spread.clamp(min=0.0)  # rounding can dip below 0


@penalty("member_std", label="Individual Variance", colour="#7b3fa0", own_member_only=True)
def member_std(p: Prediction) -> Tensor:
    """||std|| of the member that produced the row."""
    return p.std.norm(dim=-1).gather(-2, p.member.unsqueeze(-2)).squeeze(-2)


@penalty("combined", label="Combined Variance")
def combined(p: Prediction) -> Tensor:
    """The mean of `member_std` and `max_std`."""
    return 0.5 * member_std(p) + 0.5 * max_std(p)


@penalty("mixture_std", label="Mixture")
def mixture_std(p: Prediction) -> Tensor:
    """Root of the total variance of the members' equally weighted Gaussian mixture.

    Law of total variance: the mean of the variances plus the variance of the means.
    """
    variance = p.std.square().mean(-3) + p.mean.var(-3, unbiased=False)
    return variance.sum(-1).sqrt()


def _delta_means(p: Prediction) -> Tensor:
    return p.mean[..., :-1]
