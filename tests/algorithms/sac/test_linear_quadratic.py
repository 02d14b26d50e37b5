"""MOPO, MOBILE and COMBO from mixed data to the optimum of a linear-quadratic-Gaussian problem.

A damped point mass is to be held at the origin: s' = A s + B a + noise, r = -(s Q s + R a^2).
Riccati's equation gives the optimal policy a = -K s and its return; start states are so
close to the origin that its actions stay within [-1, 1].
"""

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_are

from algorithms.combo.agent import COMBO
from algorithms.combo.settings import COMBOSettings
from algorithms.dynamics.training import EnsembleTraining
from algorithms.environments.table import never
from algorithms.mobile.agent import MOBILE
from algorithms.mobile.settings import MOBILESettings
from algorithms.mopo.agent import MOPO
from algorithms.mopo.settings import MOPOSettings
from algorithms.sac.agent import Context, RewardScale
from algorithms.sac.networks import SACNetworks
from algorithms.settings import EnsembleSettings
from algorithms.stack.randomness import seed_generators
from algorithms.stack.transitions import Transition
from algorithms.training.loop import NETWORK_STREAM, OfflineTraining

A, B = np.array([[0.95, 0.3], [0.0, 0.8]]), np.array([[0.0], [0.5]])  # position, velocity
Q, R, NOISE = np.diag([1.0, 0.1]), np.array([[0.3]]), 0.05
GAMMA, START, SEEDS = 0.9, 0.5, (0, 1)

P = solve_discrete_are(np.sqrt(GAMMA) * A, np.sqrt(GAMMA) * B, Q, R)
K = np.linalg.solve(R + GAMMA * B.T @ P @ B, GAMMA * B.T @ P @ A)
# E s P s over uniform starts, and what the noise of every later step costs.
OPTIMUM = -(START**2 / 3 + GAMMA / (1 - GAMMA) * NOISE**2) * np.trace(P)


def step(state, action, rng):
    reward = -((state @ Q) * state).sum(axis=1) - R[0, 0] * action[:, 0] ** 2
    noise = NOISE * rng.normal(size=state.shape)
    return reward, state @ A.T + action @ B.T + noise


def discounted_return(policy, episodes=4000, length=80):
    """Of a policy `[n, 2] -> [n, 1]`, in the true system; gamma^80 is 2e-4."""
    rng = np.random.default_rng(0)
    state, total = rng.uniform(-START, START, (episodes, 2)), 0.0
    for t in range(length):
        reward, state = step(state, np.clip(policy(state), -1, 1), rng)
        total += GAMMA**t * reward.mean()
    return total


def behaviour(gain, exploration, rng):
    """From a policy that destabilises to one that does a third of what it should."""
    return lambda s: -gain * s @ K.T + exploration * rng.normal(size=(len(s), 1))


BEHAVIOURS = [(-0.1, 0.3), (0.0, 0.4), (0.2, 0.3), (0.35, 0.3)]  # gain, exploration


def mixed_data(episodes=150, length=12):
    rng = np.random.default_rng(1)
    rows = []
    for gain, exploration in BEHAVIOURS:
        policy = behaviour(gain, exploration, rng)
        state = rng.uniform(-0.7, 0.7, (episodes, 2))
        for _ in range(length):
            action = np.clip(policy(state), -1, 1)
            reward, next_state = step(state, action, rng)
            rows.append((state, action, reward, next_state, np.zeros(episodes)))
            state = next_state
    columns = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Transition(*(torch.from_numpy(column).float() for column in columns))


SMALL = {
    "gamma": GAMMA,
    "tau": 0.01,
    "hidden": (32, 32),
    "batch_size": 32,
    "actor_lr": 1e-3,
    "critic_lr": 1e-3,
    "alpha_lr": 1e-3,
    "actor_lr_schedule": "cosine",
    "epochs": 6,
    "rollout_batch_size": 1000,
    "rollout_length": 3,
    "gradient_steps_per_epoch": 500,
    "num_ensemble": 3,
    "num_elites": 2,
    "dynamics_hidden": (32, 32),
    "dynamics_weight_decay": (1e-5, 1e-5, 1e-5),
    "dynamics_lr": 3e-3,
    "dynamics_max_epochs": 15,
}
ALGORITHMS = {
    "mopo": (MOPO, MOPOSettings(**SMALL, penalty_coef=0.2)),
    # Returns are negative here, so targets may be.
    "mobile": (
        MOBILE,
        MOBILESettings(**SMALL, penalty_coef=0.5, num_next_samples=4, clamp_target=False),
    ),
    "combo": (COMBO, COMBOSettings(**SMALL, beta=0.03, num_action_samples=4)),
}


@pytest.fixture(scope="module")
def data():
    return mixed_data()


@pytest.fixture(scope="module")
def ensemble(data):
    settings = ALGORITHMS["mopo"][1].part(EnsembleSettings)
    training = EnsembleTraining(data, settings, SEEDS)
    while not training.finished:
        training.train_epoch()
    return training.result()[0]


def test_the_optimum_is_what_its_policy_gets_and_data_is_far_below():
    assert discounted_return(lambda s: -s @ K.T) == pytest.approx(OPTIMUM, rel=0.03)
    corner = np.array([[START, START]])
    assert abs(corner @ K.T) < 0.95  # no action of the optimal policy is cut off
    rng = np.random.default_rng(2)
    for gain, exploration in BEHAVIOURS:
        assert discounted_return(behaviour(gain, exploration, rng)) < 2 * OPTIMUM
        # Nor is there a good policy under the noise, which imitation would find.
        assert discounted_return(behaviour(gain, 0.0, rng)) < 1.15 * OPTIMUM


@pytest.mark.slow
@pytest.mark.timeout(900)  # 40 seconds alone on a core, but cores are shared
@pytest.mark.parametrize(
    ("algorithm", "matmul_dtype"),
    [
        ("mopo", "float32"),
        ("mobile", "float32"),
        ("combo", "float32"),
        ("mopo", "bfloat16"),
    ],
)
def test_from_mixed_data_to_within_10_percent_of_the_optimum(
    data, ensemble, algorithm, matmul_dtype
):
    agent_class, settings = ALGORITHMS[algorithm]
    settings = settings.model_copy(update={"matmul_dtype": matmul_dtype})
    networks = SACNetworks(2, 1, settings, seed_generators(NETWORK_STREAM, SEEDS))
    context = Context(networks, settings, RewardScale.of(data.reward, GAMMA), ensemble)
    training = OfflineTraining(agent_class(context), data, SEEDS, termination_fn=never)
    for _ in range(settings.epochs):
        training.train_epoch()
    assert not training.diverged_S.any()

    for s in range(len(SEEDS)):

        def policy(state, s=s):
            obs = torch.from_numpy(state).float().expand(len(SEEDS), -1, -1)
            with torch.no_grad():
                return networks.policy(obs).mode()[s].numpy()

        assert discounted_return(policy) > 1.1 * OPTIMUM
