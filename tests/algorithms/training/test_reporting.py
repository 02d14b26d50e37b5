"""Metrics of an epoch, by seed and in the mean."""

import math

import pytest
import torch

from algorithms.training.reporting import report_epoch


def statistics(*diverged):
    return {"critic_loss": torch.tensor([1.0, 3.0]), "diverged": torch.tensor(diverged)}


def scores(*values):
    return {"normalized_score": torch.tensor(values), "episode_return": torch.tensor(values) * 10}


def test_seeds_are_named_by_their_numbers_and_means_are_over_them(offline_training):
    told = report_epoch(offline_training((3, 8)), 1, statistics(0.0, 0.0), scores(4.0, 8.0))
    assert told["seed"].keys() == {"3", "8"}
    assert told["seed"]["8"] == {
        "critic_loss": 3.0,
        "diverged": 0.0,
        "normalized_score": 8.0,
        "episode_return": 80.0,
        "run_score": 8.0,
    }
    assert told["mean"]["critic_loss"] == 2.0
    assert told["mean"]["run_score"] == 6.0


def test_an_evaluation_is_repeated_until_the_next_and_none_is_made_up(offline_training):
    training = offline_training((3, 8), evaluation_interval=2)
    assert "run_score" not in report_epoch(training, 1, statistics(0.0, 0.0), None)["mean"]
    report_epoch(training, 2, statistics(0.0, 0.0), scores(4.0, 8.0))
    third = report_epoch(training, 3, statistics(0.0, 0.0), None)["seed"]["3"]
    assert third["normalized_score"] == third["run_score"] == 4.0
    assert "episode_return" not in third
    fourth = report_epoch(training, 4, statistics(0.0, 0.0), scores(6.0, 8.0))["seed"]["3"]
    assert (fourth["normalized_score"], fourth["run_score"]) == (6.0, pytest.approx(5.0))


def test_a_diverged_seed_has_no_numbers_and_does_not_hide_the_others(offline_training):
    told = report_epoch(offline_training((3, 8)), 1, statistics(0.0, 1.0), scores(4.0, 8.0))
    assert told["seed"]["8"]["diverged"] == 1.0
    assert all(math.isnan(v) for name, v in told["seed"]["8"].items() if name != "diverged")
    assert told["mean"]["critic_loss"] == 1.0
    assert told["mean"]["run_score"] == 4.0
