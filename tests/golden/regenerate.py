"""Golden values: what 30 gradient steps of every variant report, step by step.

    python tests/golden/regenerate.py --reason "what changed in the algorithm, and why"

trains each case again from its fixed seeds and writes `values.json`, where
`test_golden.py` looks them up. They are to change only when the algorithm is meant
to: the reason stands in the file beside a hash of the values, so that they cannot be
edited by hand nor regenerated without one. What changes beyond the tolerances of the
test is printed; read it before committing. Cases without such a change keep their values, whose
last digits are of the processor that computed them.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from small_tasks import COMBO_VARIANTS, MOBILE_VARIANTS, offline_training

from algorithms.stack.transitions import Transition

VALUES = Path(__file__).parent / "values.json"
SEEDS, EPOCHS, STEPS = (3, 8), 3, 10
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mopo": ("mopo", {}),
    "mopo_matched": ("mopo", {"penalty": "combined", "penalty_coef_mode": "matched"}),
    **{f"combo_{name}": ("combo", changes) for name, changes in COMBO_VARIANTS.items()},
    "cql": ("cql", {}),
    **{f"mobile_{name}": ("mobile", changes) for name, changes in MOBILE_VARIANTS.items()},
}
PENALTY_MEAN = [{"max_std": 1.5, "combined": 1.0}, {"max_std": 0.5, "combined": 1.0}]

Series = dict[str, list[list[float]]]  # by statistic: steps x seeds
Step = tuple[Transition, tuple[torch.Tensor, ...]]


def golden_training(case: str) -> Any:
    """The training of a case: learning rates are large, so that 30 steps matter."""
    algorithm, changes = CASES[case]
    lrs = {"actor_lr": 3e-3, "critic_lr": 3e-3, "alpha_lr": 3e-3}
    return offline_training(
        SEEDS,
        algorithm,
        penalty_mean=PENALTY_MEAN,
        gradient_steps_per_epoch=STEPS,
        **(lrs | changes),
    )


def golden_steps(case: str) -> tuple[Series, Step]:
    """Every statistic of every gradient step of a case, and the first step's inputs."""
    training = golden_training(case)
    series: Series = {}
    inputs: list[Step] = []
    gradient_step = training.agent.gradient_step

    def recorded_step(batch: Transition, noise: tuple[torch.Tensor, ...]) -> Any:
        inputs.append((batch, noise))
        statistics = gradient_step(batch, noise)
        for name, value in {**statistics.means, "q": statistics.q_SB.mean(dim=1)}.items():
            series.setdefault(name, []).append([round_to_float32(x) for x in value.tolist()])
        return statistics

    training.agent.gradient_step = recorded_step
    for _ in range(EPOCHS):
        training.train_epoch()
    return series, inputs[0]


def round_to_float32(x: float) -> float:
    """As many digits as a float32 has: no file needs more."""
    return float(f"{x:.8g}")


def hash_of(values: dict[str, Series]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write(values: dict[str, Series], reason: str) -> None:
    """`values.json`, one statistic per line."""
    head = {
        "reason": reason,
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "torch": torch.__version__,
        "sha256": hash_of(values),
    }
    cases = []
    for case, series in values.items():
        lines = [f"  {json.dumps(name)}: {json.dumps(steps)}" for name, steps in series.items()]
        cases.append(f" {json.dumps(case)}: {{\n" + ",\n".join(lines) + "\n }")
    text = json.dumps(head, indent=1).removesuffix("\n}")
    VALUES.write_text(f'{text},\n "values": {{\n' + ",\n".join(cases) + "\n }\n}\n")


def largest_changes(old: dict[str, Series], new: dict[str, Series]) -> list[str]:
    """For every case: by how much its statistics moved, or that it is new or gone."""
    lines = []
    for case in sorted(old.keys() | new.keys()):
        if case not in old or case not in new:
            lines.append(f"{case}: {'new' if case in new else 'gone'}")
        else:
            lines += [f"{case} {change}" for change in changes_of_case(old[case], new[case])]
    return lines


def changes_of_case(old: Series, new: Series) -> list[str]:
    """By how much the statistics of one case moved; nothing where they did not."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            lines.append(f"{name}: {'new' if name in new else 'gone'}")
            continue
        before, after = torch.tensor(old[name]), torch.tensor(new[name])
        if before.shape != after.shape:
            lines.append(f"{name}: of another shape")
        elif not torch.allclose(before, after, rtol=1e-4, atol=1e-5):
            lines.append(f"{name}: changed by {float((after - before).abs().max()):.3g} at most")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reason", required=True, help="why the values are to change")
    reason = parser.parse_args().reason.strip()
    if not reason:
        parser.error("--reason must say why the values are to change")
    torch.set_num_threads(1)
    old = json.loads(VALUES.read_text())["values"] if VALUES.exists() else {}
    new = {case: golden_steps(case)[0] for case in CASES}
    kept = {case for case in new if case in old and not changes_of_case(old[case], new[case])}
    write({case: old[case] if case in kept else new[case] for case in new}, reason)
    changes = largest_changes(old, new) or ["nothing changed"]
    sys.stdout.write("\n".join(changes) + "\n")


if __name__ == "__main__":
    main()
