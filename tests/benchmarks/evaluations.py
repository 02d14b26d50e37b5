"""Evaluation of one policy in ten episodes of 1000 steps, S = 1."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from harness import Program, Series, Setup, measure_rates
from hopper import transitions
from ours import ENVIRONMENT, expert, offline_training, runs

from algorithms.environments.table import ENVIRONMENTS
from algorithms.training.evaluation import PolicyEvaluation
from algorithms.training.loop import OfflineTraining

TIME_LIMIT = ENVIRONMENTS["Hopper-v4"].max_episode_steps

EPISODES = 10


def evaluation_arguments(training: OfflineTraining) -> dict[str, Any]:
    """As a trial evaluates, but in the model from states that none of its episodes leaves."""
    return {
        "actor": deepcopy(training.networks.actor).cpu(),
        "env_id": ENVIRONMENT,
        "seeds": training.seeds,
        "episodes": EPISODES,
        "ensemble": deepcopy(training.ensemble).cpu(),
        "initial_obs": transitions(EPISODES).obs,
    }


def measure(setup: Setup) -> list[Series]:
    *_, run = runs(setup.device).values()
    training = offline_training(
        "MOPO", 1, run, setup.device, rollout_batch_size=1000, rollout_length=1
    )
    evaluation = PolicyEvaluation(**evaluation_arguments(training))
    walker = expert()

    def evaluate(times: int) -> None:
        for _ in range(times):
            evaluation.episode_return(walker, epoch=0)

    def return_in_model(hundreds: int) -> None:
        evaluation.model_return(walker, epoch=0, length=100 * hundreds)

    evaluate(1)
    # Of the last episode in each environment; the same ones begin every evaluation.
    environments = evaluation._evaluator._envs[0]
    steps = sum(env.get_wrapper_attr("_elapsed_steps") for env in environments)
    programs = [
        Program("environment", evaluate, amount=steps),
        Program("model return", return_in_model, amount=100 * EPISODES),
    ]
    rates = measure_rates(programs, "steps/s", setup)
    evaluation.close()
    longest = EPISODES * TIME_LIMIT
    return rates + [
        Series(
            f"{series.name}, {EPISODES} x {ENVIRONMENTS['Hopper-v4'].max_episode_steps}",
            "s",
            [longest / rate for rate in series.samples],
        )
        for series in rates
    ]
