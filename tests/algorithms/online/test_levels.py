"""Choosing and packing the levels of a training."""

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from algorithms.data.bundled.recipe import PolicySet, equal, policies_folder, policy_set
from algorithms.data.bundled.source import make_recipe
from algorithms.data.catalog import Bundled
from algorithms.environments.episodes import Evaluator
from algorithms.errors import UserError
from algorithms.identity import file_sha256
from algorithms.online.levels import PACKING_EVALUATION, choose_levels, pack_levels, untrained_actor
from algorithms.online.rollout import load_policy
from algorithms.online.training import OnlineSettings


def mean_return(path: Path) -> float:
    networks = load_policy(path, "Hopper-v4")
    with Evaluator("Hopper-v4", 1, 2) as evaluator:
        return evaluator.returns(lambda obs: networks.policy(obs).mode(), PACKING_EVALUATION).mean()


def records(*returns: float) -> list[dict]:
    return [
        {
            "name": f"level-{n}",
            "steps": 20_000 * n,
            "gradient_steps": 10_000 * n,
            "return_mean": value,
        }
        for n, value in enumerate(returns, 1)
    ]


def test_medium_has_about_a_third_of_the_best():
    #                               medium             expert  late collapse
    chosen = choose_levels(records(100, 400, 900, 1300, 3000, 1000))
    assert chosen["expert"]["return_mean"] == 3000
    assert chosen["medium"]["return_mean"] == 900
    assert list(chosen) == ["step-0020000", "step-0040000", "medium", "expert"]


def test_a_collapse_after_two_thirds_is_not_medium():
    chosen = choose_levels(records(100, 800, 2500, 1000, 3000))
    assert chosen["medium"]["return_mean"] == 800


def test_at_most_eight_levels_lead_to_medium_spread_over_the_way():
    chosen = choose_levels(records(*range(1, 101), 1000, 3000))
    steps = [record["steps"] for record in chosen.values()]
    assert steps == sorted(steps)
    assert len(chosen) == 10
    assert chosen["medium"]["return_mean"] == 1000
    gaps = [b - a for a, b in pairwise(steps[:8])]
    assert max(gaps) - min(gaps) <= 20_000


def test_a_repeated_level_of_a_resumed_training_counts_once():
    twice = records(100, 1000, 3000) + records(100, 1100)
    assert choose_levels(twice)["medium"]["return_mean"] == 1100


@pytest.mark.parametrize("returns", [[], [100], [300, 200]])
def test_too_short_a_training(returns):
    with pytest.raises(UserError, match="let it run on"):
        choose_levels(records(*returns))


def test_what_is_packed_is_what_is_measured(tmp_path):
    folder, out = tmp_path / "training", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    (out / "stale.safetensors").touch()
    levels = records(100, 1000, 3000)
    for n, record in enumerate(levels, 1):
        save_file(dict(untrained_actor("Hopper-v4", n)), folder / f"{record['name']}.safetensors")
    (folder / "levels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in levels))
    torch.save({"settings": asdict(OnlineSettings(seed=7))}, folder / "checkpoint.pt")

    packed = pack_levels(folder, out, episodes=2)

    assert PolicySet.model_validate_json((out / "policies.json").read_text()) == packed
    assert packed.training["seed"] == 7
    assert list(packed.levels) == ["random", "step-0020000", "medium", "expert"]
    assert {path.name for path in out.glob("*.safetensors")} == {
        level.file for level in packed.levels.values()
    }
    for name, level in packed.levels.items():
        assert file_sha256(out / level.file) == level.sha256
        stored = load_file(out / level.file)
        assert {value.dtype for value in stored.values()} == {torch.float16}
        assert level.return_mean == pytest.approx(mean_return(out / level.file)), name
    start = load_file(out / "random.safetensors")
    for key, value in untrained_actor("Hopper-v4", 7).items():
        torch.testing.assert_close(start[key].float(), value, rtol=1e-3, atol=1e-4)


def test_the_package_ships_less_than_3_mb_and_states_the_truth_about_each_level():
    folder, packed = policies_folder("hopper"), policy_set("hopper")
    files = [path for path in folder.iterdir() if path.name.endswith(".safetensors")]
    assert sum(len(path.read_bytes()) for path in folder.iterdir()) < 3e6
    assert {path.name for path in files} == {level.file for level in packed.levels.values()}
    assert packed.levels["random"].normalized_score < 10
    medium, expert = packed.levels["medium"], packed.levels["expert"]
    assert medium.return_mean < 0.67 * expert.return_mean
    recipe = make_recipe(Bundled("Hopper-v4", "hopper", equal("expert")), 1000)
    assert recipe.parts[0].sha256 == expert.sha256
