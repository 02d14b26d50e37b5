"""The policies behind the bundled data: how they are trained, chosen and packed.

    python -m algorithms.online.levels train FOLDER --env Hopper-v4 --steps 1000000
    python -m algorithms.online.levels pack FOLDER --out algorithms/data/bundled/policies/hopper

`train` continues where an earlier call stopped. `pack` chooses levels from what `train` has left
in FOLDER so far, measures each anew and writes them to the package's folder of that robot.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from algorithms.data.bundled.recipe import Level, PolicySet
from algorithms.environments.episodes import Evaluator
from algorithms.environments.table import ENVIRONMENTS, normalized_score
from algorithms.errors import UserError
from algorithms.online.rollout import load_policy
from algorithms.online.training import OnlineSettings, train_online
from algorithms.sac.networks import SACNetworks
from algorithms.settings import SACSettings

log = logging.getLogger(__name__)

# Index of the evaluation that measures packed levels. Training chose the levels by
# evaluations with other indices, so the measurement does not inherit the choice's luck.
PACKING_EVALUATION = 0x9AC4ED
# Levels between the untrained and the medium one: the breadth of a replay buffer at
# 140 kB each (float16).
LEVELS_ALONG_THE_WAY = 8


def choose_levels(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name the levels to ship, of the lines of `levels.jsonl`; the untrained one is not among them.

    `expert` is the level of the highest return. `medium` has about a third of it (D4RL's
    definition): the nearest to a third, of the levels before the first that reaches two
    thirds: a late collapse does not count, while the ups and downs on the way to medium
    stay among what precedes it. `step-...` are up to eight levels before medium, evenly spaced.

    Raises:
        UserError: too short a training.
    """
    by_steps = {record["steps"]: record for record in records}  # a resumed training may repeat some
    records = [by_steps[steps] for steps in sorted(by_steps)]
    if not records:
        raise UserError("the training has no level yet: let it run on")
    expert = max(records, key=lambda record: record["return_mean"])
    before = [record for record in records if record["steps"] < expert["steps"]]
    if not before:
        raise UserError("the best level of the training is still its first: let it run on")
    third = expert["return_mean"] / 3
    early = list(takewhile(lambda r: r["return_mean"] < 2 * third, before)) or before[:1]
    medium = min(early, key=lambda r: abs(r["return_mean"] - third))
    way = [record for record in before if record["steps"] < medium["steps"]]
    count = min(LEVELS_ALONG_THE_WAY, len(way))
    along = [way[(2 * i + 1) * len(way) // (2 * count)] for i in range(count)]
    named = {f"step-{record['steps']:07d}": record for record in along}
    return named | {"medium": medium, "expert": expert}


def pack_levels(folder: Path, out: Path, episodes: int = 100) -> PolicySet:
    """Write the chosen levels of a training to `out`: `policies.json` and one file each.

    Weights are stored as float16. What is stored is what is measured (deterministic
    actions, `episodes` episodes) and what generates data.

    Args:
        folder: of `algorithms.online.train_online`.
        out: is replaced.
        episodes: of the measurement.

    Raises:
        UserError: no training there, or too short a one.
    """
    if not (folder / "levels.jsonl").exists() or not (folder / "checkpoint.pt").exists():
        raise UserError(
            f"{folder} holds no training with a checkpoint and a level: let one run first"
        )
    lines = (folder / "levels.jsonl").read_text().splitlines()
    # Only tensors and plain values: nothing in the file can run code.
    training = torch.load(folder / "checkpoint.pt", weights_only=True)["settings"]
    chosen = choose_levels([json.loads(line) for line in lines])
    actors = {"random": untrained_actor(training["env_id"], training["seed"])} | {
        name: load_file(folder / f"{record['name']}.safetensors") for name, record in chosen.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob("*.safetensors"):
        stale.unlink()
    levels = {}
    with Evaluator(training["env_id"], 1, episodes) as evaluator:
        for name, actor in actors.items():
            content = save({key: value.half().contiguous() for key, value in actor.items()})
            path = out / f"{name}.safetensors"
            path.write_bytes(content)
            networks = load_policy(path, training["env_id"])
            returns = evaluator.returns(
                lambda obs, networks=networks: networks.policy(obs).mode(),  # type: ignore[misc]
                PACKING_EVALUATION,
            )
            mean = float(returns.mean())
            levels[name] = Level(
                file=path.name,
                sha256=hashlib.sha256(content).hexdigest(),
                steps=chosen[name]["steps"] if name in chosen else 0,
                gradient_steps=chosen[name]["gradient_steps"] if name in chosen else 0,
                episodes=episodes,
                return_mean=mean,
                return_std=float(returns.std()),
                normalized_score=normalized_score(training["env_id"], mean),
            )
            log.info("%s: normalised score %.1f", name, levels[name].normalized_score)
    packed = PolicySet(env_id=training["env_id"], dtype="float16", training=training, levels=levels)
    (out / "policies.json").write_text(packed.model_dump_json(indent=2) + "\n")
    return packed


def untrained_actor(env_id: str, seed: int) -> Mapping[str, Tensor]:
    """The weights with which `train_online` starts."""
    env = ENVIRONMENTS[env_id]
    generators = [torch.Generator().manual_seed(seed)]
    networks = SACNetworks(env.obs_dim, env.action_dim, SACSettings(), generators)
    return {key: value.detach() for key, value in networks.actor.state_dict().items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m algorithms.online.levels", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train online, or continue")
    train.add_argument("folder", type=Path)
    defaults = OnlineSettings()
    train.add_argument("--env", choices=list(ENVIRONMENTS), default=defaults.env_id)
    train.add_argument("--seed", type=int, default=defaults.seed)
    train.add_argument("--steps", type=int, default=defaults.total_steps)
    train.add_argument("--updates-per-step", type=float, default=defaults.updates_per_step)
    train.add_argument("--level-every", type=int, default=defaults.level_every)
    train.add_argument("--learning-starts", type=int, default=defaults.learning_starts)
    pack = commands.add_parser("pack", help="choose, measure and pack levels")
    pack.add_argument("folder", type=Path)
    pack.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)  # batches this small only lose by more
    try:
        if arguments.command == "train":
            settings = OnlineSettings(
                env_id=arguments.env,
                seed=arguments.seed,
                total_steps=arguments.steps,
                updates_per_step=arguments.updates_per_step,
                level_every=arguments.level_every,
                learning_starts=arguments.learning_starts,
            )
            train_online(settings, arguments.folder)
        else:
            pack_levels(arguments.folder, arguments.out)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
