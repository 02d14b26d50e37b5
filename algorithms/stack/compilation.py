"""Compiled functions where a compiler exists, the same functions as they are elsewhere.

The arithmetic of a gradient step lives in plain functions of tensors and modules. A
`Call` calls such a function; whoever owns the training chooses which. torch's compiler takes
more than a second to import, so only those who compile do.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol, TypeVar

import torch

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class Call(Protocol):
    """Calls a function."""

    def __call__(self, function: Callable[..., Result], *args: Any) -> Result: ...


def call_eagerly(function: Callable[..., Result], *args: Any) -> Result:
    """The function as it is."""
    return function(*args)


def call_compiled(function: Callable[..., Result], *args: Any) -> Result:
    """The function compiled at its first call, which takes seconds for every shape.

    A function that cannot be compiled runs as it is, and a warning says so once.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    if function in _REFUSED:
        return function(*args)
    try:
        result: Result = _compiled(function)(*args)
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        _REFUSED.add(function)
        reason = str(error).strip().partition("\n")[0]
        log.warning("%s runs without being compiled: %s", function.__name__, reason)
        return function(*args)
    return result


_REFUSED: set[Callable[..., Any]] = set()


@cache
def _compiled(function: Callable[..., Result]) -> Callable[..., Result]:
    from torch._dynamo import config as dynamo

    # Gradients are taken inside the functions, which dynamo refuses unless told otherwise.
    dynamo.trace_autograd_ops = True
    # A process may build many algorithms, each with shapes and penalties of its own.
    dynamo.recompile_limit = 64
    # What torch's compiler says of its own code is of no use to whoever reads the terminal.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\._inductor")
    return torch.compile(function, dynamic=False, fullgraph=True)


def can_compile(device: torch.device | str) -> bool:
    """Whether torch.compile has what it needs: a C++ compiler, or Triton on a GPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    if torch.device(device).type == "cuda":
        return has_triton()
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True
