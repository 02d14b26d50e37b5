"""COMBO's gradient step: what its critics are pushed by, and how beta is learned."""

from copy import deepcopy

import pytest
import torch
from small_tasks import (
    COMBO_VARIANTS,
    REWARD_SCALE,
    descend_plainly,
    random_batch,
    small_agent,
    small_settings,
    step_noise,
)

from algorithms.sac.agent import RewardScale
from algorithms.stack.distributions import TanhGaussian

REAL = 8  # rows of 32
LOG_3 = 1.0986123
UNIT = REWARD_SCALE.rms  # of a learned beta


def agent(reward_scale=REWARD_SCALE, **changes):
    return small_agent("combo", small_settings("combo", **changes), reward_scale=reward_scale)


def step(combo, batch=None, noise=None):
    """One step's statistics per seed."""
    batch = random_batch() if batch is None else batch
    means = combo.gradient_step(batch, step_noise(combo) if noise is None else noise).means
    combo.steps += 1
    return means


def log_beta(combo):
    return combo.state_dict()["log_beta"].clone()


def critic_parameters(combo):
    return [p.detach().clone() for p in combo.networks.critic.parameters()]


def change_rows(batch, rows, **fields):
    """The batch with some fields at some rows set to other values."""
    other = random_batch(seed=77)
    changed = {}
    for name, shift in fields.items():
        value = getattr(batch, name).clone()
        value[:, rows] = getattr(other, name)[:, rows] + shift
        changed[name] = value
    return batch._replace(**changed)


@torch.no_grad()
def data_q(combo, batch):
    """E_D Q per seed, over real rows and critics."""
    return combo.networks.q(batch.obs, batch.action)[..., :REAL].mean(dim=(1, 2))


def value(combo, batch, noise=None):
    """The conservative value per seed: the gap without the data's Q."""
    combo = deepcopy(combo)
    data = data_q(combo, batch)
    return step(combo, batch, noise)["gap"] + data


def blind_to_actions(combo):
    """Critics whose Q depends on the observation alone."""
    with torch.no_grad():
        combo.networks.critic.weights[0][..., 3:, :] = 0
    return combo


# --- the learned beta


@pytest.mark.parametrize(("threshold", "sign"), [(-50.0, 1), (50.0, -1)])
def test_beta_rises_while_the_gap_is_above_the_threshold_and_falls_below(threshold, sign):
    combo = agent(beta="learned", beta_threshold=threshold)
    betas = []
    for n in range(5):
        means = step(combo, random_batch(seed=n))
        assert ((means["gap"] - means["beta_threshold"]) * sign > 0).all()
        betas.append(means["beta"])
    torch.testing.assert_close(betas[0], torch.full((2,), UNIT))  # of beta_init 1
    assert (torch.stack(betas).diff(dim=0) * sign > 0).all()


@pytest.mark.parametrize(("threshold", "limit"), [(-50.0, 2.0), (50.0, 0.5)])
def test_beta_stays_within_its_bounds(threshold, limit):
    combo = agent(beta="learned", beta_threshold=threshold, beta_lr=1.0, beta_min=0.5, beta_max=2.0)
    betas = torch.stack([step(combo)["beta"] for _ in range(6)])
    assert (betas >= 0.5 * UNIT - 1e-6).all()
    assert (betas <= 2.0 * UNIT + 1e-6).all()
    torch.testing.assert_close(betas[-1], torch.full((2,), limit * UNIT))


def test_beta_waits_for_the_end_of_its_warm_up():
    combo = agent(beta="learned", beta_threshold=-50.0, beta_warmup_steps=3)
    betas = [step(combo)["beta"].tolist() for _ in range(6)]
    assert betas[:4] == [betas[0]] * 4  # the fourth step is the first to move it
    assert betas[4] > betas[3]
    assert betas[5] > betas[4]


@pytest.mark.parametrize(("threshold", "sign"), [(-50.0, 1), (50.0, -1)])
@pytest.mark.parametrize("warm_up", [0, 1, 30])
def test_the_first_step_after_a_warm_up_is_adams_first_however_long_it_was(
    warm_up, threshold, sign
):
    """Adam's first step is the learning rate; one among zeros would be shorter."""
    lr = 0.01
    combo = agent(beta="learned", beta_threshold=threshold, beta_lr=lr, beta_warmup_steps=warm_up)
    start = log_beta(combo)
    for n in range(warm_up):
        step(combo, random_batch(seed=n))
        assert torch.equal(log_beta(combo), start)
    step(combo)
    torch.testing.assert_close(log_beta(combo), start + sign * lr, rtol=0, atol=1e-6)


@pytest.mark.parametrize("before", [0, 2, 4, 5])
def test_a_warm_up_continues_where_it_was_interrupted(before):
    options = {"beta": "learned", "beta_threshold": -50.0, "beta_warmup_steps": 4}
    through, resumed = agent(**options), agent(**options)
    for n in range(before):
        step(through, random_batch(seed=n))
    state = {name: value.clone() for name, value in through.state_dict().items()}
    for _ in range(6):  # beyond its own warm-up: to be forgotten, Adam's moments included
        step(resumed)
    resumed.load_state_dict(state)
    for n in range(before, 8):
        expected, means = (step(combo, random_batch(seed=n)) for combo in (through, resumed))
        for name, value in expected.items():
            assert torch.equal(means[name], value), (n, name)
        assert torch.equal(log_beta(resumed), log_beta(through))
    assert (log_beta(through) > 0).all()


def test_a_beta_that_is_a_number_stays_that_number():
    combo = agent(beta=0.7, beta_threshold=-50.0)
    betas = torch.stack([step(combo)["beta"] for _ in range(4)])
    torch.testing.assert_close(betas, torch.full((4, 2), 0.7))


def test_the_threshold_is_in_units_of_the_spread_of_the_datas_advantages_and_bounded():
    batch = random_batch()
    one = agent(beta_threshold=1.0, critic_lr=1e-12)
    noise = step_noise(one)
    with torch.no_grad():
        action, _ = one.networks.policy(batch.obs).sample(noise[1])
        q, own = (one.networks.q(batch.obs, a) for a in (batch.action, action))
        spread = (q - own).mean(dim=1)[:, :REAL].std(dim=-1, unbiased=False)
    torch.testing.assert_close(step(one, batch, noise)["beta_threshold"], spread)
    double = agent(beta_threshold=2.0, critic_lr=1e-12)
    torch.testing.assert_close(step(double, batch, noise)["beta_threshold"], 2 * spread)
    # A running mean: the next batch has little weight.
    following = step(one, random_batch(seed=1), step_noise(one, seed=1))["beta_threshold"]
    assert ((following - spread).abs() > 0).all()
    assert ((following - spread).abs() < 0.02 * spread).all()
    bounded = agent(RewardScale(rms=1.0, max_q=1e-3), beta_threshold=1.0)
    torch.testing.assert_close(step(bounded, batch)["beta_threshold"], torch.full((2,), 1e-3))


# --- the data's term


@pytest.mark.parametrize("variant", ["fixed", "balanced", "previous_policy"])
def test_without_the_dataset_q_exactly_its_gradient_is_missing(float64, variant):
    lr, beta = 0.01, 2.5
    options = {"critic_lr": lr, "beta": beta, **COMBO_VARIANTS[variant]}
    batch, after, gaps = random_batch(), {}, {}
    for maximize in (True, False):
        combo = agent(maximize_dataset_q=maximize, **options)
        descend_plainly(combo)
        q = combo.networks.q(batch.obs[:, :REAL], batch.action[:, :REAL])
        gradient = torch.autograd.grad(
            q.mean(dim=-1).sum(), list(combo.networks.critic.parameters())
        )
        gaps[maximize] = step(combo, batch)["gap"]
        after[maximize] = critic_parameters(combo)
    torch.testing.assert_close(gaps[True], gaps[False])  # it is watched all the same
    for one, other, g in zip(after[True], after[False], gradient, strict=True):
        torch.testing.assert_close(one - other, lr * beta * g, rtol=1e-8, atol=1e-12)
        assert g.abs().max() > 1e-3


def test_real_rows_alone_enter_the_datas_q():
    batch = random_batch()
    model, real = slice(REAL, None), slice(REAL)
    gap = step(agent(), batch)["gap"]
    of_model = change_rows(batch, model, action=0.0, reward=5.0, terminal=0.0)
    assert torch.equal(step(agent(), of_model)["gap"], gap)
    of_real = change_rows(batch, real, action=0.0)
    difference = data_q(agent(), batch) - data_q(agent(), of_real)
    torch.testing.assert_close(step(agent(), of_real)["gap"] - gap, difference)
    assert difference.abs().min() > 1e-3


def test_the_bellman_error_is_over_all_rows():
    batch = random_batch()
    error = step(agent(), batch)["bellman_error"]
    for rows in (slice(REAL), slice(REAL, None)):
        assert (step(agent(), change_rows(batch, rows, reward=3.0))["bellman_error"] > error).all()


# --- the conservative value


@pytest.mark.parametrize("importance", ["own_density", "balanced"])
@pytest.mark.parametrize("prior", ["uniform", "previous_policy"])
def test_out_of_distribution_actions_are_pushed_down(float64, prior, importance):
    """By a gradient of their own: the data's term, and so its generalisation, is off."""
    options = {"maximize_dataset_q": False, "prior": prior, "importance": importance}
    batch = random_batch()
    g = torch.Generator().manual_seed(5)
    actions = torch.rand(2, 32, 2, generator=g) * 2 - 1
    q = {}
    for beta in (1e-9, 1.0):
        combo = agent(beta=beta, critic_lr=0.01, **options)
        descend_plainly(combo)
        step(combo, batch)
        with torch.no_grad():
            q[beta] = combo.networks.q(batch.obs, actions)
    assert (q[1.0] < q[1e-9] - 1e-4).all()  # of every seed, critic and state


@pytest.mark.parametrize("variant", ["balanced", "previous_policy"])
def test_actions_of_the_next_state_are_evaluated_at_the_state(variant):
    """Q that depends on the observation alone is its own value: no s' may enter it."""
    combo = blind_to_actions(agent(**COMBO_VARIANTS[variant]))
    batch = random_batch()
    batch = batch._replace(next_obs=batch.next_obs + 100)
    with torch.no_grad():
        q = combo.networks.q(batch.obs, batch.action)
    torch.testing.assert_close(value(combo, batch), q.mean(dim=(1, 2)), rtol=1e-4, atol=1e-4)


def test_actions_of_the_next_state_are_drawn_from_the_policy_there():
    """A Q of the action alone sees s' through pi(.|s') under the uniform prior, else never."""
    batch = random_batch()
    moved = batch._replace(next_obs=batch.next_obs + 100)
    for prior, sees in (("uniform", True), ("previous_policy", False)):
        combo = agent(prior=prior, importance="balanced")
        assert (value(combo, batch) != value(combo, moved)).all() == sees


def test_the_states_of_rho_are_all_rows_or_the_models_alone():
    batch = random_batch()
    real_moved = change_rows(batch, slice(REAL), obs=1.0, next_obs=1.0)
    model_moved = change_rows(batch, slice(REAL, None), obs=1.0, next_obs=1.0)
    mix, model = agent(rho_states="mix"), agent(rho_states="model")
    assert step_noise(mix)[2].shape[1] == 32
    assert step_noise(model)[2].shape[1] == 32 - REAL
    torch.testing.assert_close(value(model, batch), value(model, real_moved))
    for combo, moved in ((mix, real_moved), (mix, model_moved), (model, model_moved)):
        assert ((value(combo, batch) - value(combo, moved)).abs() > 1e-3).all()
    # On model rows that all have one Q, `model` gives that Q.
    combo = blind_to_actions(agent(rho_states="model", importance="balanced"))
    with torch.no_grad():
        q = combo.networks.q(batch.obs, batch.action)[..., REAL:]
    torch.testing.assert_close(value(combo, batch), q.mean(dim=(1, 2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_constant_q_leaves_no_gap_where_the_estimate_is_exact(temperature):
    for variant, shortfall in (
        ("balanced", 0.0),
        ("previous_policy", 0.0),
        ("fixed", temperature * LOG_3),
    ):
        combo = agent(temperature=temperature, **COMBO_VARIANTS[variant])
        with torch.no_grad():
            combo.networks.critic.weights[-1].zero_()
        gap = step(combo)["gap"]
        if shortfall:
            assert (gap >= -shortfall - 1e-5).all()
            assert (gap.abs() > 1e-3).all()
        else:
            torch.testing.assert_close(gap, torch.zeros(2), rtol=0, atol=1e-5)


def test_the_previous_policy_is_the_policy_when_the_epoch_began():
    combo = agent(prior="previous_policy", actor_lr=0.05)

    def value_under(policy, batch, noise):
        """T log mean exp(Q / T) over actions of a policy, with the critics as they are."""
        num_actions = combo.settings.num_action_samples
        with torch.no_grad():
            gaussian = TanhGaussian.from_output(policy(batch.obs))
            q = []
            for m in range(num_actions):
                action, _ = gaussian.sample(noise[2][:, :, 0, m])
                q.append(combo.networks.q(batch.obs, action))
            return torch.stack(q).exp().mean(dim=0).log().mean(dim=(1, 2))

    for epoch in range(2):
        combo.begin_epoch(0.05)
        at_start = deepcopy(combo.networks.actor)
        for n in range(3):
            batch, noise = random_batch(seed=10 * epoch + n), step_noise(combo, 10 * epoch + n)
            expected = value_under(at_start, batch, noise) - data_q(combo, batch)
            current = value_under(combo.networks.actor, batch, noise) - data_q(combo, batch)
            gap = step(combo, batch, noise)["gap"]
            torch.testing.assert_close(gap, expected, rtol=1e-4, atol=1e-5)
            if n > 0:
                assert ((gap - current).abs() > 1e-4).all()


# --- the Bellman backup


def test_backups_differ_by_the_entropy_term():
    """With targets and rewards of 0, the target is the entropy term, or nothing."""
    batch = random_batch()._replace(reward=torch.zeros(2, 32))
    errors = {}
    for backup in ("deterministic", "soft"):
        combo = agent(backup=backup, gamma=0.9)
        with torch.no_grad():
            for parameter in combo.networks.target_critic.parameters():
                parameter.zero_()
            combo.networks.log_alpha_S.copy_(torch.tensor([0.5, -1.0]))
            q = combo.networks.q(batch.obs, batch.action)
            noise = step_noise(combo)
            _, log_prob = combo.networks.policy(batch.next_obs).sample(noise[0])
            alpha = combo.networks.log_alpha_S.exp()[:, None]
            target = -0.9 * (1 - batch.terminal) * alpha * log_prob
        if backup == "deterministic":
            target = torch.zeros_like(target)
        errors[backup] = step(combo, batch, noise)["bellman_error"]
        expected = 0.5 * (q - target[:, None]).square().mean(dim=-1).sum(dim=-1)
        torch.testing.assert_close(errors[backup], expected)
    assert ((errors["soft"] - errors["deterministic"]).abs() > 1e-2).all()
