"""Gradient steps per second of MOPO, stacked, beside a plain PyTorch SAC loop of the same sizes.

    python tests/benchmarks/gradient_steps.py [--threads 1] [--device cpu] [--json]

Each row is the median over interleaved rounds of one run, so that a slow phase of
the machine touches all rows alike; compare the ratios, not the absolute numbers.
`MOPO` is what one epoch does apart from rollouts and evaluation: it draws batches
from the data and the model buffer, and takes `algorithms.sac.gradient_step`s. The
plain loop does the same for one seed with `torch.nn.Sequential` and unfused Adam.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.offline import NETWORK_STREAM, OfflineTraining
from algorithms.randomness import seed_generators
from algorithms.sac import LOG_STD_BOUNDS, SACNetworks
from algorithms.settings import EnsembleSettings, MOPOSettings
from algorithms.terminations import hopper
from algorithms.transitions import Transition

OBS, ACTION, BATCH, ROWS = 11, 3, 256, 10_000  # Hopper's sizes


def random_transitions(rows: int) -> Transition:
    return Transition(
        torch.randn(rows, OBS),
        torch.rand(rows, ACTION) * 2 - 1,
        torch.randn(rows),
        torch.randn(rows, OBS),
        torch.zeros(rows),
    )


def stacked_mopo(num_seeds: int, device: str) -> Callable[[int], None]:
    """Runs a number of gradient steps of all seeds."""
    seeds = range(num_seeds)
    settings = MOPOSettings(rollout_batch_size=ROWS, rollout_length=1)
    small = EnsembleSettings(dynamics_hidden=(8,), dynamics_weight_decay=(0.0, 0.0))
    training = OfflineTraining(
        SACNetworks(OBS, ACTION, settings, seed_generators(NETWORK_STREAM, seeds)),
        random_transitions(ROWS),
        DynamicsEnsemble(OBS, ACTION, small, seed_generators(0, seeds)),
        settings,
        seeds,
        hopper,
        device,
    )
    rows = random_transitions(num_seeds * ROWS).pack().view(num_seeds, ROWS, -1).to(device)
    training.buffer.add(rows, torch.ones(num_seeds, ROWS, dtype=torch.bool, device=device))

    def run(steps: int) -> None:
        training.settings = settings.model_copy(update={"gradient_steps_per_epoch": steps})
        for batch, noise in training._batches(settings.real_rows):
            training._gradient_step(batch, noise)

    return run


def plain_sac(device: str) -> Callable[[int], None]:
    """SAC as one would write it for one seed, on the same batches of 256."""

    def mlp(inputs: int, outputs: int) -> nn.Sequential:
        layers = (nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        return nn.Sequential(*layers, nn.Linear(256, outputs)).to(device)

    actor = mlp(OBS, 2 * ACTION)
    critics = nn.ModuleList([mlp(OBS + ACTION, 1) for _ in range(2)])
    targets = nn.ModuleList([mlp(OBS + ACTION, 1) for _ in range(2)])
    targets.load_state_dict(critics.state_dict())
    log_alpha = torch.zeros((), device=device, requires_grad=True)
    actor_optimizer = torch.optim.Adam(actor.parameters(), 1e-4)
    critic_optimizer = torch.optim.Adam(critics.parameters(), 3e-4)
    alpha_optimizer = torch.optim.Adam([log_alpha], 1e-4)
    data = random_transitions(ROWS).to(device)

    def act(obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = actor(obs).chunk(2, dim=-1)
        normal = torch.distributions.Normal(mean, log_std.clamp(*LOG_STD_BOUNDS).exp())
        u = normal.rsample()
        correction = 2 * (0.6931 - u - nn.functional.softplus(-2 * u))
        return torch.tanh(u), (normal.log_prob(u) - correction).sum(-1)

    def q(networks: nn.ModuleList, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        inputs = torch.cat([obs, action], dim=-1)
        return torch.stack([network(inputs).squeeze(-1) for network in networks])

    def run(steps: int) -> None:
        for _ in range(steps):
            index = torch.randint(ROWS, (BATCH,), device=device)
            batch = Transition(*(x[index] for x in data))
            alpha = log_alpha.exp().detach()
            with torch.no_grad():
                next_action, next_log_prob = act(batch.next_obs)
                value = q(targets, batch.next_obs, next_action).amin(0) - alpha * next_log_prob
                target = batch.reward + 0.99 * (1 - batch.terminal) * value
            critic_loss = (q(critics, batch.obs, batch.action) - target).square().mean(-1).sum()
            critic_optimizer.zero_grad()
            critic_loss.backward()
            critic_optimizer.step()
            action, log_prob = act(batch.obs)
            actor_loss = (alpha * log_prob - q(critics, batch.obs, action).amin(0)).mean()
            actor_optimizer.zero_grad()
            actor_loss.backward()
            actor_optimizer.step()
            alpha_loss = -(log_alpha * (log_prob.detach() - ACTION)).mean()
            alpha_optimizer.zero_grad()
            alpha_loss.backward()
            alpha_optimizer.step()
            with torch.no_grad():
                pairs = zip(targets.parameters(), critics.parameters(), strict=True)
                for target_parameter, parameter in pairs:
                    target_parameter.lerp_(parameter, 0.005)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=100, help="per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    programs = {
        "plain PyTorch SAC": (plain_sac(options.device), 1),
        "MOPO S=1": (stacked_mopo(1, options.device), 1),
        "MOPO S=5": (stacked_mopo(5, options.device), 5),
    }
    rates: dict[str, list[float]] = {name: [] for name in programs}
    for round_number in range(options.rounds + 1):
        for name, (program, seeds) in programs.items():
            begin = time.perf_counter()
            program(options.steps)
            if options.device == "cuda":
                torch.cuda.synchronize()
            if round_number > 0:  # the first is the warm-up
                rates[name].append(seeds * options.steps / (time.perf_counter() - begin))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    plain = medians["plain PyTorch SAC"]
    if options.json:
        print(json.dumps({"steps_per_second": rates, "threads": options.threads}))
        return
    print(f"{options.device}, {options.threads} threads, batch {BATCH}, 2 x 256; steps/s")
    for name, value in medians.items():
        spread = f"{min(rates[name]):.0f}-{max(rates[name]):.0f}"
        print(f"{name:18} {value:7.1f}  ({spread})  ratio {value / plain:.2f}")


if __name__ == "__main__":
    main()
