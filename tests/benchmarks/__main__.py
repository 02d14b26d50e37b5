"""How fast this project is on this machine, beside ordinary PyTorch code of the same sizes.

    python tests/benchmarks [--threads 2] [--device cuda] [--quick] [--only NAME ...] [--json FILE]

Hopper's sizes, batch 256, nets 2 x 256, seven dynamics models of 4 x 200; made-up data. The
whole takes some fifteen minutes on two cores. Each file says what its numbers mean; ratios are
to `plain.py`, in the same run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import time
from pathlib import Path

import torch
from harness import Setup, table
from rich.console import Console

from algorithms.identity import code_version
from algorithms.stack.compilation import can_compile

# Modules with a function `measure`.
NAMES = (
    "gradient_steps",
    "rollouts",
    "ensembles",
    "evaluations",
    "epochs",
    "memory",
    "overhead",
    "parallel_evaluation",
    "data_loading",
)


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    setup = Setup(
        device=options.device,
        threads=options.threads,
        rounds=options.rounds,
        seconds=0.2 if options.quick else 1.0,
        quick=options.quick,
    )
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=110)
    record = {"machine": _machine(setup), "setup": setup._asdict(), "measured": {}}
    console.print(*(f"{k}: {v}" for k, v in record["machine"].items()), sep="\n", highlight=False)
    for name in options.only:
        module = importlib.import_module(name)
        load, begin = [os.getloadavg()[0]], time.perf_counter()
        group = module.measure(setup)
        seconds = time.perf_counter() - begin
        load.append(os.getloadavg()[0])
        console.print(f"\n{name}: {module.__doc__.splitlines()[0]}", soft_wrap=True)
        console.print(table(group))
        console.print(f"load {load[0]:.1f} before, {load[1]:.1f} after, took {seconds:.0f} s")
        record["measured"][name] = {
            "series": [series._asdict() for series in group],
            "seconds": seconds,
            "load": load,
        }
        if options.json:
            options.json.write_text(json.dumps(record, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all samples, for programs")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=NAMES,
        default=NAMES,
        metavar="NAME",
        help=f"some of {', '.join(NAMES)}",
    )
    parser.add_argument("--rounds", type=int, help="samples of each number (default: 5, quick: 2)")
    parser.add_argument("--quick", action="store_true", help="to see that it works: small samples")
    options = parser.parse_args()
    if options.rounds is None:
        options.rounds = 2 if options.quick else 5
    if options.threads < 1 or options.rounds < 1:
        parser.error("--threads and --rounds must be at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch sees no CUDA device")
    return options


def _machine(setup: Setup) -> dict[str, str]:
    if setup.device == "cuda":
        device = torch.cuda.get_device_name()
    else:
        device = f"{_cpu()}, {os.cpu_count()} cores"
    return {
        "device": device,
        "threads": str(setup.threads),
        "torch": torch.__version__ + ("" if can_compile(setup.device) else ", without a compiler"),
        "python": platform.python_version(),
        "code": code_version(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


if __name__ == "__main__":
    main()
