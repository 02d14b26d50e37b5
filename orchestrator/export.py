"""Trained policies out of the storage, as files that need torch alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from algorithms.errors import UserError, expected
from algorithms.storage import Storage, is_dir, is_file
from orchestrator.results import ResultStore, SeedResult

if TYPE_CHECKING:
    from algorithms.sac.policy import DeterministicPolicy

USAGE = """import torch
policy = torch.export.load({path!r}).module()
action = policy(torch.as_tensor(obs, dtype=torch.float32)[None])[0]"""


def export_policy(
    cell: str, seed: int, out: Path | None, storage: Storage
) -> tuple[Path, SeedResult]:
    """Write the deterministic policy of one seed of a cell; returns the file and its result.

    Args:
        cell: the cell's name.
        seed: which of its seeds.
        out: the file, or a folder for it; by default `<cell>-seed<k>.pt2` in the working directory.
        storage: where the results are.

    Raises:
        UserError: no such cell or seed, its checkpoint is gone, or the file cannot be written.
    """
    result = find_result(cell, seed, storage)
    path = Path() if out is None else out
    if is_dir(path):
        path = path / f"{cell}-seed{seed}.pt2"
    folder = path.absolute().parent
    if not is_dir(folder):
        raise UserError(f"no such folder: {folder}")
    if not os.access(path if is_file(path) else folder, os.W_OK):
        raise UserError(f"{path} cannot be written: choose another --out")
    # torch takes seconds to import: a mistake is told before.
    from algorithms.sac.policy import export_policy

    try:
        export_policy(read_policy(result), path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    return path, result


def read_policy(result: SeedResult) -> DeterministicPolicy:
    """The policy of a result, in the environment's own units of actions."""
    from algorithms.sac.policy import DeterministicPolicy, Policy
    from algorithms.training.checkpoint import read_training_state

    policy = Policy.from_state(read_training_state(str(result.checkpoint)), result.position)
    return DeterministicPolicy(policy, *result.action_bounds)


def find_result(cell: str, seed: int, storage: Storage) -> SeedResult:
    """The result of one seed of a cell, with a checkpoint that exists.

    Raises:
        UserError: no such cell or seed, it diverged, or its checkpoint is gone.
    """
    results = ResultStore(storage).all()
    of_cell = [result for result in results if cell in result.names]
    if not of_cell:
        names = {name for result in results for name in result.names}
        raise UserError(expected("cell", cell, names or ["(none yet)"]))
    of_seed = [result for result in of_cell if result.seed == seed]
    if not of_seed:
        raise UserError(expected("seed", seed, {r.seed for r in of_cell}))
    kept = [result for result in of_seed if result.existing_checkpoint]
    if not kept:
        raise UserError(f"{cell} seed {seed}: its checkpoint {of_seed[0].checkpoint} is gone")
    # Sweeps that differ in `fixed` alone share names: take what was trained last.
    found = max(kept, key=lambda r: Path(str(r.checkpoint)).stat().st_mtime)
    if found.status == "diverged":
        raise UserError(f"{cell} seed {seed} diverged: there is no policy to export")
    return found
