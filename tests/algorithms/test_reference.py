"""Whole steps against an implementation in NumPy, whose gradients finite differences check."""

import numpy as np
import pytest
import reference
import torch
from reference import Batch, Descent, learner_of
from small_tasks import (
    COMBO_VARIANTS,
    MOBILE_VARIANTS,
    descend_plainly,
    random_batch,
    small_agent,
    small_ensemble,
    small_settings,
    step_noise,
)

CASES = {
    "mopo": ("mopo", {}),
    **{f"mobile_{k}": ("mobile", v) for k, v in MOBILE_VARIANTS.items()},
    **{k: ("combo", v) for k, v in COMBO_VARIANTS.items()},
}
LRS = {"actor_lr": 0.01, "critic_lr": 0.02, "alpha_lr": 0.03}


@pytest.fixture(params=CASES)
def make_agent(request, float64):
    """An agent of one variant in double precision, its lrs large enough to be seen."""
    algorithm, variant = CASES[request.param]

    def make(**changes):
        settings = small_settings(algorithm, **variant, **LRS, **changes)
        return small_agent(algorithm, settings, ensemble=small_ensemble(settings))

    return make


def learners(agent, **options):
    return [learner_of(agent, s, **options) for s in (0, 1)]


def inputs(agent, seed=0):
    """A step's batch and noise for the agent, and for each seed of the reference."""
    batch = random_batch(rows=agent.settings.batch_size, seed=seed)
    noise = step_noise(agent, seed)
    each = [(Batch.of_seed(batch, s), [x[s].numpy() for x in noise]) for s in (0, 1)]
    return (batch, noise), each


def by_differences(loss, parameters, h=1e-6):
    """The gradient of a loss by central differences."""
    gradient = [np.zeros_like(p) for p in parameters]
    for p, g in zip(parameters, gradient, strict=True):
        for index in np.ndindex(p.shape):
            value = p[index]
            p[index] = value + h
            above = loss()
            p[index] = value - h
            g[index] = (above - loss()) / (2 * h)
            p[index] = value
    return gradient


def assert_close(ours, expected, tolerance=1e-9):
    torch.testing.assert_close(
        ours.detach(), torch.as_tensor(expected), rtol=tolerance, atol=tolerance
    )


def assert_networks_equal(agent, learner, s):
    networks = agent.networks
    pairs = [(reference.layers_of(networks.actor, s), learner.actor)]
    for c in range(agent.settings.num_critics):
        pairs.append((reference.layers_of(networks.critic, s, c), learner.critics[c]))
        pairs.append((reference.layers_of(networks.target_critic, s, c), learner.targets[c]))
    for ours, expected in pairs:
        for one, other in zip(reference.flat(ours), reference.flat(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)
    assert_close(networks.log_alpha_S[s], learner.log_alpha[0])


def test_the_references_gradients_are_those_of_its_losses(make_agent):
    agent = make_agent(hidden=(4, 3), batch_size=8)
    _, each = inputs(agent)
    for learner, (batch, noise) in zip(learners(agent), each, strict=True):
        target = learner.td_target(batch, noise)
        samples = learner.samples(batch, noise[2]) if learner.combo else None
        for critic in learner.critics:
            expected = by_differences(
                lambda c=critic: learner.critic_loss(c, batch, target, samples),  # noqa: B023
                reference.flat(critic),
            )
            gradient = learner.critic_gradient(critic, batch, target, samples)
            for one, other in zip(reference.flat(gradient), expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)
        expected = by_differences(
            lambda: learner.actor_loss(batch, noise[1]),  # noqa: B023
            reference.flat(learner.actor),
        )
        gradient = reference.flat(learner.actor_gradient(batch, noise[1]))
        for one, other in zip(gradient, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


def test_a_step_of_plain_descent_is_the_references(make_agent):
    """Adam's first step shows a gradient's sign alone; plain descent shows all of it."""
    agent = make_agent()
    descend_plainly(agent)
    (batch, noise), each = inputs(agent)
    expected = learners(agent, optimizer=Descent)
    before = [p.detach().clone() for p in agent.networks.critic.parameters()]
    agent.gradient_step(batch, noise)
    for s in (0, 1):
        expected[s].step(*each[s])
        assert_networks_equal(agent, expected[s], s)
    for parameter, old in zip(agent.networks.critic.parameters(), before, strict=True):
        assert (parameter - old).abs().max() > 1e-4  # far above the tolerance


def test_steps_and_their_statistics_are_the_references(make_agent):
    agent = make_agent()
    expected = learners(agent)
    for n in range(4):
        if n % 2 == 0:
            agent.begin_epoch(agent.settings.actor_lr)
        (batch, noise), each = inputs(agent, seed=10 * n)
        statistics = agent.gradient_step(batch, noise).means
        agent.steps += 1
        for s in (0, 1):
            if n % 2 == 0:
                expected[s].begin_epoch()
            seen = expected[s].step(*each[s])
            assert seen.keys() == statistics.keys()
            for name, value in seen.items():
                assert_close(statistics[name][s], value, tolerance=1e-7)
            assert_networks_equal(agent, expected[s], s)
