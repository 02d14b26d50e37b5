"""COMBO: Conservative Offline Model-Based Policy Optimization (Yu et al. 2021, arXiv 2102.08363).

Algorithm 1 of the paper, and where each line of it lives:

    train an ensemble of N probabilistic dynamics     dynamics/training.py (once, shared)
    for epoch 1, 2, ...
        sample states from the data set               offline.OfflineTraining._extend_buffer
        for h steps: a ~ pi, model ~ elites           dynamics/rollout.py
            add (s, a, r, s') to the model buffer     transitions.RingBuffer
        conservative critics (eq. 2) and pi on        conservative_sac.ConservativeSAC
            50 % real, 50 % model
"""

from __future__ import annotations

from ray.rllib.algorithms.algorithm import Algorithm

from algorithms.conservative_sac import ConservativeSAC
from algorithms.rllib import OfflineAlgorithm, OfflineConfig
from algorithms.settings import COMBOSettings


class COMBOConfig(OfflineConfig):
    """`COMBOConfig().environment("Hopper-v4").offline(dataset=...).training(beta=...)`."""

    settings_class = COMBOSettings
    agent_class = ConservativeSAC

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or COMBO)


class COMBO(OfflineAlgorithm):
    """Soft actor-critic on model rollouts, with critics that are kept conservative."""

    @classmethod
    def get_default_config(cls) -> COMBOConfig:
        return COMBOConfig()
