"""Which data sets there are by name: `CATALOG` has one row for each.

Bundled data is known by the recipe from which it is rolled out, D4RL's by the hash of its file,
so a name of the catalogue is resolved without any data where the hash is pinned. This module does
not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from algorithms.data.bundled.recipe import Mixture, equal, replay

D4RL_PREFIX = "d4rl/"


@dataclass(frozen=True)
class Bundled:
    """Rolled out on first use from policies that the package contains."""

    env_id: str
    policies: str
    mixture: Mixture
    task: str | None = None


@dataclass(frozen=True)
class D4RL:
    """A file of D4RL's (Fu et al. 2020): not shipped, and downloaded on first use.

    Attributes:
        env_id: a key of `ENVIRONMENTS`.
        folder: where it lies below D4RL's address.
        stem: D4RL's name of the file, without `.hdf5`.
        bytes: its length; None where no source of it is known.
        sha256: its hash (hex); None as well then. The first download records it.
    """

    env_id: str
    folder: str
    stem: str
    bytes: int | None = None
    sha256: str | None = None

    @property
    def file(self) -> str:
        return f"{self.stem}.hdf5"


PENDULUM = "InvertedDoublePendulum-v4"
GYM, HAND = "gym_mujoco_v2", "hand_dapg_v1"

# By D4RL's own name. Addresses: d4rl/infos.py of the d4rl package, version 1.1. Bytes and hashes
# as TensorFlow Datasets records them: d4rl/d4rl_mujoco_*/checksums.tsv.
D4RL_FILES: dict[str, D4RL] = {
    "hopper-random-v2": D4RL("Hopper-v4", GYM, "hopper_random-v2"),
    "hopper-medium-v2": D4RL(
        "Hopper-v4",
        GYM,
        "hopper_medium-v2",
        bytes=152_756_557,
        sha256="5bdf1bc4a713c82941de44633df669b36c89850b652a25985166796d25cf71a0",
    ),
    "hopper-medium-replay-v2": D4RL(
        "Hopper-v4",
        GYM,
        "hopper_medium_replay-v2",
        bytes=75_854_457,
        sha256="e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b",
    ),
    "hopper-medium-expert-v2": D4RL(
        "Hopper-v4",
        GYM,
        "hopper_medium_expert-v2",
        bytes=304_537_315,
        sha256="9d51ad87f8c905be3880d84c6140bcdb7fbf39a19e046a237f238ba34fec9e26",
    ),
    "hopper-expert-v2": D4RL("Hopper-v4", GYM, "hopper_expert-v2"),
    "hopper-full-replay-v2": D4RL("Hopper-v4", GYM, "hopper_full_replay-v2"),
    "walker2d-random-v2": D4RL("Walker2d-v4", GYM, "walker2d_random-v2"),
    "walker2d-medium-v2": D4RL(
        "Walker2d-v4",
        GYM,
        "walker2d_medium-v2",
        bytes=232_254_996,
        sha256="cf00f43add04c17fdfc2958dd581dea0851b2e5bedbe6fda073758a8f841aeda",
    ),
    "walker2d-medium-replay-v2": D4RL(
        "Walker2d-v4",
        GYM,
        "walker2d_medium_replay-v2",
        bytes=86_323_963,
        sha256="e75de96a4f77acf7d4e0d6fdf0d7ccb177c26c44bb4388e4fd99f543ccfa18db",
    ),
    "walker2d-medium-expert-v2": D4RL(
        "Walker2d-v4",
        GYM,
        "walker2d_medium_expert-v2",
        bytes=462_197_079,
        sha256="6b8d7f868c45bbaedf460be797fb7271b46dee6ebe45fe7a64319f2005b59a04",
    ),
    "walker2d-expert-v2": D4RL("Walker2d-v4", GYM, "walker2d_expert-v2"),
    "walker2d-full-replay-v2": D4RL("Walker2d-v4", GYM, "walker2d_full_replay-v2"),
    "halfcheetah-random-v2": D4RL("HalfCheetah-v4", GYM, "halfcheetah_random-v2"),
    "halfcheetah-medium-v2": D4RL("HalfCheetah-v4", GYM, "halfcheetah_medium-v2"),
    "halfcheetah-medium-replay-v2": D4RL("HalfCheetah-v4", GYM, "halfcheetah_medium_replay-v2"),
    "halfcheetah-medium-expert-v2": D4RL("HalfCheetah-v4", GYM, "halfcheetah_medium_expert-v2"),
    "halfcheetah-expert-v2": D4RL("HalfCheetah-v4", GYM, "halfcheetah_expert-v2"),
    "halfcheetah-full-replay-v2": D4RL("HalfCheetah-v4", GYM, "halfcheetah_full_replay-v2"),
    "pen-human-v1": D4RL("AdroitHandPen-v1", HAND, "pen-human-v1"),
    "pen-cloned-v1": D4RL("AdroitHandPen-v1", HAND, "pen-cloned-v1"),
    "hammer-human-v1": D4RL("AdroitHandHammer-v1", HAND, "hammer-human-v1"),
    "hammer-cloned-v1": D4RL("AdroitHandHammer-v1", HAND, "hammer-cloned-v1"),
    "door-human-v1": D4RL("AdroitHandDoor-v1", HAND, "door-human-v1"),
    "door-cloned-v1": D4RL("AdroitHandDoor-v1", HAND, "door-cloned-v1"),
    "relocate-human-v1": D4RL("AdroitHandRelocate-v1", HAND, "relocate-human-v1"),
    "relocate-cloned-v1": D4RL("AdroitHandRelocate-v1", HAND, "relocate-cloned-v1"),
}

CATALOG: dict[str, Bundled | D4RL] = {
    "bundled/hopper-medium": Bundled("Hopper-v4", "hopper", equal("medium"), "hopper-medium"),
    "bundled/hopper-medium-replay": Bundled(
        "Hopper-v4", "hopper", replay(until="medium"), "hopper-medium-replay"
    ),
    "bundled/hopper-medium-expert": Bundled(
        "Hopper-v4", "hopper", equal("medium", "expert"), "hopper-medium-expert"
    ),
    # Learnt in minutes, and quick to simulate; no task of D4RL's.
    "bundled/double-pendulum-medium": Bundled(PENDULUM, "double-pendulum", equal("medium")),
    "bundled/double-pendulum-medium-replay": Bundled(
        PENDULUM, "double-pendulum", replay(until="medium")
    ),
    "bundled/double-pendulum-medium-expert": Bundled(
        PENDULUM, "double-pendulum", equal("medium", "expert")
    ),
    **{f"{D4RL_PREFIX}{name}": row for name, row in D4RL_FILES.items()},
}


def task_of(name: str) -> str:
    """The task of one of `D4RL_FILES`: its name without the version."""
    return name.rpartition("-")[0]


# D4RL's tasks, by which the papers' hyperparameters are listed: task -> env_id.
TASKS: dict[str, str] = {task_of(name): row.env_id for name, row in D4RL_FILES.items()}


def full_id(dataset_id: str) -> str:
    """The id of a data set in `CATALOG`; D4RL's own names may be given bare."""
    return f"{D4RL_PREFIX}{dataset_id}" if dataset_id in D4RL_FILES else dataset_id


def is_known_by_name(dataset_id: str) -> bool:
    """Whether the content of a data set follows from its id, with no file to look at."""
    row = CATALOG.get(full_id(dataset_id))
    return isinstance(row, Bundled) or (row is not None and row.sha256 is not None)
