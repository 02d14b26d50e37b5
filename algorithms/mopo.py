"""MOPO: Model-based Offline Policy Optimization (Yu et al. 2020, arXiv 2005.13239).

Algorithm 2 of the paper, and where each line of it lives:

    train an ensemble of N probabilistic dynamics     dynamics/training.py (once, shared)
    for epoch 1, 2, ...
        sample states from the data set               offline.OfflineTraining._extend_buffer
        for h steps: a ~ pi, model ~ elites           dynamics/rollout.py
            r~ = r - lambda u(s, a)                   penalties.PENALTIES[penalty]
            add (s, a, r~, s') to the model buffer    transitions.RingBuffer
        update pi with SAC on 5 % real, 95 % model    sac.SAC
"""

from __future__ import annotations

from ray.rllib.algorithms.algorithm import Algorithm

from algorithms.rllib import OfflineAlgorithm, OfflineConfig
from algorithms.sac import SAC
from algorithms.settings import MOPOSettings


class MOPOConfig(OfflineConfig):
    """`MOPOConfig().environment("Hopper-v4").offline(dataset=...).training(penalty=...)`."""

    settings_class = MOPOSettings
    agent_class = SAC

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or MOPO)


class MOPO(OfflineAlgorithm):
    """Soft actor-critic on model rollouts whose rewards are penalised by model uncertainty."""

    @classmethod
    def get_default_config(cls) -> MOPOConfig:
        return MOPOConfig()
