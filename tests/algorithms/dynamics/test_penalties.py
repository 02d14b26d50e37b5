"""Every penalty against an independent writing in NumPy, and the invariants between them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.dynamics.penalties import PENALTIES, Prediction


def norm(x):
    return float(np.sqrt(np.sum(np.square(x))))


def ensemble_variance(mean, std, member):
    members = range(len(mean))
    return (
        sum(norm(std[e]) for e in members)
        + sum(norm(mean[e]) for e in members)
        - norm(sum(mean[e] for e in members))
    )


def mixture_std(mean, std, member):
    second_moment = np.mean([m**2 + s**2 for m, s in zip(mean, std, strict=True)], axis=0)
    return np.sqrt(np.sum(second_moment - np.mean(mean, axis=0) ** 2))


# One row each: mean and std [E, D], member an index.
REFERENCES = {
    "none": lambda mean, std, member: 0.0,
    "max_std": lambda mean, std, member: max(norm(s) for s in std),
    "max_pairwise_distance": lambda mean, std, member: max(
        norm(a[:-1] - b[:-1]) for a in mean for b in mean
    ),
    "max_center_distance": lambda mean, std, member: max(
        norm(m[:-1] - sum(mean)[:-1] / len(mean)) for m in mean
    ),
    "ensemble_variance": ensemble_variance,
    "member_std": lambda mean, std, member: norm(std[member]),
    "combined": lambda mean, std, member: 0.5 * norm(std[member]) + 0.5 * max(norm(s) for s in std),
    "mixture_std": mixture_std,
}

NO_AXES = st.just(())
sizes = st.integers(1, 5)
few = settings(max_examples=20, deadline=None)


@st.composite
def predictions(draw, leading=NO_AXES):
    members, rows, outputs = draw(sizes), draw(sizes), draw(st.integers(2, 5))
    lead = draw(leading)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([1e-3, 1.0, 1e3]))
    shape = (*lead, members, rows, outputs)
    return Prediction(
        torch.from_numpy(rng.normal(size=shape) * scale),
        torch.from_numpy(np.exp(rng.normal(size=shape)) * scale),
        torch.from_numpy(rng.integers(members, size=(*lead, rows))),
    )


def penalised(name, prediction):
    return PENALTIES[name](prediction).numpy()


@pytest.mark.parametrize("name", PENALTIES)
@few
@given(p=predictions(leading=st.sampled_from([(), (1,), (3,), (2, 3)])))
def test_agrees_with_an_independent_writing(name, p):
    assert name in REFERENCES, f"write a NumPy reference for the penalty {name!r} in REFERENCES"
    result = penalised(name, p)
    mean, std, member = (x.numpy() for x in p)
    assert result.shape == member.shape
    for index in np.ndindex(member.shape):
        *lead, row = index
        at = (*lead, slice(None), row)
        expected = REFERENCES[name](mean[at], std[at], member[index])
        assert result[index] == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", sorted(PENALTIES.keys() - {"none", "member_std"}))
def test_no_member_is_left_out(name):
    """All members count, not only elites: each in turn made extreme moves the penalty."""
    mean, std = torch.zeros(7, 1, 4), torch.ones(7, 1, 4)
    base = PENALTIES[name](Prediction(mean, std, torch.zeros(1, dtype=torch.long)))
    for extreme in range(7):
        shifted, wide = mean.clone(), std.clone()
        shifted[extreme] += 5.0
        wide[extreme] *= 3.0
        changed = PENALTIES[name](Prediction(shifted, wide, torch.zeros(1, dtype=torch.long)))
        assert changed > base


@few
@given(p=predictions())
def test_member_std_is_at_most_combined_is_at_most_max_std(p):
    member, combined, largest = (penalised(k, p) for k in ("member_std", "combined", "max_std"))
    assert (member <= combined).all()
    assert (combined <= largest).all()


@few
@given(p=predictions())
def test_center_distance_is_at_most_pairwise_is_at_most_twice_center(p):
    center, pairwise = penalised("max_center_distance", p), penalised("max_pairwise_distance", p)
    assert (center <= pairwise * (1 + 1e-9)).all()
    assert (pairwise <= 2 * center * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", PENALTIES)
@few
@given(p=predictions())
def test_is_never_negative_even_when_members_agree(name, p):
    assert (penalised(name, p) >= 0).all()
    agreeing = Prediction(
        p.mean[:1].expand_as(p.mean).float(), torch.zeros_like(p.std).float(), p.member
    )
    assert (penalised(name, agreeing) >= 0).all()


@pytest.mark.parametrize("name", ["max_pairwise_distance", "max_center_distance"])
@few
@given(p=predictions())
def test_distances_are_0_for_one_member_and_blind_to_reward_and_to_a_common_shift(name, p):
    alone = Prediction(p.mean[:1], p.std[:1], torch.zeros_like(p.member))
    np.testing.assert_array_equal(penalised(name, alone), 0.0)

    scale = float(p.mean.abs().max())
    reward = p.mean.clone()
    reward[..., -1] *= 10
    shift = torch.linspace(-3, 2, p.mean.shape[-1], dtype=torch.float64) * scale
    for changed in (reward, p.mean + shift):
        np.testing.assert_allclose(
            penalised(name, p._replace(mean=changed)), penalised(name, p), atol=1e-9 * scale
        )


def test_mixture_std_is_the_std_of_samples_from_the_mixture():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(4, 1, 3)), np.exp(rng.normal(size=(4, 1, 3)))
    member = rng.integers(4, size=400_000)
    samples = mean[member, 0] + std[member, 0] * rng.normal(size=(400_000, 3))
    p = Prediction(torch.from_numpy(mean), torch.from_numpy(std), torch.zeros(1, dtype=torch.long))
    assert penalised("mixture_std", p)[0] == pytest.approx(
        np.sqrt(samples.var(axis=0).sum()), rel=0.01
    )
