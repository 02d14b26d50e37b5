"""Which data sets there are by name: `CATALOG` has one row for each.

Bundled data is known by the recipe from which it is rolled out, D4RL's by the hash of its file,
so a name of the catalogue is resolved without any data. This module does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from algorithms.data.bundled.recipe import Mixture, equal, replay

D4RL_PREFIX, D4RL_VERSION = "d4rl/", "-v2"
# D4RL's locomotion tasks, by which the papers' hyperparameters are listed: task -> env_id.
TASKS: dict[str, str] = {
    f"{robot}-{level}": env_id
    for robot, env_id in (
        ("hopper", "Hopper-v4"),
        ("walker2d", "Walker2d-v4"),
        ("halfcheetah", "HalfCheetah-v4"),
    )
    for level in ("medium", "medium-replay", "medium-expert")
}


@dataclass(frozen=True)
class Bundled:
    """Rolled out on first use from policies that the package contains."""

    env_id: str
    policies: str
    mixture: Mixture
    task: str | None = None


@dataclass(frozen=True)
class D4RL:
    """A file of D4RL's (Fu et al. 2020): not shipped, and known by its length and hash."""

    bytes: int
    sha256: str


CATALOG: dict[str, Bundled | D4RL] = {
    "bundled/hopper-medium": Bundled("Hopper-v4", "hopper", equal("medium"), "hopper-medium"),
    "bundled/hopper-medium-replay": Bundled(
        "Hopper-v4", "hopper", replay(until="medium"), "hopper-medium-replay"
    ),
    "bundled/hopper-medium-expert": Bundled(
        "Hopper-v4", "hopper", equal("medium", "expert"), "hopper-medium-expert"
    ),
    # Bytes and hashes as TensorFlow Datasets records them: d4rl/d4rl_mujoco_*/checksums.tsv.
    "d4rl/hopper-medium-v2": D4RL(
        152_756_557, "5bdf1bc4a713c82941de44633df669b36c89850b652a25985166796d25cf71a0"
    ),
    "d4rl/hopper-medium-replay-v2": D4RL(
        75_854_457, "e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b"
    ),
    "d4rl/hopper-medium-expert-v2": D4RL(
        304_537_315, "9d51ad87f8c905be3880d84c6140bcdb7fbf39a19e046a237f238ba34fec9e26"
    ),
    "d4rl/walker2d-medium-v2": D4RL(
        232_254_996, "cf00f43add04c17fdfc2958dd581dea0851b2e5bedbe6fda073758a8f841aeda"
    ),
    "d4rl/walker2d-medium-replay-v2": D4RL(
        86_323_963, "e75de96a4f77acf7d4e0d6fdf0d7ccb177c26c44bb4388e4fd99f543ccfa18db"
    ),
    "d4rl/walker2d-medium-expert-v2": D4RL(
        462_197_079, "6b8d7f868c45bbaedf460be797fb7271b46dee6ebe45fe7a64319f2005b59a04"
    ),
}
