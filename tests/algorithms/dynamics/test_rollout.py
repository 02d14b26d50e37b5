"""Model rollouts on ensembles whose dynamics are known."""

import pytest
import torch

from algorithms.dynamics import rollout as rollout_module
from algorithms.dynamics.ensemble import DynamicsEnsemble
from algorithms.dynamics.penalties import PENALTIES, Prediction
from algorithms.dynamics.rollout import model_return, rollout
from algorithms.settings import EnsembleSettings
from algorithms.stack.distributions import TanhGaussian
from algorithms.stack.randomness import randn, seed_generators
from algorithms.stack.transitions import unpack

OBS, ACTION, STARTS, LENGTH = 2, 2, 10, 4
SETTINGS = EnsembleSettings(num_ensemble=4, num_elites=2)
ELITES = torch.tensor([[3, 1], [0, 3]])


class KnownEnsemble(DynamicsEnsemble):
    """Member m predicts s' = s + a + m and r = 10 m + s_0; its std is (m + 1) `std_scale`."""

    def __init__(self, num_seeds=2, std_scale=0.0):
        generators = [torch.Generator() for _ in range(num_seeds)]
        super().__init__(OBS, ACTION, SETTINGS, generators)
        self.elites_SK.copy_(ELITES[:num_seeds])
        self.std_scale = std_scale

    def predict(self, obs_SBO, action_SBA, member_SB):
        m = torch.arange(4.0).view(1, 4, 1)
        delta = action_SBA[:, None] + m[..., None]
        reward = 10 * m + obs_SBO[:, None, :, 0]
        mean = torch.cat([delta, reward[..., None]], dim=-1)
        std = (m[..., None] + 1) * self.std_scale
        return Prediction(mean, std.expand_as(mean), member_SB)


def quiet_policy(obs):
    """Deterministic: a = tanh(-s / 2)."""
    return TanhGaussian(-obs / 2, torch.full_like(obs, -torch.inf))


def noisy_policy(obs):
    return TanhGaussian(-obs / 2, torch.zeros_like(obs))


def never(next_obs):
    return torch.zeros(next_obs.shape[:-1], dtype=torch.bool)


def starts(num_seeds=2, num_starts=STARTS):
    return randn(seed_generators(7, range(num_seeds)), num_starts, OBS)


def roll(ensemble, start, seeds=(0, 1), policy=quiet_policy, **changes):
    """A rollout, and its rows and keep flags as `[S, length, starts]`."""
    options = {
        "length": LENGTH,
        "penalty": PENALTIES["none"],
        "penalty_coef_S": torch.zeros(start.shape[0]),
        "termination_fn": never,
    }
    options |= changes
    result = rollout(ensemble, policy, start, seed_generators(1, seeds), **options)
    shape = (start.shape[0], options["length"], start.shape[1])
    rows = unpack(result.rows_SNW.view(*shape, -1), OBS, ACTION)
    return result, rows, result.keep_SN.view(shape)


def member_of(rows):
    return ((rows.reward - rows.obs[..., 0]) / 10).round().long()


def test_steps_follow_the_known_dynamics_from_the_start_states_on():
    start = starts()
    result, rows, keep = roll(KnownEnsemble(), start)
    assert keep.all()
    assert torch.equal(rows.obs[:, 0], start)
    assert torch.equal(rows.obs[:, 1:], rows.next_obs[:, :-1])
    assert torch.equal(rows.action, torch.tanh(-rows.obs / 2))
    member = member_of(rows)
    assert torch.equal(rows.next_obs, rows.obs + (rows.action + member[..., None]))
    assert torch.equal(rows.reward, 10.0 * member + rows.obs[..., 0])
    assert not rows.terminal.any()
    torch.testing.assert_close(result.reward_S, rows.reward.mean(dim=(1, 2)))
    assert result.penalty_S.tolist() == result.terminated_S.tolist() == [0, 0]


def test_every_row_draws_its_own_elite_among_all_elites_and_no_other_member():
    _, rows, _ = roll(KnownEnsemble(), starts(num_starts=200))
    member = member_of(rows)
    for s in range(2):
        counts = torch.bincount(member[s].flatten(), minlength=4)
        assert set(counts.nonzero().flatten().tolist()) == set(ELITES[s].tolist())
        assert counts[ELITES[s]].min() > 0.4 * counts.sum()
    # Redrawn in every step: a rollout that kept its member is as rare as chance has it.
    assert (member == member[:, :1]).all(dim=1).float().mean() < 0.3


@pytest.mark.parametrize("coef", [0.0, 0.5, 3.0])
def test_reward_is_lowered_by_coefficient_times_penalty_and_nothing_else_changes(coef):
    def penalty(p):
        return p.mean[:, 0, :, 0].abs() + p.member  # depends on the row and on its member

    start, ensemble = starts(), KnownEnsemble(std_scale=0.1)
    plain, plain_rows, _ = roll(ensemble, start, policy=noisy_policy)
    result, rows, _ = roll(
        ensemble,
        start,
        policy=noisy_policy,
        penalty=penalty,
        penalty_coef_S=torch.full((2,), coef),
    )
    assert torch.equal(rows.next_obs, plain_rows.next_obs)
    delta = (plain_rows.reward - rows.reward) / coef if coef else torch.zeros(())
    # Member 0's mean delta is the action itself.
    base = rows.action[..., 0].abs()
    if coef:
        member = (delta - base).round()
        torch.testing.assert_close(delta, base + member, rtol=0, atol=1e-4)
        assert set(member[0].flatten().tolist()) == {1.0, 3.0}
        torch.testing.assert_close(result.penalty_S, delta.mean(dim=(1, 2)), rtol=0, atol=1e-4)
    else:
        assert torch.equal(rows.reward, plain_rows.reward)
    torch.testing.assert_close(result.reward_S, plain.reward_S)  # before the penalty


def test_rollouts_end_with_the_row_that_terminates():
    def termination(next_obs):
        return next_obs[..., 0] > 3

    start = starts(num_starts=50)
    _, free, _ = roll(KnownEnsemble(), start)
    result, rows, keep = roll(KnownEnsemble(), start, termination_fn=termination)
    done = free.next_obs[..., 0] > 3
    ended_before = (done.cumsum(dim=1) - done.long()) > 0
    assert torch.equal(keep, ~ended_before)
    assert torch.equal(rows.terminal[keep], done.float()[keep])
    assert {int(n) for n in keep.sum(dim=1).unique()} == {1, 2, 3, 4}  # short and whole ones
    torch.testing.assert_close(result.terminated_S, done.any(dim=1).float().mean(dim=1))
    for s in range(2):
        assert result.reward_S[s] == pytest.approx(float(rows.reward[s][keep[s]].mean()), rel=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_predictions_that_are_not_finite_are_dropped_with_all_that_follows(value):
    class Broken(KnownEnsemble):
        def predict(self, obs_SBO, action_SBA, member_SB):
            p = super().predict(obs_SBO, action_SBA, member_SB)
            broken = (obs_SBO[:, None, :, 0] > 2).unsqueeze(-1)
            return p._replace(mean=torch.where(broken, value, p.mean))

    start = starts(num_starts=50)
    result, rows, keep = roll(Broken(), start)
    _, free, _ = roll(KnownEnsemble(), start)
    broken = free.obs[..., 0] > 2
    assert torch.equal(keep, broken.cumsum(dim=1) == 0)
    assert 0 < keep.sum() < keep.numel()
    for kept, expected in zip(rows, free, strict=True):
        assert torch.equal(kept[keep], expected[keep])
    assert result.reward_S.isfinite().all()
    assert result.penalty_S.isfinite().all()


@pytest.mark.parametrize("chunk", [1, 3, 10, 11])
def test_chunks_change_nothing_but_the_order_of_rows(monkeypatch, chunk):
    def termination(next_obs):
        return next_obs[..., 0] > 3

    def kept_rows(size):
        monkeypatch.setattr(rollout_module, "CPU_CHUNK", size)
        result, _, _ = roll(
            KnownEnsemble(std_scale=0.1),
            starts(),
            policy=noisy_policy,
            penalty=PENALTIES["member_std"],
            penalty_coef_S=torch.ones(2),
            termination_fn=termination,
        )
        rows = [sorted(result.rows_SNW[s][result.keep_SN[s]].tolist()) for s in range(2)]
        return rows, torch.stack([result.reward_S, result.penalty_S, result.terminated_S])

    (rows, statistics), (expected, expected_statistics) = kept_rows(chunk), kept_rows(1000)
    assert rows == expected
    torch.testing.assert_close(statistics, expected_statistics)


def test_seeds_draw_alike_alone_and_in_company():
    start, options = starts(), {"policy": noisy_policy}
    together, _, _ = roll(KnownEnsemble(std_scale=0.1), start, (5, 9), **options)
    alone, _, _ = roll(KnownEnsemble(1, std_scale=0.1), start[:1], (5,), **options)
    other, _, _ = roll(KnownEnsemble(1, std_scale=0.1), start[:1], (9,), **options)
    assert torch.equal(together.rows_SNW[0], alone.rows_SNW[0])
    assert not torch.equal(alone.rows_SNW, other.rows_SNW)


def test_outcomes_scatter_with_the_std_of_the_rows_own_member():
    start = starts(num_starts=4000)
    # The reward's noise leaves the member readable: its means are 10 apart.
    _, rows, _ = roll(KnownEnsemble(std_scale=0.1), start, length=1)
    member = member_of(rows)[:, 0]
    noise = (rows.next_obs - rows.obs - rows.action)[:, 0] - member[..., None]
    for s in range(2):
        for m in ELITES[s].tolist():
            own = noise[s][member[s] == m]
            assert float(own.mean()) == pytest.approx(0, abs=0.02 * (m + 1))
            assert float(own.std()) == pytest.approx(0.1 * (m + 1), rel=0.05)


# --- only the member that produced the row

OWN_MEMBER_ONLY = sorted(name for name, row in PENALTIES.items() if row.own_member_only)


def one_member_penalty(p):
    """Of any prediction: something of the row's own member, its mean included."""
    index = p.member[:, None, :, None].expand(-1, 1, -1, OBS + 1)
    return (p.mean.gather(1, index) + 3 * p.std.gather(1, index)).norm(dim=-1).squeeze(1)


@pytest.mark.parametrize("chunk", [3, 1000])
@pytest.mark.parametrize("penalty", [*OWN_MEMBER_ONLY, "mine"])
def test_leaving_the_other_members_out_changes_nothing(monkeypatch, penalty, chunk):
    function = one_member_penalty if penalty == "mine" else PENALTIES[penalty]
    ensemble = DynamicsEnsemble(OBS, ACTION, SETTINGS, seed_generators(3, (0, 1)))
    ensemble.elites_SK.copy_(ELITES)
    with torch.no_grad():
        ensemble.set_input_statistics(torch.randn(2, 4) * 0.1, torch.rand(2, 4) + 0.5)
    options = {
        "policy": noisy_policy,
        "penalty": function,
        "penalty_coef_S": torch.tensor([0.5, 2.0]),
        "termination_fn": lambda next_obs: next_obs[..., 0] > 2,
        "quantiles": (0.5,),
    }
    start = starts(num_starts=41)
    everyone, _, keep = roll(ensemble, start, **options)
    monkeypatch.setattr(rollout_module, "CPU_CHUNK", chunk)
    own, _, own_keep = roll(ensemble, start, own_member_only=True, **options)
    assert torch.equal(own_keep, keep)
    assert 0 < keep.sum() < keep.numel()
    for one, other in zip(own, everyone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_said_to_see_their_own_member_alone_are_those_that_do(name):
    generator = torch.Generator().manual_seed(0)
    mean, std = (torch.randn(1, 4, 50, 3, generator=generator) for _ in range(2))
    std = std.exp()
    member = torch.randint(4, (1, 50), generator=generator)
    everyone = PENALTIES[name](Prediction(mean, std, member))
    index = member[:, None, :, None].expand(-1, 1, -1, 3)
    alone = Prediction(mean.gather(1, index), std.gather(1, index), torch.zeros_like(member))
    assert torch.allclose(PENALTIES[name](alone), everyone) == PENALTIES[name].own_member_only


def test_every_elite_produces_the_same_share_of_every_step():
    _, rows, _ = roll(KnownEnsemble(), starts(num_starts=41))
    member = member_of(rows)
    for s in range(2):
        for t in range(LENGTH):
            counts = torch.bincount(member[s, t], minlength=4)[ELITES[s]]
            assert sorted(counts.tolist()) == [20, 21]


# --- whole episodes


def steady_ensemble(changes):
    """Seed s moves by (`changes[s]`, 0) in every step and is paid 2, whatever the member."""
    small = {"dynamics_hidden": (4,), "dynamics_weight_decay": (0.0, 0.0)}
    generators = [torch.Generator() for _ in changes]
    ensemble = DynamicsEnsemble(OBS, ACTION, SETTINGS.model_copy(update=small), generators)
    with torch.no_grad():
        for parameter in ensemble.network.parameters():
            parameter.zero_()
        for s, change in enumerate(changes):
            ensemble.network.biases[-1][s, ..., : OBS + 1] = torch.tensor([change, 0.0, 2.0])
        ensemble.min_log_var_SD.fill_(-61)
        ensemble.max_log_var_SD.fill_(-60)
    return ensemble


def episodes(changes, length):
    """Mean return from 0 and -3, over once above 4.5; and the number of steps it took."""
    steps = 0

    def policy(obs):
        nonlocal steps
        steps += 1
        return torch.zeros(*obs.shape[:-1], ACTION)

    returns = model_return(
        steady_ensemble(changes),
        policy,
        torch.tensor([[0.0, 0.0], [-3.0, 0.0]]),
        seed_generators(1, range(len(changes))),
        length=length,
        termination_fn=lambda next_obs: next_obs[..., 0] > 4.5,
    )
    return returns.tolist(), steps


def test_whole_episodes_that_are_over_are_not_played_on():
    """They last 5 and 8 steps at a change of 1, 3 and 4 at a change of 2."""
    just_enough, _ = episodes([1.0, 2.0], 8)
    returns, steps = episodes([1.0, 2.0], 2000)
    assert just_enough == returns == [13.0, 7.0]
    assert steps <= 200  # it need not look in every step


def test_whole_episodes_go_on_while_any_does():
    """One seed never arrives."""
    assert episodes([1.0, 0.0], 120) == ([13.0, 240.0], 120)
