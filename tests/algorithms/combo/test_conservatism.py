"""COMBO's conservative value of a state, against integrals that are known."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from algorithms.combo.conservatism import (
    IMPORTANCE,
    PRIORS,
    Policies,
    balanced,
    own_density,
    soft_maximum,
)
from algorithms.stack.distributions import TanhGaussian
from algorithms.stack.randomness import randn

TEMPERATURES = [0.3, 1.0, 5.0]
SAMPLES = 20_000  # of each proposal, where an integral is estimated
BROAD, NARROW = ((0.3, 1.0), (-0.5, 0.8)), ((1.5, 0.01), (-0.2, 0.02))


def gaussian(mean, std, states, action_dim):
    ones = torch.ones(1, states, 1, action_dim)
    return TanhGaussian(mean * ones, math.log(std) * ones)


def draw(prior, importance, policies, samples, states=4, action_dim=2, previous=(0.4, 0.6)):
    """Weighted actions at `states` states, with policies (mean, std) at s, at s' and before."""
    every = (*policies, previous)
    generator = torch.Generator().manual_seed(0)
    noise = randn([generator], states, PRIORS[prior].num_proposals, samples, action_dim)
    return PRIORS[prior].draw(
        Policies(*(gaussian(*p, states, action_dim) for p in every)), noise, IMPORTANCE[importance]
    )


def value(actions, q, temperature):
    """Of every state, `[B]`; q maps actions `[..., A]` to `[...]`."""
    return soft_maximum(
        q(actions.action_SBNA), actions.log_weight_SBN, actions.log_total_SB, temperature
    )[0]


def constant(c):
    return lambda action: torch.full_like(action[..., 0], c)


# --- a constant Q


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("policies", [BROAD, NARROW, ((9.0, 0.007), (-9.0, 7.0))])
@pytest.mark.parametrize("c", [0.0, 3.5, -300.0])
def test_a_constant_q_is_its_own_value_when_balanced(policies, c, temperature):
    actions = draw("uniform", "balanced", policies, samples=10)
    torch.testing.assert_close(
        value(actions, constant(c), temperature), torch.full((4,), c), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_a_constant_q_is_its_own_value_when_the_prior_is_the_only_proposal(importance):
    log_prior = -2 * math.log(2)
    log_weight, log_total = IMPORTANCE[importance](torch.full((1, 4, 10, 1), log_prior), log_prior)
    q = torch.full((1, 4, 10), 3.5)
    result = soft_maximum(q, log_weight, log_total, 0.3)
    torch.testing.assert_close(result, torch.full((1, 4), 3.5))


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_a_constant_q_is_its_own_value_under_the_previous_policy(importance):
    actions = draw("previous_policy", importance, NARROW, samples=10)
    torch.testing.assert_close(value(actions, constant(3.5), 0.3), torch.full((4,), 3.5))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_own_density_falls_short_by_the_temperature_times_log_3_at_most(temperature):
    """And by just that with narrow policies, whose actions count for nothing."""
    shortfall = temperature * math.log(3)
    for policies in (BROAD, NARROW):
        actions = draw("uniform", "own_density", policies, samples=10)
        assert (value(actions, constant(2.0), temperature) >= 2.0 - shortfall - 1e-5).all()
    narrow = value(actions, constant(2.0), temperature)
    torch.testing.assert_close(
        narrow, torch.full((4,), 2.0 - shortfall), rtol=0, atol=0.1 * temperature
    )


def test_own_density_is_unbiased_inside_the_logarithm():
    actions = draw("uniform", "own_density", BROAD, samples=50_000, action_dim=1)
    weight = actions.log_weight_SBN.exp().unflatten(-1, (3, -1)).mean(dim=-1)
    torch.testing.assert_close(weight, torch.ones(1, 4, 3), rtol=0, atol=0.05)


# --- Q(a) = -k sum (a - c)^2


def assert_estimates(actions, q, temperature, exact):
    """The value is `exact` within 5 standard errors, which must be small enough to mean it."""
    log_terms = q(actions.action_SBNA) / temperature + actions.log_weight_SBN
    terms = (log_terms - log_terms.amax(dim=-1, keepdim=True))[0].double().exp()
    # The delta method: d log x is dx / x.
    relative_error = terms.std(dim=-1) / terms.mean(dim=-1) / math.sqrt(terms.shape[-1])
    assert relative_error.max() < 0.06
    error = value(actions, q, temperature) - exact
    assert (error.abs() < 5 * temperature * relative_error + 1e-5).all()
    mean_error = 5 * temperature * relative_error.square().mean().sqrt() / math.sqrt(len(error))
    assert error.mean().abs() < mean_error + 1e-5


def quadratic(k, c):
    return lambda action: -k * (action - c).square().sum(dim=-1)


def uniform_integral(k, c, t):
    """T log of 1/2 the integral of exp(-k (a - c)^2 / T) over [-1, 1]."""
    root = math.sqrt(k / t)
    area = special.erf(root * (1 - c)) + special.erf(root * (1 + c))
    return t * math.log(0.5 * 0.5 * math.sqrt(math.pi) / root * area)


def policy_integral(k, c, t, mean, std):
    """T log of the mean of exp(-k (tanh(u) - c)^2 / T) over u ~ N(mean, std^2)."""

    def integrand(u):
        return stats.norm.pdf(u, mean, std) * math.exp(-k * (math.tanh(u) - c) ** 2 / t)

    area, _ = integrate.quad(integrand, mean - 10 * std, mean + 10 * std, limit=200)
    return t * math.log(area)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("k", "c"), [(1.0, 0.0), (4.0, 0.6), (2.0, -0.8)])
@pytest.mark.parametrize("action_dim", [1, 2])
@pytest.mark.parametrize("importance", IMPORTANCE)
def test_a_quadratic_under_the_uniform_prior(importance, action_dim, k, c, temperature):
    # Own densities of narrow policies have weights without a variance, which no number
    # of samples averages out; balanced weights are 3 at most.
    policies = NARROW if importance == "balanced" else BROAD
    actions = draw("uniform", importance, policies, samples=SAMPLES, action_dim=action_dim)
    exact = action_dim * uniform_integral(k, c, temperature)  # the dimensions are independent
    assert_estimates(actions, quadratic(k, c), temperature, exact)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("k", "c"), [(1.0, 0.0), (4.0, 0.6), (2.0, -0.8)])
@pytest.mark.parametrize("previous", [(0.4, 0.6), (-0.2, 0.3)])
def test_a_quadratic_under_the_previous_policy(previous, k, c, temperature):
    # The other policies must not matter.
    actions = draw("previous_policy", "own_density", NARROW, 3 * SAMPLES, previous=previous)
    exact = 2 * policy_integral(k, c, temperature, *previous)
    assert_estimates(actions, quadratic(k, c), temperature, exact)


# --- properties of every prior and every estimator

EVERY = [(prior, importance) for prior in PRIORS for importance in IMPORTANCE]


def wave(action):
    return torch.sin(5 * action).sum(dim=-1)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("prior", "importance"), EVERY)
def test_a_constant_added_to_q_is_added_to_the_value(prior, importance, temperature):
    actions = draw(prior, importance, BROAD, samples=10)
    plain = value(actions, wave, temperature)
    for c in (-50.0, 0.1, 7.0):
        shifted = value(actions, lambda action, c=c: wave(action) + c, temperature)
        torch.testing.assert_close(shifted, plain + c, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("prior", "importance"), EVERY)
def test_the_value_is_the_largest_q_when_cold_and_never_falls_as_it_cools(prior, importance):
    actions = draw(prior, importance, BROAD, samples=10)
    q = wave(actions.action_SBNA)[0]
    cold = value(actions, wave, 1e-4)
    torch.testing.assert_close(cold, q.amax(dim=-1), rtol=0, atol=1e-2)
    # Where the weights add up to 1, hot is the mean under the prior, and hotter is lower.
    total = actions.log_weight_SBN.logsumexp(dim=-1)
    if not torch.allclose(total, actions.log_total_SB, atol=1e-5):
        assert importance == "own_density"
        return
    hot = value(actions, wave, 1e4)
    weights = actions.log_weight_SBN.softmax(dim=-1)[0]
    torch.testing.assert_close(hot, (weights * q).sum(dim=-1), rtol=0, atol=2e-2)
    values = torch.stack([value(actions, wave, t) for t in (0.1, 0.3, 1.0, 3.0, 10.0)])
    assert (values.diff(dim=0) < 0).all()


@pytest.mark.parametrize(("prior", "importance"), EVERY)
def test_every_sampled_action_is_pushed_down_in_proportion_to_its_weight(prior, importance):
    actions = draw(prior, importance, BROAD, samples=10)
    q = wave(actions.action_SBNA).requires_grad_()
    soft_maximum(q, actions.log_weight_SBN, actions.log_total_SB, 0.7).sum().backward()
    assert (q.grad > 0).all()
    expected = (q.detach() / 0.7 + actions.log_weight_SBN).softmax(dim=-1)
    torch.testing.assert_close(q.grad, expected)


# --- where actions come from, and what they weigh


def test_the_uniform_priors_actions_are_of_three_proposals_in_order():
    actions = draw("uniform", "own_density", NARROW, samples=20_000).action_SBNA
    assert (actions.abs() <= 1).all()
    uniform, current, following = actions.unflatten(2, (3, -1)).unbind(dim=2)
    assert stats.kstest(uniform.flatten().numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.01
    for part, (mean, std) in zip((current, following), NARROW, strict=True):
        u = part.double().atanh()
        assert float(u.mean()) == pytest.approx(mean, abs=std / 10)
        assert float(u.std()) == pytest.approx(std, rel=0.05)


def test_the_previous_policys_actions_are_its_own():
    actions = draw("previous_policy", "balanced", NARROW, samples=20_000).action_SBNA
    assert stats.kstest(actions.atanh().flatten().numpy(), stats.norm(0.4, 0.6).cdf).pvalue > 0.01


def test_weights_are_those_of_a_plain_loop():
    log_density = torch.randn(2, 3, 6, 3, generator=torch.Generator().manual_seed(0))
    log_prior = -1.3
    own, own_total = own_density(log_density, log_prior)
    mixed, mixed_total = balanced(log_density, log_prior)
    for s, b in np.ndindex(2, 3):
        density = log_density[s, b].exp()
        # Two actions of each of three proposals.
        expected = [math.exp(log_prior) / float(density[n, n // 2]) for n in range(6)]
        torch.testing.assert_close(own[s, b].exp(), torch.tensor(expected))
        assert float(own_total[s, b]) == pytest.approx(math.log(6))
        expected = [math.exp(log_prior) / float(density[n].mean()) for n in range(6)]
        torch.testing.assert_close(mixed[s, b].exp(), torch.tensor(expected))
        assert float(mixed_total[s, b]) == pytest.approx(math.log(sum(expected)), abs=1e-5)
