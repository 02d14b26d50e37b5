"""The losses, gradients and steps of MOPO, MOBILE and COMBO once more: NumPy, float64, one seed.

Written from the papers' formulae and independent of the code under test: a network is
a list of layers (W [in, out], b [out]), gradients are derived by hand, densities are
the textbook's, and each step is spelled out. `test_reference.py` checks these
gradients by finite differences of these losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

Array = np.ndarray
Layer = tuple[Array, Array]
Net = list[Layer]


def layers_of(stack: Any, *index: int) -> Net:
    """The network at `index` of a `StackedMLP`, in float64."""
    return [
        (w.detach()[index].double().numpy().copy(), b.detach()[index][0].double().numpy().copy())
        for w, b in zip(stack.weights, stack.biases, strict=True)
    ]


def forward(net: Net, x: Array) -> list[Array]:
    """The inputs of every layer of a ReLU network, and its output last."""
    values = [x]
    for i, (w, b) in enumerate(net):
        y = values[-1] @ w + b
        values.append(y if i == len(net) - 1 else np.maximum(y, 0.0))
    return values


def backward(net: Net, values: list[Array], dy: Array) -> tuple[Net, Array]:
    """Gradients of sum(output * dy) by the layers' parameters and by the input."""
    gradients: Net = []
    for (w, _), x in zip(reversed(net), reversed(values[:-1]), strict=True):
        gradients.insert(0, (x.T @ dy, dy.sum(axis=0)))
        dy = (dy @ w.T) * (x > 0) if x is not values[0] else dy @ w.T
    return gradients, dy


def add(one: Net, other: Net) -> Net:
    return [(w + v, b + c) for (w, b), (v, c) in zip(one, other, strict=True)]


def flat(net: Net) -> list[Array]:
    return [array for layer in net for array in layer]


class Batch(NamedTuple):
    """One seed's rows, real ones first."""

    obs: Array
    action: Array
    reward: Array
    next_obs: Array
    terminal: Array

    @classmethod
    def of_seed(cls, batch: Any, s: int) -> Batch:
        return cls(*(x[s].double().numpy() for x in batch))


class Samples(NamedTuple):
    """Actions [B, N, A], the logarithms of what each counts [B, N] and of what all do [B]."""

    action: Array
    log_weight: Array
    log_total: Array


class Adam:
    """Kingma and Ba 2015, algorithm 1."""

    def __init__(self, lr: float) -> None:
        self.lr, self.t = lr, 0
        self.moments: list[tuple[Array, Array]] = []

    def step(self, parameters: Sequence[Array], gradients: Sequence[Array]) -> None:
        self.t += 1
        if not self.moments:
            self.moments = [(np.zeros_like(g), np.zeros_like(g)) for g in gradients]
        for p, g, (m, v) in zip(parameters, gradients, self.moments, strict=True):
            m[...] = 0.9 * m + 0.1 * g
            v[...] = 0.999 * v + 0.001 * g**2
            m_hat, v_hat = m / (1 - 0.9**self.t), v / (1 - 0.999**self.t)
            p[...] = p - self.lr * m_hat / (np.sqrt(v_hat) + 1e-8)


class Descent:
    """Plain gradient descent, of which a step shows the gradient."""

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def step(self, parameters: Sequence[Array], gradients: Sequence[Array]) -> None:
        for p, g in zip(parameters, gradients, strict=True):
            p[...] = p - self.lr * g


class Learner:
    """One seed of MOPO's SAC, or of COMBO where the settings have a prior.

    Args:
        networks: a `SACNetworks`, whose weights at `position` are copied.
        position: of the seed.
        settings: `MOPOSettings` or `COMBOSettings`.
        reward_scale: of the data; beta is learned in units of its root mean square.
        optimizer: `Adam` or `Descent`.
    """

    def __init__(
        self,
        networks: Any,
        position: int,
        settings: Any,
        reward_scale: Any,
        optimizer: Any = Adam,
    ) -> None:
        self.s, self.max_q = settings, reward_scale.max_q
        self.combo = hasattr(settings, "prior")
        self.actor = layers_of(networks.actor, position)
        count = settings.num_critics
        self.critics = [layers_of(networks.critic, position, c) for c in range(count)]
        self.targets = [layers_of(networks.target_critic, position, c) for c in range(count)]
        self.previous = layers_of(networks.actor, position)
        self.log_alpha = networks.log_alpha_S.detach()[position].double().numpy().copy().reshape(1)
        self.target_entropy = -float(networks.action_dim)
        beta = getattr(settings, "beta", 0.0)
        self.beta_unit = reward_scale.rms if beta == "learned" else 1.0
        self.log_beta = np.log([settings.beta_init if beta == "learned" else beta or 1.0])
        self.advantage_std: float | None = None
        self.steps = 0
        self.optimize_actor = optimizer(settings.actor_lr)
        self.optimize_critics = [optimizer(settings.critic_lr) for _ in range(count)]
        self.optimize_alpha = optimizer(settings.alpha_lr)
        self.optimize_beta = optimizer(getattr(settings, "beta_lr", 0.0))

    def begin_epoch(self) -> None:
        self.previous = [(w.copy(), b.copy()) for w, b in self.actor]

    @property
    def beta(self) -> float:
        return float(self.beta_unit * np.exp(self.log_beta[0]))

    # --- the policy: a = tanh(u), u ~ N(mean, std^2)

    @staticmethod
    def gaussian(actor: Net, obs: Array) -> tuple[Array, Array]:
        mean, log_std = np.split(forward(actor, obs)[-1], 2, axis=-1)
        return mean, np.exp(np.clip(log_std, -5.0, 2.0))

    @staticmethod
    def log_density(u: Array, mean: Array, std: Array) -> Array:
        """Change of variables: log N(u) - log |da/du|."""
        log_derivative = np.log1p(-(np.tanh(u) ** 2))
        return (stats.norm.logpdf(u, mean, std) - log_derivative).sum(axis=-1)

    def q(self, net: Net, obs: Array, action: Array) -> Array:
        return forward(net, np.concatenate([obs, action], axis=-1))[-1][..., 0]

    # --- critics

    def td_target(self, batch: Batch, noise: Sequence[Array]) -> Array:
        """Of every row, with a step's noise."""
        mean, std = self.gaussian(self.actor, batch.next_obs)
        u = mean + std * noise[0]
        value = np.min([self.q(t, batch.next_obs, np.tanh(u)) for t in self.targets], axis=0)
        if getattr(self.s, "backup", "soft") == "soft":
            value = value - np.exp(self.log_alpha) * self.log_density(u, mean, std)
        return batch.reward + self.s.gamma * (1 - batch.terminal) * value

    def samples(self, batch: Batch, noise: Array) -> Samples:
        """Actions at the states of rho, with importance weights; noise is [B, P, M, A]."""
        obs, next_obs = batch.obs[self.rho], batch.next_obs[self.rho]
        if self.s.prior == "previous_policy":
            mean, std = self.gaussian(self.previous, obs)
            action = np.tanh(mean[:, None] + std[:, None] * noise[:, 0])
            ones = np.zeros(action.shape[:2])
            return Samples(action, ones, special.logsumexp(ones, axis=1))
        policies = [self.gaussian(self.actor, o) for o in (obs, next_obs)]
        uniform = np.clip(2 * stats.norm.cdf(noise[:, 0]) - 1, -1 + 1e-6, 1 - 1e-6)
        u = [np.arctanh(uniform)]
        u += [m[:, None] + s[:, None] * noise[:, 1 + k] for k, (m, s) in enumerate(policies)]
        log_uniform = -noise.shape[-1] * np.log(2.0)

        def densities(x: Array) -> Array:  # under the three proposals
            under = [self.log_density(x, m[:, None], s[:, None]) for m, s in policies]
            return np.stack([np.full(x.shape[:2], log_uniform), *under])

        every = np.concatenate(u, axis=1)
        if self.s.importance == "own_density":
            own = [densities(part)[k] for k, part in enumerate(u)]
            log_weight = log_uniform - np.concatenate(own, axis=1)
            log_total = np.full(len(obs), np.log(every.shape[1]))
        else:
            log_weight = log_uniform - np.log(np.exp(densities(every)).mean(axis=0))
            log_total = special.logsumexp(log_weight, axis=1)
        return Samples(np.tanh(every), log_weight, log_total)

    @property
    def rho(self) -> slice:
        return slice(0 if self.s.rho_states == "mix" else self.s.real_rows, None)

    def sampled_q(self, critic: Net, batch: Batch, samples: Samples) -> list[Array]:
        obs = np.repeat(batch.obs[self.rho], samples.action.shape[1], axis=0)
        actions = samples.action.reshape(len(obs), -1)
        return forward(critic, np.concatenate([obs, actions], axis=1))

    def value(self, critic: Net, batch: Batch, samples: Samples) -> float:
        """E_{s ~ rho} T log E_{a ~ prior} exp(Q / T)."""
        q = self.sampled_q(critic, batch, samples)[-1].reshape(samples.log_weight.shape)
        t = self.s.temperature
        log_mean = special.logsumexp(q / t + samples.log_weight, axis=1) - samples.log_total
        return float(np.mean(t * log_mean))

    def critic_loss(
        self, critic: Net, batch: Batch, target: Array, samples: Samples | None
    ) -> float:
        """Of one critic: SAC's mean squared error, or COMBO's eq. 2."""
        q = self.q(critic, batch.obs, batch.action)
        error = float(np.mean((q - target) ** 2))
        if samples is None:
            return error
        gap = self.value(critic, batch, samples)
        if self.s.maximize_dataset_q:
            gap -= float(np.mean(q[: self.s.real_rows]))
        return self.beta * gap + 0.5 * error

    def critic_gradient(
        self, critic: Net, batch: Batch, target: Array, samples: Samples | None
    ) -> Net:
        values = forward(critic, np.concatenate([batch.obs, batch.action], axis=1))
        q = values[-1][:, 0]
        dq = 2 * (q - target) / len(q)
        if samples is None:
            return backward(critic, values, dq[:, None])[0]
        beta, real = self.beta, self.s.real_rows
        dq = 0.5 * dq
        if self.s.maximize_dataset_q:
            dq[:real] -= beta / real
        gradient = backward(critic, values, dq[:, None])[0]
        values = self.sampled_q(critic, batch, samples)
        shape = samples.log_weight.shape
        logits = values[-1].reshape(shape) / self.s.temperature + samples.log_weight
        dq = beta * special.softmax(logits, axis=1) / shape[0]
        return add(gradient, backward(critic, values, dq.reshape(-1, 1))[0])

    # --- actor, temperature, beta

    def actor_loss(self, batch: Batch, noise: Array) -> float:
        mean, std = self.gaussian(self.actor, batch.obs)
        u = mean + std * noise
        q = np.min([self.q(c, batch.obs, np.tanh(u)) for c in self.critics], axis=0)
        return float(np.mean(np.exp(self.log_alpha) * self.log_density(u, mean, std) - q))

    def actor_gradient(self, batch: Batch, noise: Array) -> Net:
        rows, alpha = len(batch.obs), float(np.exp(self.log_alpha[0]))
        values = forward(self.actor, batch.obs)
        mean, raw = np.split(values[-1], 2, axis=1)
        std = np.exp(np.clip(raw, -5.0, 2.0))
        action = np.tanh(mean + std * noise)
        pair = np.concatenate([batch.obs, action], axis=1)
        outputs = [forward(c, pair) for c in self.critics]
        smallest = np.argmin([o[-1][:, 0] for o in outputs], axis=0)
        dq_da = np.zeros_like(action)
        for c, (critic, output) in enumerate(zip(self.critics, outputs, strict=True)):
            _, dpair = backward(critic, output, (smallest == c).astype(float)[:, None])
            dq_da += dpair[:, batch.obs.shape[1] :]
        # log pi = log N(noise) - log std - log(1 - a^2), whose last term has d/du = 2 a.
        du = (2 * alpha * action - dq_da * (1 - action**2)) / rows
        dlog_std = np.where((raw > -5) & (raw < 2), du * std * noise - alpha / rows, 0.0)
        return backward(self.actor, values, np.concatenate([du, dlog_std], axis=1))[0]

    def log_prob(self, batch: Batch, noise: Array) -> float:
        mean, std = self.gaussian(self.actor, batch.obs)
        return float(np.mean(self.log_density(mean + std * noise, mean, std)))

    def step(self, batch: Batch, noise: Sequence[Array]) -> dict[str, float]:
        """One gradient step of everything; its statistics by the names of the code under test."""
        action_noise = noise[1]
        target = self.td_target(batch, noise)
        samples = self.samples(batch, noise[2]) if self.combo else None
        loss = sum(self.critic_loss(c, batch, target, samples) for c in self.critics)
        seen = {"critic_loss": loss, "alpha": float(np.exp(self.log_alpha[0]))}
        q = np.array([self.q(c, batch.obs, batch.action) for c in self.critics])
        if samples is not None:
            value = np.mean([self.value(c, batch, samples) for c in self.critics])
            seen["bellman_error"] = float(0.5 * ((q - target) ** 2).mean(axis=1).sum())
            seen["gap"] = float(value - q[:, : self.s.real_rows].mean())
            seen["beta"] = self.beta
        gradients = [self.critic_gradient(c, batch, target, samples) for c in self.critics]
        for critic, optimizer, gradient in zip(
            self.critics, self.optimize_critics, gradients, strict=True
        ):
            optimizer.step(flat(critic), flat(gradient))
        if samples is not None:
            seen["beta_threshold"] = self.threshold(batch, q, action_noise)
            if self.s.beta == "learned":
                self.learn_beta(seen["gap"] - seen["beta_threshold"])
        log_prob = self.log_prob(batch, action_noise)
        seen |= {"actor_loss": self.actor_loss(batch, action_noise), "entropy": -log_prob}
        self.optimize_actor.step(flat(self.actor), flat(self.actor_gradient(batch, action_noise)))
        entropy_excess = np.array([-(log_prob + self.target_entropy)])
        self.optimize_alpha.step([self.log_alpha], [entropy_excess])
        for target_net, critic in zip(self.targets, self.critics, strict=True):
            for old, new in zip(flat(target_net), flat(critic), strict=True):
                old[...] = (1 - self.s.tau) * old + self.s.tau * new
        self.steps += 1
        return seen

    def threshold(self, batch: Batch, q: Array, noise: Array) -> float:
        """In units of the running spread of Q(s, a) - Q(s, pi(s)) over the real rows."""
        mean, std = self.gaussian(self.actor, batch.obs)
        own = [self.q(c, batch.obs, np.tanh(mean + std * noise)) for c in self.critics]
        advantage = (q.mean(axis=0) - np.mean(own, axis=0))[: self.s.real_rows]
        spread, before = float(advantage.std()), self.advantage_std
        self.advantage_std = spread if before is None else before + 0.005 * (spread - before)
        return self.s.beta_threshold * min(self.advantage_std, self.max_q)

    def learn_beta(self, excess: float) -> None:
        """One step up beta (gap - threshold) in log-beta."""
        if self.steps >= self.s.beta_warmup_steps:
            self.optimize_beta.step([self.log_beta], [-np.exp(self.log_beta) * excess])
        bounds = np.log([self.s.beta_min, self.s.beta_max])
        self.log_beta[...] = np.clip(self.log_beta, *bounds)


class MOBILELearner(Learner):
    """One seed of MOBILE: targets less by the elites' inconsistency, and alpha within bounds.

    Args:
        ensemble: a `DynamicsEnsemble`, or None where no row of a batch is the model's.
        of: what a `Learner` is made of.
        options: what a `Learner` is made of.
    """

    def __init__(self, ensemble: Any, *of: Any, **options: Any) -> None:
        super().__init__(*of, **options)
        self.ensemble, self.position = ensemble, of[1]
        if self.s.alpha != "auto":
            self.log_alpha[...] = np.log(self.s.alpha)

    def elite_outcomes(self, obs: Array, action: Array) -> list[tuple[Array, Array]]:
        """Every elite's mean and std of the next observation."""
        e, s, outcomes = self.ensemble, self.position, []
        x = np.concatenate([obs, action], axis=1)
        x = (x - e.input_mean_SI[s].double().numpy()) / e.input_std_SI[s].double().numpy()
        low, high = (b.detach()[s].double().numpy() for b in (e.min_log_var_SD, e.max_log_var_SD))
        for member in e.elites_SK[s].tolist():
            *hidden, (w, b) = layers_of(e.network, s, member)
            y = x
            for v, c in hidden:
                y = y @ v + c
                y = y * special.expit(y)
            mean, lv = np.split(y @ w + b, 2, axis=1)
            lv = high - softplus(high - lv)
            lv = low + softplus(lv - low)
            outcomes.append((obs + mean[:, :-1], np.sqrt(np.exp(lv[:, :-1]))))
        return outcomes

    def inconsistency(self, batch: Batch, noise: Array) -> Array:
        """The spread over elites of what each expects s' to be worth; noise is [R, M, K, O + A]."""
        obs, action = batch.obs[self.s.real_rows :], batch.action[self.s.real_rows :]
        expected = []
        for m, (mean, std) in enumerate(self.elite_outcomes(obs, action)):
            values = []
            for k in range(noise.shape[2]):
                next_obs = mean + std * noise[:, m, k, : obs.shape[1]]
                policy_mean, policy_std = self.gaussian(self.actor, next_obs)
                next_action = np.tanh(policy_mean + policy_std * noise[:, m, k, obs.shape[1] :])
                values.append(np.min([self.q(t, next_obs, next_action) for t in self.targets], 0))
            expected.append(sum(values) / len(values))
        center = sum(expected) / len(expected)
        return np.sqrt(sum((x - center) ** 2 for x in expected) / (len(expected) - 1))

    def td_target(self, batch: Batch, noise: Sequence[Array]) -> Array:
        return self.penalised_target(batch, noise)[0]

    def penalised_target(self, batch: Batch, noise: Sequence[Array]) -> tuple[Array, Array, Array]:
        """The target of every row, what it is without the penalty, and the model rows' u."""
        before = super().td_target(batch, noise)
        inconsistency = self.inconsistency(batch, noise[2])
        after = before.copy()
        after[self.s.real_rows :] -= self.s.penalty_coef * inconsistency
        if self.s.clamp_target:
            before, after = np.maximum(before, 0.0), np.maximum(after, 0.0)
        return after, before, inconsistency

    def step(self, batch: Batch, noise: Sequence[Array]) -> dict[str, float]:
        after, before, inconsistency = self.penalised_target(batch, noise)
        seen = super().step(batch, noise)
        if self.s.alpha == "auto":
            self.log_alpha[...] = np.minimum(self.log_alpha, np.log(self.s.alpha_max))
        else:
            self.log_alpha[...] = np.log(self.s.alpha)
        return seen | {
            "inconsistency": float(inconsistency.mean()),
            "target_penalty": float((before - after)[self.s.real_rows :].mean()),
        }


def learner_of(agent: Any, position: int, **options: Any) -> Learner:
    """One seed of an agent."""
    of = (agent.networks, position, agent.settings, agent.reward_scale)
    if hasattr(agent.settings, "clamp_target"):
        return MOBILELearner(agent.ensemble, *of, **options)
    return Learner(*of, **options)


# --- the dynamics ensemble


def softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


def ensemble_loss(
    parameters: Sequence[Array], x: Array, y: Array, weight_decay: Sequence[float]
) -> float:
    """Of one seed and one hidden layer; x [E, B, I] is standardised, y [E, B, D].

    `parameters` are in the order of `DynamicsEnsemble.parameters()`.
    """
    min_lv, max_lv, w1, w2, b1, b2 = parameters
    total = 0.0
    for e in range(len(x)):
        hidden = x[e] @ w1[e] + b1[e]
        hidden = hidden / (1 + np.exp(-hidden))
        mean, lv = np.split(hidden @ w2[e] + b2[e], 2, axis=1)
        lv = max_lv - softplus(max_lv - lv)
        lv = min_lv + softplus(lv - min_lv)
        total += np.mean((mean - y[e]) ** 2 / np.exp(lv) + lv)
        for wd, w in zip(weight_decay, (w1, w2), strict=True):
            total += wd * 0.5 * np.sum(w[e] ** 2)
    return float(total + 0.01 * (np.sum(max_lv) - np.sum(min_lv)))
