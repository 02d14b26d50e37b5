"""Where the learned beta settles: a point mass, data of mixed quality, conservative critics.

Six trainings in one stack: two starts of beta times three scales of the rewards. The length is
20,000 steps; `BETA_STEPS=100000 pytest tests/algorithms/test_learned_beta.py` runs the long one,
with a learning rate that moves beta as far.
"""

import itertools
import logging
import math
import os

import pytest
import torch

from algorithms.combo.agent import COMBO
from algorithms.combo.settings import COMBOSettings
from algorithms.sac.agent import Context, RewardScale
from algorithms.sac.networks import SACNetworks
from algorithms.stack.compilation import call_compiled, call_eagerly, can_compile
from algorithms.stack.transitions import Transition, unpack

log = logging.getLogger(__name__)

STEPS = int(os.environ.get("BETA_STEPS", "20000"))
EPOCH = 500
STARTS, SCALES = (0.1, 10.0), (0.1, 1.0, 10.0)
# At the smallest scale rewards are as large as Hopper's, so that Q is large beside the temperature.
BASE = 20.0
SETTINGS = COMBOSettings(
    beta="learned",
    hidden=(16, 16),
    batch_size=32,
    num_action_samples=3,
    importance="balanced",
    gamma=0.95,
    actor_lr=3e-4,
    alpha_lr=3e-4,
    critic_lr=1e-3,
    beta_lr=1e-3 * 20_000 / STEPS,
    beta_warmup_steps=STEPS // 50,
)


def advance(state, action):
    """A mass on a line, pushed; it is paid for being near the middle."""
    position, velocity = state.unbind(-1)
    velocity = (velocity + 0.2 * action[..., 0]).clamp(-1, 1)
    moved = position + 0.2 * velocity
    held = moved.clamp(-2, 2)
    velocity = torch.where(held == moved, velocity, 0.0)
    reward = BASE * (1 - held.square() - 0.1 * action[..., 0].square())
    return torch.stack([held, velocity], dim=-1), reward


def mixed_data(generator):
    """100 controllers, a third of which push the wrong way, two episodes of 50 steps each."""
    gains = torch.rand(100, 2, generator=generator) * torch.tensor([1.0, 1.5])
    gains[:33] *= -0.3
    steps = []
    for t in range(100):
        if t % 50 == 0:
            position = torch.rand(100, generator=generator) * 4 - 2
            state = torch.stack([position, torch.zeros(100)], dim=-1)
        noise = 0.15 * torch.randn(100, 1, generator=generator)
        action = (noise - (gains * state).sum(-1, keepdim=True)).clamp(-0.999, 0.999)
        next_state, reward = advance(state, action)
        steps.append(Transition(state, action, reward, next_state, torch.zeros(100)))
        state = next_state
    return Transition(*map(torch.cat, zip(*steps, strict=True)))


@torch.no_grad()
def model_rows(agent, data, generator):
    """Five steps with the current policies in a slightly wrong model, `[S, n, W]`."""
    seeds = len(agent.log_beta_S)
    state = data.obs[torch.randint(data.rows, (seeds, 500), generator=generator)]
    rows = []
    for _ in range(5):
        noise = torch.randn(seeds, 500, 1, generator=generator)
        action, _ = agent.networks.policy(state).sample(noise)
        next_state, reward = advance(state, action)
        next_state = next_state + 0.02 * torch.randn(next_state.shape, generator=generator)
        rows.append(Transition(state, action, reward, next_state, torch.zeros_like(reward)).pack())
        state = next_state
    return torch.cat(rows, dim=1)


def learned_betas():
    """Beta in its own unit after every step, `[steps, S]`, and the starts and scales of the S."""
    generator = torch.Generator().manual_seed(0)
    data = mixed_data(generator)
    cases = list(itertools.product(STARTS, SCALES))
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(cases))]
    networks = SACNetworks(2, 1, SETTINGS, generators)
    rms, max_q = RewardScale.of(data.reward, SETTINGS.gamma)
    scale_S = torch.tensor([scale for _, scale in cases])
    call = call_compiled if can_compile("cpu") else call_eagerly
    scale = RewardScale(rms * scale_S, max_q * scale_S)
    agent = COMBO(Context(networks, SETTINGS, scale, call=call))
    with torch.no_grad():
        agent.log_beta_S.copy_(torch.tensor([math.log(start) for start, _ in cases]))
    real_NW, seed_S1 = data.pack(), torch.arange(len(cases))[:, None]
    betas = []
    for _ in range(STEPS // EPOCH):
        agent.begin_epoch(SETTINGS.actor_lr)
        model_SNW = model_rows(agent, data, generator)
        shape = (EPOCH, len(cases), SETTINGS.batch_size // 2)
        real = torch.randint(len(real_NW), shape, generator=generator)
        model = torch.randint(model_SNW.shape[1], shape, generator=generator)
        noise = agent.draw_noise(generators, EPOCH)
        for n in range(EPOCH):
            rows = torch.cat([real_NW[real[n]], model_SNW[seed_S1, model[n]]], dim=1)
            batch = unpack(rows, 2, 1)
            batch = batch._replace(reward=batch.reward * scale_S[:, None])
            agent.gradient_step(batch, tuple(x[:, n] for x in noise))
            agent.steps += 1
            betas.append(agent.log_beta_S.detach().exp())
    return torch.stack(betas), cases


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_learned_beta_settles_inside_its_clamp_whatever_its_start_and_the_rewards_scale():
    betas, cases = learned_betas()
    last = betas[-STEPS // 5 :]
    told = [
        f"start {start} scale {scale}: {low:.3f} to {high:.3f}, mean {mean:.3f}"
        for (start, scale), low, high, mean in zip(
            cases, last.amin(dim=0), last.amax(dim=0), last.mean(dim=0), strict=True
        )
    ]
    log.info("beta in the last fifth:\n%s", "\n".join(told))  # seen with --log-cli-level=INFO
    assert (last.amin(dim=0) > 1.2 * SETTINGS.beta_min).all(), told
    assert (last.amax(dim=0) < SETTINGS.beta_max / 1.2).all(), told
    # Both starts end in the same region, far from where at least one of them began.
    low, high = last.mean(dim=0).view(len(STARTS), len(SCALES))
    assert ((low / high).log().abs() < math.log(4)).all()
