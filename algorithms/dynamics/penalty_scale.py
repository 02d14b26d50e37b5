"""What a penalty's values are like on the data: the scale by which a coefficient is matched.

An ensemble's description has the means of the project's own penalties over its holdout. Those of
others, a plugin's or one that is newer than the ensemble, are measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.dynamics.penalties import PENALTIES, Prediction
from algorithms.stack.randomness import stream_seed
from algorithms.stack.transitions import Transition

SCALE_STREAM = 0xD104
ROWS = 1000  # as a holdout has at most


def known_or_measured(
    name: str,
    known: Sequence[Mapping[str, float]],
    ensemble: DynamicsEnsemble,
    data: Transition,
) -> Sequence[Mapping[str, float]]:
    """For each seed's ensemble the means of `name` and of `max_std`, by name.

    Args:
        name: of `PENALTIES`.
        known: what the ensembles' descriptions have.
        ensemble: the same, stacked, on the CPU.
        data: transitions `[n]`; rows of them are taken where something is not known.
    """
    if PENALTIES.origin(name) is None and all(name in means for means in known):
        return known
    generator = torch.Generator().manual_seed(stream_seed(SCALE_STREAM))
    rows = torch.randperm(data.rows, generator=generator)[:ROWS]
    shape = (ensemble.num_seeds, -1, -1)
    obs, action = data.obs[rows].expand(*shape), data.action[rows].expand(*shape)
    elites_SK = ensemble.elites_SK
    turn = torch.arange(len(rows)) % elites_SK.shape[1]
    with torch.no_grad():
        prediction: Prediction = ensemble.predict(obs, action, elites_SK[:, turn])
        means = {
            each: PENALTIES[each](prediction).mean(dim=-1).tolist() for each in (name, "max_std")
        }
    return [{each: values[s] for each, values in means.items()} for s in range(len(known))]
