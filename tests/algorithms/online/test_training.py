"""Online SAC, which makes the policies behind the bundled data."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from algorithms.errors import UserError
from algorithms.online.training import OnlineSettings, train_online

SETTINGS = OnlineSettings(
    total_steps=400, learning_starts=200, level_every=200, level_episodes=2, batch_size=16
)


def levels(folder):
    return [json.loads(line) for line in (folder / "levels.jsonl").read_text().splitlines()]


def test_levels_are_written_on_the_way_and_a_training_continues(tmp_path):
    train_online(SETTINGS, tmp_path)
    first, second = levels(tmp_path)
    assert (first["steps"], first["gradient_steps"]) == (200, 0)
    assert (second["steps"], second["gradient_steps"]) == (400, 100)  # one for two steps
    before = load_file(tmp_path / f"{first['name']}.safetensors")
    after = load_file(tmp_path / f"{second['name']}.safetensors")
    assert all(not torch.equal(before[name], after[name]) for name in before)

    train_online(replace(SETTINGS, total_steps=600), tmp_path)
    assert [(line["steps"], line["gradient_steps"]) for line in levels(tmp_path)] == [
        (200, 0),
        (400, 100),
        (600, 200),
    ]


def test_a_folder_of_another_training_is_refused(tmp_path):
    train_online(SETTINGS, tmp_path)
    with pytest.raises(UserError, match="other settings"):
        train_online(replace(SETTINGS, seed=1), tmp_path)
