"""This project's trainings on made-up data, as a trial builds them on real data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from hopper import ACTION, OBS, QUIET_LOG_VAR, transitions
from torch import Tensor

import algorithms
from algorithms.data.bundled.recipe import policies_folder, policy_set
from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.environments.table import hopper
from algorithms.online.rollout import load_policy
from algorithms.sac.agent import Context, RewardScale
from algorithms.sac.networks import SACNetworks
from algorithms.settings import EnsembleSettings
from algorithms.stack.compilation import Call, call_compiled, call_eagerly, can_compile
from algorithms.stack.randomness import seed_generators
from algorithms.training.loop import NETWORK_STREAM, OfflineTraining

ENVIRONMENT = "Hopper-v4"
ALGORITHMS = ("MOPO", "COMBO", "MOBILE")  # not the baselines, which are the same code


def runs(device: str) -> dict[str, Call]:
    """The ways to run the arithmetic that this machine has, the fastest last."""
    return {"eager": call_eagerly, **({"compiled": call_compiled} if can_compile(device) else {})}


def runs_by_dtype(device: str) -> dict[str, dict[str, Call]]:
    """For each `matmul_dtype`: of `bfloat16` the fastest way alone."""
    name, run = list(runs(device).items())[-1]
    return {"float32": runs(device), "bfloat16": {f"{name}, bfloat16": run}}


def offline_training(
    algorithm: str, num_seeds: int, call: Call, device: str, **settings: Any
) -> OfflineTraining:
    """Nets 2 x 256, batch 256, COMBO with 30 samples at the states of the whole batch.

    MOBILE with 50 at those of the model's 244 rows.
    """
    row = algorithms.ALGORITHMS[algorithm.lower()]
    chosen = row.settings(**{"hidden": (256, 256), **settings})
    seeds = range(num_seeds)
    networks = SACNetworks(OBS, ACTION, chosen, seed_generators(NETWORK_STREAM, seeds))
    data = transitions(100_000)
    context = Context(
        networks.to(device),
        chosen,
        RewardScale.of(data.reward, chosen.gamma),
        quiet_ensemble(num_seeds),
        call=call,
    )
    return OfflineTraining(row.agent_class()(context), data, seeds, hopper)


def quiet_ensemble(num_seeds: int) -> DynamicsEnsemble:
    """Seven members of 4 x 200 that predict no change."""
    generators = seed_generators(0, range(num_seeds))
    ensemble = DynamicsEnsemble(OBS, ACTION, EnsembleSettings(), generators)
    with torch.no_grad():
        ensemble.network.weights[-1].zero_()
        ensemble.min_log_var_SD.fill_(QUIET_LOG_VAR[0])
        ensemble.max_log_var_SD.fill_(QUIET_LOG_VAR[1])
    return ensemble


def change(training: OfflineTraining, **settings: Any) -> None:
    """Give the next epochs other settings."""
    training.settings = training.settings.model_copy(update=settings)


def fill_buffer(training: OfflineTraining) -> None:
    """As if the model's rollouts of some epochs were in it."""
    shape = (len(training.seeds), 10_000)  # at once, for the sake of `memory.py`
    rows = transitions(shape[0] * shape[1]).pack().view(*shape, -1).to(training.data_NW.device)
    keep = torch.ones(shape, dtype=torch.bool, device=rows.device)
    while int(training.buffer.size_S.min()) < training.buffer.capacity:
        training.buffer.add(rows, keep)


def draw_in_blocks(training: OfflineTraining) -> None:
    """Let epochs of any number of steps draw random numbers for as many as a whole one does.

    The layout of a draw decides what is compiled: it must not follow the number of steps that
    happen to be timed. The buffer must be filled.
    """
    change(training, gradient_steps_per_epoch=10**9)
    draws = training._draws(training.settings.real_rows)
    next(draws)  # it has read its settings now

    def some(num_real: int) -> Iterator[tuple[Tensor, ...]]:
        return islice(draws, training.settings.gradient_steps_per_epoch)

    training._draws = some


def expert() -> Mapping[str, Tensor]:
    """The bundled actor that walks to the time limit: evaluation at its longest."""
    file = policy_set("hopper").levels["expert"].file
    return load_policy(policies_folder("hopper") / file, ENVIRONMENT).actor.state_dict()
