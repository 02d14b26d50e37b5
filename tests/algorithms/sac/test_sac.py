"""SAC: densities and losses in closed form, and whole steps against a plain implementation."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from algorithms.sac.agent import SACOptimizers, StepNoise, gradient_step
from algorithms.sac.losses import actor_loss, alpha_gradient, critic_loss, td_target
from algorithms.sac.networks import SACNetworks
from algorithms.settings import SACSettings
from algorithms.stack.distributions import LOG_STD_BOUNDS, TanhGaussian
from algorithms.stack.transitions import Transition

OBS, ACTION, BATCH = 4, 2, 16


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_batch(seeds=1, seed=0):
    return Transition(
        obs=randn(seeds, BATCH, OBS, seed=seed),
        action=randn(seeds, BATCH, ACTION, seed=seed + 1).tanh(),
        reward=randn(seeds, BATCH, seed=seed + 2),
        next_obs=randn(seeds, BATCH, OBS, seed=seed + 3),
        terminal=(randn(seeds, BATCH, seed=seed + 4) > 1).double(),
    )


def random_noise(seeds=1, seed=0):
    return StepNoise(*randn(2, seeds, BATCH, ACTION, seed=100 + seed))


def make_networks(settings, seeds=(0,)):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    networks = SACNetworks(OBS, ACTION, settings, generators).double()
    return networks, SACOptimizers.create(networks, settings)


# --- the policy's distribution


def test_log_density_is_that_of_torch_distributions():
    mean, log_std, noise = randn(3, 50, ACTION)
    action, log_prob = TanhGaussian(mean, log_std).sample(noise)
    reference = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1))
    torch.testing.assert_close(action, torch.tanh(mean + log_std.exp() * noise))
    torch.testing.assert_close(
        log_prob, reference.log_prob(action).sum(dim=-1), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.4), (-1.0, 0.2)])
def test_density_integrates_to_1_over_actions(mean, std):
    action = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[1:-1]
    noise = (torch.atanh(action) - mean) / std
    shape = torch.full_like(action, 1.0)[:, None]
    policy = TanhGaussian(mean * shape, math.log(std) * shape)
    _, log_prob = policy.sample(noise[:, None])
    assert float(torch.trapezoid(log_prob.exp(), action)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("u", [-1e4, -100.0, -20.0, 20.0, 100.0, 1e4])
def test_log_density_and_its_gradient_are_finite_in_float32_where_tanh_saturates(u):
    mean = torch.full((1, 1), u, requires_grad=True)
    action, log_prob = TanhGaussian(mean, torch.zeros(1, 1)).sample(torch.zeros(1, 1))
    log_prob.sum().backward()
    assert action.abs() == 1
    # log(1 - tanh(u)^2) -> log 4 - 2 |u|
    expected = -0.5 * math.log(2 * math.pi) - (math.log(4) - 2 * abs(u))
    assert float(log_prob.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(mean.grad) == pytest.approx(2 * math.copysign(1, u))


def test_actor_output_is_mean_then_clamped_log_std_and_the_mode_is_tanh_of_the_mean():
    output = torch.tensor([[0.3, -2.0, -9.0, 7.0]])
    policy = TanhGaussian.from_output(output)
    assert policy.mean.tolist() == output[:, :2].tolist()
    assert policy.log_std.tolist() == [list(LOG_STD_BOUNDS)]
    torch.testing.assert_close(policy.mode(), torch.tanh(output[:, :2]))


# --- losses, [S, C, B] = [2, 3, 16], in NumPy


def test_losses_agree_with_numpy():
    q, target_q = randn(2, 3, BATCH, seed=1), randn(2, 3, BATCH, seed=2)
    log_prob, target = randn(2, BATCH, seed=3), randn(2, BATCH, seed=4)
    log_alpha = randn(2, seed=5)
    alpha, batch = log_alpha.exp(), random_batch(seeds=2)
    n = {name: value.numpy() for name, value in batch._asdict().items()}

    for s in range(2):
        value = target_q[s].numpy().min(axis=0) - float(alpha[s]) * log_prob[s].numpy()
        bootstrap = np.where(n["terminal"][s] == 1, 0.0, 0.9 * value)
        np.testing.assert_allclose(
            td_target(batch, target_q, log_prob, alpha, 0.9)[s], n["reward"][s] + bootstrap
        )
        error = sum(np.mean((q[s, c].numpy() - target[s].numpy()) ** 2) for c in range(3))
        np.testing.assert_allclose(critic_loss(q, target)[s], error)
        policy = float(alpha[s]) * log_prob[s].numpy() - q[s].numpy().min(axis=0)
        np.testing.assert_allclose(actor_loss(q, log_prob, alpha)[s], policy.mean())
        # The derivative of -log_alpha (log pi + target entropy) by log_alpha.
        temperature = -(log_prob[s].numpy().mean() + -2.0)
        gradient_S = alpha_gradient(log_prob.mean(dim=1), -2.0)
        np.testing.assert_allclose(gradient_S[s], temperature)


def test_terminal_rows_do_not_bootstrap_and_others_do():
    batch = random_batch()._replace(terminal=torch.zeros(1, BATCH).double())
    batch.terminal[0, :5] = 1
    one, other = randn(1, 2, BATCH, seed=1), randn(1, 2, BATCH, seed=2)
    log_prob, alpha = randn(1, BATCH), torch.ones(1).double()
    first, second = (td_target(batch, q, log_prob, alpha, 0.99) for q in (one, other))
    assert torch.equal(first[0, :5], batch.reward[0, :5])
    assert torch.equal(second[0, :5], batch.reward[0, :5])
    assert (first[0, 5:] != second[0, 5:]).all()


# --- whole steps


class PlainSAC:
    """SAC of one seed with ordinary modules; Adam, targets and densities written out."""

    def __init__(self, networks, settings):
        self.settings = settings
        self.actor = self.module(networks.actor, 0)
        self.critics = [self.module(networks.critic, (0, c)) for c in range(settings.num_critics)]
        self.targets = [self.module(networks.critic, (0, c)) for c in range(settings.num_critics)]
        self.log_alpha = torch.zeros((), dtype=torch.float64, requires_grad=True)
        self.moments = {}
        self.steps = 0

    @staticmethod
    def module(stack, at):
        layers = []
        for weight, bias in zip(stack.weights, stack.biases, strict=True):
            linear = nn.Linear(*weight.shape[-2:]).double()
            linear.weight.data = weight.detach()[at].T.clone()
            linear.bias.data = bias.detach()[at][0].clone()
            layers += [linear, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def sample(self, obs, noise):
        mean, log_std = self.actor(obs).split(ACTION, dim=1)
        std = log_std.clamp(-5, 2).exp()
        u = mean + std * noise
        log_prob = Normal(mean, std).log_prob(u) - torch.log(1 - torch.tanh(u) ** 2)
        return torch.tanh(u), log_prob.sum(dim=1)

    def adam(self, loss, parameters, lr):
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            m, v = self.moments.get(p, (0.0, 0.0))
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            self.moments[p] = m, v
            m_hat, v_hat = m / (1 - 0.9**self.steps), v / (1 - 0.999**self.steps)
            p.data -= lr * m_hat / (v_hat.sqrt() + 1e-8)

    def step(self, batch, noise):
        s, self.steps = self.settings, self.steps + 1
        obs, action, reward, next_obs, terminal = (x[0] for x in batch)
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            next_action, next_log_prob = self.sample(next_obs, noise.next_action_SBA[0])
            pair = torch.cat([next_obs, next_action], dim=1)
            value = torch.stack([t(pair)[:, 0] for t in self.targets]).min(dim=0).values
            y = reward + s.gamma * (1 - terminal) * (value - alpha * next_log_prob)
        pair = torch.cat([obs, action], dim=1)
        for critic in self.critics:
            loss = nn.functional.mse_loss(critic(pair)[:, 0], y)
            self.adam(loss, list(critic.parameters()), s.critic_lr)
        new_action, log_prob = self.sample(obs, noise.action_SBA[0])
        pair = torch.cat([obs, new_action], dim=1)
        value = torch.stack([c(pair)[:, 0] for c in self.critics]).min(dim=0).values
        self.adam((alpha * log_prob - value).mean(), list(self.actor.parameters()), s.actor_lr)
        entropy_gap = log_prob.detach().mean() - ACTION
        self.adam(-self.log_alpha * entropy_gap, [self.log_alpha], s.alpha_lr)
        for target, critic in zip(self.targets, self.critics, strict=True):
            for old, new in zip(target.parameters(), critic.parameters(), strict=True):
                old.data = (1 - s.tau) * old.data + s.tau * new.data


def test_steps_equal_a_plain_implementation():
    """Also: the targets move in every step, and critics learn nothing from the actor's loss."""
    settings = SACSettings(hidden=(8, 8), actor_lr=1e-2, critic_lr=2e-2, alpha_lr=3e-2, tau=0.1)
    networks, optimizers = make_networks(settings)
    plain = PlainSAC(networks, settings)
    for n in range(5):
        batch, noise = random_batch(seed=10 * n), random_noise(seed=n)
        gradient_step(networks, optimizers, settings, batch, noise)
        plain.step(batch, noise)
        pairs = [(networks.actor, 0, plain.actor)]
        pairs += [(networks.critic, (0, c), plain.critics[c]) for c in range(2)]
        pairs += [(networks.target_critic, (0, c), plain.targets[c]) for c in range(2)]
        for stack, at, module in pairs:
            ours = PlainSAC.module(stack, at).state_dict()
            for name, expected in module.state_dict().items():
                torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(networks.log_alpha_S.detach()[0], plain.log_alpha.detach())


def test_tau_1_makes_the_targets_the_critics_and_tau_0_leaves_them():
    for tau in (0.0, 1.0):
        settings = SACSettings(hidden=(8,), tau=tau)
        networks, optimizers = make_networks(settings)
        before = [p.clone() for p in networks.target_critic.parameters()]
        gradient_step(networks, optimizers, settings, random_batch(), random_noise())
        expected = list(networks.critic.parameters()) if tau else before
        for target, value in zip(networks.target_critic.parameters(), expected, strict=True):
            assert torch.equal(target, value)


@pytest.mark.parametrize(("target_entropy", "sign"), [(50.0, 1), (-50.0, -1)])
def test_alpha_rises_below_the_target_entropy_and_falls_above(target_entropy, sign):
    settings = SACSettings(hidden=(8,), target_entropy=target_entropy, alpha_lr=1e-2)
    networks, optimizers = make_networks(settings, seeds=(0, 1))
    for n in range(3):
        before = networks.log_alpha_S.detach().clone()
        batch, noise = random_batch(seeds=2, seed=n), random_noise(seeds=2, seed=n)
        statistics = gradient_step(networks, optimizers, settings, batch, noise)
        assert ((statistics.means["entropy"] < target_entropy) == (sign > 0)).all()
        assert ((networks.log_alpha_S.detach() - before) * sign > 0).all()


def test_the_default_target_entropy_is_minus_the_number_of_actions():
    results = []
    for target_entropy in (None, -float(ACTION)):
        settings = SACSettings(hidden=(8,), target_entropy=target_entropy, alpha_lr=1e-2)
        networks, optimizers = make_networks(settings)
        for n in range(2):
            gradient_step(networks, optimizers, settings, random_batch(), random_noise(seed=n))
        results.append(networks.log_alpha_S.detach())
    assert torch.equal(*results)


def test_statistics_are_those_of_the_step():
    settings = SACSettings(hidden=(8,))
    networks, optimizers = make_networks(settings, seeds=(0, 1))
    batch, noise = random_batch(seeds=2), random_noise(seeds=2)
    with torch.no_grad():
        q = networks.q(batch.obs, batch.action)
        _, log_prob = networks.policy(batch.obs).sample(noise.action_SBA)
    statistics = gradient_step(networks, optimizers, settings, batch, noise)
    torch.testing.assert_close(statistics.q_SB, q.mean(dim=1))
    torch.testing.assert_close(statistics.means["entropy"], -log_prob.mean(dim=1))
    assert statistics.means["alpha"].tolist() == [1.0, 1.0]
    assert not any(value.requires_grad for value in (statistics.q_SB, *statistics.means.values()))
