"""The yardstick: the same algorithms for one seed, in PyTorch as one would ordinarily write it.

`nn.Sequential`, autograd, unfused Adam, no chunks, all members for every row. Sizes are the
others' sizes: batch 256, nets 2 x 256, seven dynamics models of 4 x 200.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from hopper import ACTION, DATA_ROWS, OBS, QUIET_LOG_VAR, ROLLOUT_ROWS, transitions
from torch import Tensor, nn

from algorithms.environments.table import hopper
from algorithms.stack.transitions import Transition

BATCH, GAMMA, TAU = 256, 0.99, 0.005
SAMPLES, BETA = 10, 2.5  # COMBO: samples of each of three proposals; MOBILE: of each elite
REAL_ROWS, PENALTY_COEF = 12, 1.5  # MOBILE
MEMBERS, ELITES, OUTPUTS = 7, 5, OBS + 1
WEIGHT_DECAY = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    layers = (nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(256, outputs))


def q(networks: nn.ModuleList, obs: Tensor, action: Tensor) -> Tensor:
    """Of every critic, `[2, B]`."""
    inputs = torch.cat([obs, action], dim=-1)
    return torch.stack([network(inputs).squeeze(-1) for network in networks])


class PlainSAC:
    """Soft actor-critic."""

    def __init__(self, device: str) -> None:
        self.actor = mlp(OBS, 2 * ACTION).to(device)
        self.critics = nn.ModuleList([mlp(OBS + ACTION, 1) for _ in range(2)]).to(device)
        self.targets = nn.ModuleList([mlp(OBS + ACTION, 1) for _ in range(2)]).to(device)
        self.targets.load_state_dict(self.critics.state_dict())
        self.log_alpha = torch.zeros((), device=device, requires_grad=True)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), 1e-4)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), 3e-4)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], 1e-4)
        self.data = transitions(50_000).to(device)

    def steps(self, number: int) -> None:
        for _ in range(number):
            index = torch.randint(self.data.rows, (BATCH,), device=self.log_alpha.device)
            self.step(Transition(*(x[index] for x in self.data)))

    def step(self, batch: Transition) -> None:
        critic_loss = self.critic_loss(batch)
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()

        action, log_prob = self.act(batch.obs)
        alpha = self.log_alpha.exp().detach()
        actor_loss = (alpha * log_prob - q(self.critics, batch.obs, action).amin(0)).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()

        alpha_loss = -(self.log_alpha * (log_prob.detach() - ACTION)).mean()
        self.alpha_optimizer.zero_grad()
        alpha_loss.backward()
        self.alpha_optimizer.step()

        with torch.no_grad():
            pairs = zip(self.targets.parameters(), self.critics.parameters(), strict=True)
            for target, parameter in pairs:
                target.lerp_(parameter, TAU)

    def act(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """A sampled action and its log-density."""
        mean, log_std = self.actor(obs).chunk(2, dim=-1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-5.0, 2.0).exp())
        u = normal.rsample()
        correction = 2 * (math.log(2.0) - u - F.softplus(-2 * u))
        return torch.tanh(u), (normal.log_prob(u) - correction).sum(-1)

    def critic_loss(self, batch: Transition) -> Tensor:
        with torch.no_grad():
            next_action, next_log_prob = self.act(batch.next_obs)
            value = q(self.targets, batch.next_obs, next_action).amin(0)
            value = value - self.log_alpha.exp() * next_log_prob
            target = batch.reward + GAMMA * (1 - batch.terminal) * value
        return (q(self.critics, batch.obs, batch.action) - target).square().mean(-1).sum()


class PlainCOMBO(PlainSAC):
    """The same with COMBO's critics: 256 x 30 sampled actions at once."""

    def critic_loss(self, batch: Transition) -> Tensor:
        obs = batch.obs.repeat_interleave(SAMPLES, dim=0)
        next_obs = batch.next_obs.repeat_interleave(SAMPLES, dim=0)
        with torch.no_grad():
            uniform = torch.rand(len(obs), ACTION, device=obs.device) * 2 - 1
            current, current_log_prob = self.act(obs)
            following, following_log_prob = self.act(next_obs)
        log_prior = torch.full_like(current_log_prob, -ACTION * math.log(2.0))
        sampled_q = [
            q(self.critics, obs, action) - log_density
            for action, log_density in (
                (uniform, log_prior),
                (current, current_log_prob),
                (following, following_log_prob),
            )
        ]
        by_state = torch.cat([x.view(2, -1, SAMPLES) for x in sampled_q], dim=-1)
        pushed_down = by_state.logsumexp(dim=-1).mean(-1)
        real = slice(0, BATCH // 2)
        pushed_up = q(self.critics, batch.obs[real], batch.action[real]).mean(-1)
        return 0.5 * super().critic_loss(batch) + BETA * (pushed_down - pushed_up).sum()


class PlainEnsemble(nn.Module):
    """Seven Gaussian models in batched products."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (OBS + ACTION, 200, 200, 200, 200, 2 * OUTPUTS)
        shapes = list(pairwise(sizes))
        self.weights = nn.ParameterList(
            torch.randn(MEMBERS, i, o) / (2 * math.sqrt(i)) for i, o in shapes
        )
        self.biases = nn.ParameterList(torch.zeros(MEMBERS, 1, o) for _, o in shapes)
        self.min_log_var = nn.Parameter(torch.full((OUTPUTS,), -10.0))
        self.max_log_var = nn.Parameter(torch.full((OUTPUTS,), 0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[7, B, O + A]` -> mean and log-variance `[7, B, O + 1]`."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = F.silu(torch.bmm(x, weight) + bias)
        mean, log_var = (torch.bmm(x, self.weights[-1]) + self.biases[-1]).chunk(2, dim=-1)
        log_var = self.max_log_var - F.softplus(self.max_log_var - log_var)
        return mean, self.min_log_var + F.softplus(log_var - self.min_log_var)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        mean, log_var = self(inputs)
        likelihood = ((mean - targets).square() * (-log_var).exp() + log_var).mean((1, 2)).sum()
        pairs = zip(WEIGHT_DECAY, self.weights, strict=True)
        decay = sum(0.5 * coefficient * weight.square().sum() for coefficient, weight in pairs)
        return likelihood + decay + 0.01 * (self.max_log_var.sum() - self.min_log_var.sum())


class PlainMOBILE(PlainSAC):
    """The same with MOBILE's targets: 256 x 5 x 10 sampled next states at once."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.ensemble = quiet_ensemble(device)
        inputs = torch.cat([self.data.obs, self.data.action], dim=-1)
        self.input_mean, self.input_std = inputs.mean(0), inputs.std(0)

    def critic_loss(self, batch: Transition) -> Tensor:
        with torch.no_grad():
            next_action, _ = self.act(batch.next_obs)
            value = q(self.targets, batch.next_obs, next_action).amin(0)
            penalty = PENALTY_COEF * self.inconsistency(batch.obs, batch.action)
            penalty[:REAL_ROWS] = 0.0
            target = batch.reward - penalty + GAMMA * (1 - batch.terminal) * value
            target = target.clamp(min=0.0)
        return (q(self.critics, batch.obs, batch.action) - target).square().mean(-1).sum()

    def inconsistency(self, obs: Tensor, action: Tensor) -> Tensor:
        inputs = (torch.cat([obs, action], dim=-1) - self.input_mean) / self.input_std
        mean, log_var = self.ensemble(inputs.repeat(MEMBERS, 1, 1))
        mean, std = obs + mean[:ELITES, :, :OBS], (0.5 * log_var[:ELITES, :, :OBS]).exp()
        next_obs = mean + std * torch.randn(SAMPLES, *mean.shape, device=obs.device)
        next_action, _ = self.act(next_obs)
        return q(self.targets, next_obs, next_action).amin(0).mean(0).std(0)


def quiet_ensemble(device: str) -> PlainEnsemble:
    """Seven members that predict no change."""
    ensemble = PlainEnsemble().to(device)
    with torch.no_grad():
        ensemble.weights[-1].zero_()
        ensemble.min_log_var.fill_(QUIET_LOG_VAR[0])
        ensemble.max_log_var.fill_(QUIET_LOG_VAR[1])
    return ensemble


def ensemble_batches(device: str) -> Callable[[int], None]:
    """Trains the ensemble on a number of batches, 256 rows for each member."""
    data = transitions(DATA_ROWS).to(device)
    inputs = torch.cat([data.obs, data.action], dim=-1)
    targets = torch.cat([data.next_obs - data.obs, data.reward[:, None]], dim=-1)
    mean, std = inputs.mean(0), inputs.std(0)
    ensemble = PlainEnsemble().to(device)
    optimizer = torch.optim.Adam(ensemble.parameters(), 1e-3)
    bootstrap = torch.randint(DATA_ROWS, (MEMBERS, DATA_ROWS), device=device)

    def run(batches: int) -> None:
        order = torch.randperm(batches * BATCH, device=device) % DATA_ROWS
        for rows in bootstrap[:, order].split(BATCH, dim=1):
            loss = ensemble.loss((inputs[rows] - mean) / std, targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def rollout_steps(device: str) -> Callable[[int], None]:
    """A number of steps of rollouts with the penalty `max_std`, 50,000 rows at once."""
    agent, ensemble = PlainSAC(device), quiet_ensemble(device)
    inputs = torch.cat([agent.data.obs, agent.data.action], dim=-1)
    input_mean, input_std = inputs.mean(0), inputs.std(0)

    @torch.no_grad()
    def roll_out(length: int) -> None:
        obs = agent.data.obs[torch.randint(agent.data.rows, (ROLLOUT_ROWS,), device=device)]
        rows = []
        for _ in range(length):
            action, _ = agent.act(obs)
            inputs = (torch.cat([obs, action], dim=-1) - input_mean) / input_std
            mean, log_var = ensemble(inputs.repeat(MEMBERS, 1, 1))
            std = (0.5 * log_var).exp()
            samples = mean + std * torch.randn_like(std)
            member = torch.randint(ELITES, (len(obs),), device=device)
            outcome = samples[member, torch.arange(len(obs), device=device)]
            next_obs, reward = obs + outcome[:, :-1], outcome[:, -1:]
            reward = reward - 2.5 * std.norm(dim=-1).amax(0)[:, None]
            done = hopper(next_obs)
            rows.append(torch.cat([obs, action, reward, next_obs, done[:, None]], dim=-1))
            obs = next_obs[~done]
        torch.cat(rows)

    return roll_out
