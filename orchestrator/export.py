"""Trained policies out of the storage, as files that need torch alone."""

from __future__ import annotations

from pathlib import Path

from algorithms.errors import UserError, expected
from orchestrator.results import ResultStore, SeedResult

USAGE = """import torch
policy = torch.export.load({path!r}).module()
action = policy(torch.as_tensor(obs, dtype=torch.float32)[None])[0]"""


def export_policy(
    trial: str, seed: int, out: Path | None, storage: Path
) -> tuple[Path, SeedResult]:
    """Write the deterministic policy of one seed of a trial; returns the file and its result.

    Args:
        trial: the trial's name.
        seed: which of its seeds.
        out: the file; by default `<trial>-seed<k>.pt2` in the working directory.
        storage: root folder.

    Raises:
        UserError: no such trial or seed, or its checkpoint is gone.
    """
    result = _find(ResultStore(storage).all(), trial, seed)
    # torch takes seconds to import: a mistake is told before.
    from algorithms.sac.agent import policy as policies
    from algorithms.training.checkpoint import read_training_state

    if result.status == "diverged":
        raise UserError(f"{trial} seed {seed} diverged: there is no policy to export")
    path = out or Path(f"{trial}-seed{seed}.pt2")
    if not path.absolute().parent.is_dir():
        raise UserError(f"no such folder: {path.absolute().parent}")
    state = read_training_state(str(result.checkpoint))
    policies.export_policy(policies.Policy.from_state(state, result.index), path)
    return path, result


def _find(results: list[SeedResult], trial: str, seed: int) -> SeedResult:
    of_trial = [result for result in results if result.trial == trial]
    if not of_trial:
        raise UserError(expected("trial", trial, {r.trial for r in results} or ["(none yet)"]))
    of_seed = [result for result in of_trial if result.seed == seed]
    if not of_seed:
        raise UserError(expected("seed", seed, {r.seed for r in of_trial}))
    kept = [result for result in of_seed if result.existing_checkpoint]
    if not kept:
        raise UserError(f"{trial} seed {seed}: its checkpoint {of_seed[0].checkpoint} is gone")
    # Sweeps that differ in `fixed` alone share names: take what was trained last.
    return max(kept, key=lambda r: Path(str(r.checkpoint)).stat().st_mtime)
