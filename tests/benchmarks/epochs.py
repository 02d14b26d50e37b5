"""An epoch of MOPO and of COMBO part by part, S = 1, without RLlib, Tune and MLflow.

Rollouts from 50,000 states for 5 steps, 1000 gradient steps, ten episodes of 1000 steps in
the environment and ten in the model. `rest` is what an epoch does besides: copies in case
it diverges, statistics of the rollouts' ends. A quick run takes a part of an epoch, and
multiplies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from evaluations import evaluation_arguments
from harness import Series, Setup, now
from hopper import ROLLOUT_ROWS
from ours import change, expert, offline_training, runs

from algorithms.environments.table import ENVIRONMENTS
from algorithms.stack.compilation import Call
from algorithms.training.evaluation import PolicyEvaluation

TIME_LIMIT = ENVIRONMENTS["Hopper-v4"].max_episode_steps

ALGORITHMS = ("MOPO", "COMBO")
WHOLE = {
    "rollouts": 5,
    "gradient steps": 1000,
    "model return": TIME_LIMIT,
}
A_PART = {"rollouts": 1, "gradient steps": 100, "model return": 100}

Seconds = dict[str, float]
P = ParamSpec("P")
R = TypeVar("R")


def measure(setup: Setup) -> list[Series]:
    *_, (run_name, run) = runs(setup.device).items()
    steps = A_PART if setup.quick else WHOLE
    epochs = {a: _epoch(a, run, setup.device) for a in ALGORITHMS}
    for epoch in epochs.values():
        epoch(A_PART)  # the warm-up
    rounds = max(1, setup.rounds // 5)  # an epoch is long
    samples = [{a: epoch(steps) for a, epoch in epochs.items()} for _ in range(rounds)]
    note = f"{run_name}, {'from a part of it' if setup.quick else 'measured whole'}"
    series = []
    for algorithm in ALGORITHMS:
        parts = [sample[algorithm] for sample in samples]
        totals = [sum(seconds.values()) for seconds in parts]
        series.append(Series(f"{algorithm} epoch", "s", totals, note=note))
        series += [
            Series(f"{algorithm}: {part}", "s", [seconds[part] for seconds in parts])
            for part in parts[0]
        ]
    return [*series, *_ratios(samples)]


def _ratios(samples: list[dict[str, Seconds]]) -> list[Series]:
    without = ("evaluation", "model return")
    whole = [sum(s["COMBO"].values()) / sum(s["MOPO"].values()) for s in samples]
    training = [
        sum(seconds for part, seconds in s["COMBO"].items() if part not in without)
        / sum(seconds for part, seconds in s["MOPO"].items() if part not in without)
        for s in samples
    ]
    return [
        Series("COMBO / MOPO", "times", whole),
        Series("COMBO / MOPO without evaluation", "times", training),
    ]


def _epoch(algorithm: str, run: Call, device: str) -> Callable[[dict[str, int]], Seconds]:
    """Trains and evaluates; returns the seconds of each part, brought up to `WHOLE` steps of it."""
    training = offline_training(algorithm, 1, run, device, rollout_batch_size=ROLLOUT_ROWS)
    evaluation, walker = PolicyEvaluation(**evaluation_arguments(training)), expert()
    seconds: Counter[str] = Counter()

    def timed(part: str, function: Callable[P, R]) -> Callable[P, R]:
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            begin = now(device)
            result = function(*args, **kwargs)
            seconds[part] += now(device) - begin
            return result

        return call

    training._extend_buffer = timed("rollouts", training._extend_buffer)
    training._gradient_steps = timed("gradient steps", training._gradient_steps)
    train_epoch = timed("train_epoch", training.train_epoch)
    episode_return = timed("evaluation", evaluation.episode_return)
    model_return = timed("model return", evaluation.model_return)

    def epoch(steps: dict[str, int]) -> Seconds:
        seconds.clear()
        change(
            training,
            rollout_length=steps["rollouts"],
            gradient_steps_per_epoch=steps["gradient steps"],
        )
        train_epoch()
        episode_return(walker, epoch=0)
        model_return(walker, epoch=0, length=steps["model return"])
        rest = seconds["train_epoch"] - seconds["rollouts"] - seconds["gradient steps"]
        return {
            "rollouts": seconds["rollouts"] * WHOLE["rollouts"] / steps["rollouts"],
            "gradient steps": seconds["gradient steps"]
            * (WHOLE["gradient steps"] / steps["gradient steps"]),
            "rest": rest,
            "evaluation": seconds["evaluation"],
            "model return": seconds["model return"]
            * (WHOLE["model return"] / steps["model return"]),
        }

    return epoch
