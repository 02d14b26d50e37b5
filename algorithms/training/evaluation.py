"""What the policies of S seeds are worth: whole episodes in the environment and in the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.dynamics.rollout import model_return
from algorithms.environments.episodes import Evaluator
from algorithms.environments.table import ENVIRONMENTS, Termination, never
from algorithms.stack.distributions import TanhGaussian
from algorithms.stack.mlp import StackedMLP
from algorithms.stack.randomness import seed_generators, stream_seed
from algorithms.stack.threads import one_thread

MODEL_RETURN_STREAM = 0x0FF3

Scores = dict[str, Tensor]  # metric -> one value per seed, `[S]`
Weights = Mapping[str, Tensor]  # of the actors: their `state_dict()`


class PolicyEvaluation:
    """Plays complete episodes with the deterministic policy of every seed.

    It computes on one thread of the CPU, wherever the training is. The weights and the
    epoch alone decide the outcome, also in another process.

    Args:
        actor: of S seeds, on the CPU; it takes the weights that are evaluated.
        env_id: a Gymnasium id, for example `Hopper-v4`.
        seeds: one number per seed; each decides its own random numbers in the model.
        episodes: per seed, in the environment, and as many in the model.
        ensemble: trained dynamics of the same seeds, on the CPU; None where no row is the model's.
        initial_obs: first states of the data's episodes, `[n, O]`; the model's episodes
            begin at the first of them.
        termination: next_obs `[..., O]` -> done `[...]`, of the model's episodes; by default
            the environment's.
    """

    def __init__(
        self,
        actor: StackedMLP,
        env_id: str,
        seeds: Sequence[int],
        episodes: int,
        ensemble: DynamicsEnsemble | None,
        initial_obs: Tensor,
        termination: Termination | None = None,
    ) -> None:
        self._actor, self._ensemble = actor, ensemble
        self._environment, self._seeds = ENVIRONMENTS[env_id], tuple(seeds)
        self._start_obs = initial_obs[:episodes]
        self._termination = termination or self._environment.termination or never
        self._evaluator = Evaluator(env_id, len(self._seeds), episodes)

    def evaluate(self, weights: Weights, epoch: int) -> Scores:
        """Both returns, as far as there is a model, and the normalised score."""
        return_S = self.episode_return(weights, epoch)
        scores = {
            "episode_return": return_S,
            "normalized_score": torch.from_numpy(
                self._environment.normalized_score(return_S.numpy())
            ),
        }
        if self._ensemble is not None:
            scores["model_return"] = self.model_return(weights, epoch)
        return scores

    def episode_return(self, weights: Weights, epoch: int) -> Tensor:
        """Mean undiscounted return in the environment, `[S]`; NaN for actions that are not finite.

        Args:
            weights: of the actors, on any device.
            epoch: of the training: it selects the initial states, for every variant the same.
        """
        self._actor.load_state_dict(weights)
        with one_thread():
            return torch.from_numpy(self._evaluator.returns(self._policy, epoch).mean(axis=1))

    def model_return(self, weights: Weights, epoch: int, length: int | None = None) -> Tensor:
        """Mean undiscounted return in the model, `[S]`, without a penalty.

        Beside the return in the real environment it shows how far the model flatters the policy.

        Args:
            weights, epoch: as for `episode_return`.
            length: of an episode at most, in steps; by default the environment's time limit.
        """
        assert self._ensemble is not None
        self._actor.load_state_dict(weights)
        seeds = [stream_seed(seed, epoch) for seed in self._seeds]
        with one_thread():
            return model_return(
                self._ensemble,
                self._policy,
                self._start_obs,
                seed_generators(MODEL_RETURN_STREAM, seeds),
                length=length or self._environment.max_episode_steps,
                termination_fn=self._termination,
            )

    def _policy(self, obs_SBO: Tensor) -> Tensor:
        return TanhGaussian.from_output(self._actor(obs_SBO)).mode()

    def close(self) -> None:
        """Close the environments."""
        self._evaluator.close()
