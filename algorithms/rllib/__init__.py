"""The glue between `OfflineTraining` and RLlib: the only user of RLlib's internals.

RLlib, Tune and MLflow see one result per epoch. Each row of `ALGORITHMS` has an `Algorithm` and a
config class here, called after it: `MOPO` and `MOPOConfig`, `CQL` and `CQLConfig`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from algorithms import ALGORITHMS
from algorithms.rllib.algorithm import OfflineAlgorithm
from algorithms.rllib.config import OfflineConfig
from algorithms.rllib.learner import OfflineLearner
from algorithms.rllib.module import StackedSACModule

__all__ = [
    "OfflineAlgorithm",
    "OfflineConfig",
    "OfflineLearner",
    "StackedSACModule",
    "algorithm_class",
    "config_class",
]

CONFIG = "Config"


@cache
def algorithm_class(name: str) -> type[OfflineAlgorithm]:
    """The RLlib Algorithm of a row of `ALGORITHMS`, which may be a plugin's."""
    attributes = {
        "__module__": _module_of(name),
        "__doc__": f"`ALGORITHMS[{name!r}]` as an RLlib Algorithm.",
        "algorithm": name,
    }
    return type(name.upper(), (OfflineAlgorithm,), attributes)


@cache
def config_class(name: str) -> type[OfflineConfig]:
    """Its config: `config_class("mine")().offline(plugins=["my_ideas.py"], ...)`."""

    def init(self: OfflineConfig, algo_class: Any = None) -> None:
        OfflineConfig.__init__(self, algo_class=algo_class or algorithm_class(name))

    attributes = {
        "__module__": _module_of(name),
        "__doc__": f"The config of `ALGORITHMS[{name!r}]`.",
        "__init__": init,
        "algorithm": name,
    }
    return type(f"{name.upper()}{CONFIG}", (OfflineConfig,), attributes)


def _module_of(name: str) -> str:
    """Where pickles look for a row's classes: a plugin's are nowhere, and travel by value."""
    return __name__ if name in ALGORITHMS.built_in else f"{__name__}.{name}"


def __getattr__(attribute: str) -> Any:
    """`MOPO`, `MOPOConfig` and their sisters; pickles of them look here, too."""
    name = attribute.removesuffix(CONFIG).lower()
    if name in ALGORITHMS.built_in and attribute.removesuffix(CONFIG).isupper():
        return config_class(name) if attribute.endswith(CONFIG) else algorithm_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")


def __dir__() -> list[str]:
    return [*__all__, *(f"{n.upper()}{end}" for n in ALGORITHMS.built_in for end in ("", CONFIG))]
