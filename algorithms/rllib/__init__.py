"""The glue between `OfflineTraining` and RLlib: the only user of RLlib's internals.

RLlib, Tune and MLflow see one result per epoch.
"""

from algorithms.rllib.algorithm import OfflineAlgorithm
from algorithms.rllib.config import OfflineConfig
from algorithms.rllib.learner import OfflineLearner
from algorithms.rllib.module import StackedSACModule

__all__ = ["OfflineAlgorithm", "OfflineConfig", "OfflineLearner", "StackedSACModule"]
