"""Evaluation of one policy in ten episodes of 1000 steps, S = 1."""

from __future__ import annotations

from harness import Program, Series, Setup, measure_rates
from hopper import transitions
from ours import ENVIRONMENT, expert_policy, offline_training, runs

from algorithms.environments import MAX_EPISODE_STEPS
from algorithms.evaluation import Evaluator

EPISODES = 10


def measure(setup: Setup) -> list[Series]:
    with Evaluator(ENVIRONMENT, 1, EPISODES) as evaluator:
        policy = expert_policy(setup.device)

        def evaluate(times: int) -> None:
            for _ in range(times):
                evaluator.returns(policy, evaluation=0, device=setup.device)

        evaluate(1)
        # Of the last episode in each environment; the same ones begin every evaluation.
        steps = sum(env.get_wrapper_attr("_elapsed_steps") for env in evaluator._envs[0])
        *_, run = runs(setup.device).values()
        training = offline_training(
            "MOPO", 1, run, setup.device, rollout_batch_size=1000, rollout_length=1
        )
        start_obs = transitions(EPISODES).obs

        def return_in_model(hundreds: int) -> None:
            training.model_return(start_obs, 100 * hundreds)

        programs = [
            Program("environment", evaluate, amount=steps),
            Program("model return", return_in_model, amount=100 * EPISODES),
        ]
        rates = measure_rates(programs, "steps/s", setup)
    longest = EPISODES * MAX_EPISODE_STEPS
    return rates + [
        Series(
            f"{series.name}, {EPISODES} x {MAX_EPISODE_STEPS}",
            "s",
            [longest / rate for rate in series.samples],
        )
        for series in rates
    ]
