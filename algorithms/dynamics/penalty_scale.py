"""What a penalty's values are like on the data: the scale by which a coefficient is matched.

An ensemble's description has the means of the project's own penalties over its holdout. Those of
others, a plugin's or one that is newer than the ensemble, are measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from algorithms.dynamics.checks import check_penalty
from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.dynamics.penalties import PENALTIES, Prediction
from algorithms.stack.randomness import stream_seed
from algorithms.stack.threads import one_thread
from algorithms.stack.transitions import Transition

SCALE_STREAM = 0xD104
ROWS = 1000  # as a holdout has at most


def known_or_measured(
    name: str,
    known: Sequence[Mapping[str, float]],
    ensemble: DynamicsEnsemble,
    data: Transition,
) -> Sequence[Mapping[str, float]]:
    """For each seed's ensemble the means of `name` and of `max_std`, at least, by name.

    Args:
        name: of `PENALTIES`.
        known: what the ensembles' descriptions have.
        ensemble: the same, stacked, on the CPU.
        data: transitions `[n]`; rows of them are taken where something is not known.

    Raises:
        UserError: a plugin's function fails, or returns anything but one non-negative number
            per row.
    """
    if PENALTIES.origin(name) is None and all(name in means for means in known):
        return known
    mean_S, max_std_S = _measure(name, ensemble, data)
    return [
        {name: float(mean), "max_std": float(max_std)}
        for mean, max_std in zip(mean_S, max_std_S, strict=True)
    ]


def check_penalty_of_plugin(name: str, ensemble: DynamicsEnsemble, data: Transition) -> None:
    """Call a plugin's penalty on predictions of the data; the project's own are as they are.

    Raises:
        UserError: as `known_or_measured`.
    """
    if PENALTIES.origin(name):
        _measure(name, ensemble, data)


def _measure(name: str, ensemble: DynamicsEnsemble, data: Transition) -> tuple[Tensor, Tensor]:
    """The means of a penalty and of `max_std` over the same rows of the data, `[S]` each."""
    with one_thread():
        prediction = predict_sample(ensemble, data)
        seen = own_member(prediction) if PENALTIES[name].own_member_only else prediction
        value_SB = check_penalty(name, seen)
        return value_SB.mean(dim=-1), PENALTIES["max_std"](prediction).mean(dim=-1)


@torch.no_grad()
def predict_sample(ensemble: DynamicsEnsemble, data: Transition) -> Prediction:
    """What every seed's ensemble says of the same random rows of the data.

    The rows take the elites in turn: each elite produces the same share.
    """
    generator = torch.Generator().manual_seed(stream_seed(SCALE_STREAM))
    rows = torch.randperm(data.rows, generator=generator)[:ROWS]
    shape = (ensemble.num_seeds, -1, -1)
    elites_SK = ensemble.elites_SK
    turn = torch.arange(len(rows)) % elites_SK.shape[1]
    obs, action = data.obs[rows].expand(*shape), data.action[rows].expand(*shape)
    return ensemble.predict(obs, action, elites_SK[:, turn])


def own_member(prediction: Prediction) -> Prediction:
    """The member that produced each row alone: E = 1, as `own_member_only` promises."""
    mean, std, member = prediction
    index = member[..., None, :, None].expand(*mean.shape[:-3], 1, *mean.shape[-2:])
    return Prediction(mean.gather(-3, index), std.gather(-3, index), torch.zeros_like(member))
