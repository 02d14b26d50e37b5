"""One policy of a stack as a module, and as a file that needs torch alone."""

import subprocess
import sys

import pytest
import torch

from algorithms.sac.policy import DeterministicPolicy, Policy, export_policy
from algorithms.stack.distributions import TanhGaussian

OBS = torch.linspace(-3, 3, 21).view(7, 3)


@pytest.mark.parametrize("position", [0, 1])
def test_a_policy_is_the_actor_at_its_position(offline_training, position):
    training = offline_training((3, 8))
    training.train_epoch()
    with torch.no_grad():
        expected = training.networks.actor(OBS.expand(2, 7, 3))[position]
        for policy in (
            Policy.from_stack(training.networks.actor, position),
            Policy.from_state(training.state_dict(), position),
        ):
            torch.testing.assert_close(policy(OBS), expected)


def test_a_policy_keeps_its_weights_while_training_goes_on(offline_training):
    training = offline_training((3, 8))
    policies = [
        Policy.from_stack(training.networks.actor, 0),
        Policy.from_state(training.state_dict(), 0),
    ]
    with torch.no_grad():
        before = [policy(OBS) for policy in policies]
    training.train_epoch()
    with torch.no_grad():
        for policy, output in zip(policies, before, strict=True):
            assert torch.equal(policy(OBS), output)
        assert not torch.equal(Policy.from_stack(training.networks.actor, 0)(OBS), before[0])


@pytest.mark.slow
def test_an_exported_policy_needs_torch_alone_and_acts_deterministically(
    offline_training, tmp_path
):
    policy = Policy.from_stack(offline_training((3, 8)).networks.actor, 1)
    export_policy(DeterministicPolicy(policy), tmp_path / "policy.pt2")
    scaled = DeterministicPolicy(policy, -2.0, 4.0)
    export_policy(scaled, tmp_path / "scaled.pt2")
    code = (
        "import sys, torch\n"
        "policy = torch.export.load('policy.pt2').module()\n"
        "obs = torch.linspace(-3, 3, 21).view(7, 3)\n"
        "scaled = torch.export.load('scaled.pt2').module()\n"
        "policy(obs).numpy()\n"  # an action has no gradient
        "torch.save([policy(obs), policy(obs[:1]), scaled(obs)], 'actions.pt')\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('algorithms', 'ray')]\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    seven, one, in_units = torch.load(tmp_path / "actions.pt")
    with torch.no_grad():
        expected = TanhGaussian.from_output(policy(OBS)).mode()
    torch.testing.assert_close(seven, expected)
    torch.testing.assert_close(one, expected[:1])
    torch.testing.assert_close(in_units, -2.0 + 6.0 * (expected + 1.0) / 2.0)
    assert not seven.requires_grad
