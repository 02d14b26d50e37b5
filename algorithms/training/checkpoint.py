"""A training's state as a file: tensors and plain text, no pickled objects.

RLlib's checkpoint folder contains it as a component, so a seed can be continued or
exported without building an algorithm, or importing Ray.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load, save

from algorithms.errors import UserError
from algorithms.identity import code_version
from algorithms.stack.state import State

CHECKPOINT_FORMAT = 2
TRAINING_COMPONENT = "training"
TRAINING_FILE = "training.safetensors"


def encode(state: State, seeds: Sequence[int]) -> bytes:
    """The bytes of the file: safetensors, with format, code version and seeds in its header."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    metadata = {
        "format": str(CHECKPOINT_FORMAT),
        "code": code_version(),
        "seeds": json.dumps(list(seeds)),
    }
    content: bytes = save(tensors, metadata)
    return content


def decode(content: bytes, path: str) -> State:
    """The inverse of `encode`; `path` is for the message.

    Raises:
        UserError: another format version.
    """
    header = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + header]).get("__metadata__", {})
    if metadata.get("format") != str(CHECKPOINT_FORMAT):
        raise UserError(
            f"{path} has checkpoint format {metadata.get('format')}, this version reads "
            f"{CHECKPOINT_FORMAT}: use the code that wrote it, {metadata.get('code')}"
        )
    return load(content)


def read_training_state(checkpoint: str | Path) -> State:
    """The training state in a checkpoint folder of an offline algorithm, without building it.

    Raises:
        UserError: the checkpoint is missing, or of another format version.
    """
    path = Path(checkpoint) / "learner_group" / "learner" / TRAINING_COMPONENT
    path = path / TRAINING_FILE
    if not path.exists():
        raise UserError(f"no checkpoint at {checkpoint}")
    return decode(path.read_bytes(), str(path))
