"""Gradient steps as CUDA graphs: one launch replays what Python would launch kernel by kernel.

At batch sizes of a few hundred rows a GPU finishes a kernel sooner than Python can launch
the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger(__name__)

WARM_UP = 3  # calls before a capture, as PyTorch's notes on CUDA graphs ask for


def can_replay(device: torch.device) -> bool:
    """Whether the device has graphs of kernels, and none was refused in this process."""
    return device.type == "cuda" and device not in _REFUSED


_REFUSED: set[torch.device] = set()


class Replayed:
    """A function of tensors; on a GPU called a few times, then captured and replayed.

    Whatever else the function reads or writes must stay where it is in memory. Its Python
    runs in no replay, so all that it branches on must be in `phase`. Where a capture fails,
    a warning says so once, and the function is called as it is.

    Args:
        function: changes tensors in place and returns nothing.
        phase: what the function's Python would branch on now; a change asks for a new capture.
    """

    def __init__(
        self,
        function: Callable[..., None],
        phase: Callable[[], Hashable],
    ) -> None:
        self._function, self._phase = function, phase
        self._in_phase: Hashable = None
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> None:
        device = inputs[0].device
        if not can_replay(device):
            self._function(*inputs)
            return
        # The same places and strides from the first call on: nothing may be compiled in a capture.
        if not self._inputs:
            self._inputs = [
                torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs
            ]
        torch._foreach_copy_(self._inputs, list(inputs))
        phase = self._phase()
        if phase != self._in_phase:
            self._in_phase, self._calls, self._graph = phase, 0, None
        self._calls += 1
        with torch.cuda.device(device):
            if self._calls <= WARM_UP:
                self._call_on_the_side(device)
            elif self._graph is None:
                self._capture(device)
            else:
                self._graph.replay()

    def _call_on_the_side(self, device: torch.device) -> None:
        stream, main = _side_stream(device), torch.cuda.current_stream()
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            self._function(*self._inputs)
        main.wait_stream(stream)

    def _capture(self, device: torch.device) -> None:
        """Capture, which runs the Python but no kernel, then replay."""
        graph, main = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                self._function(*self._inputs)
        except RuntimeError as error:
            torch.cuda.set_stream(main)  # a failed capture may not have gone back to it
            _REFUSED.add(device)
            reason = str(error).strip().partition("\n")[0]
            log.warning("gradient steps run without a CUDA graph: %s", reason)
            self._function(*self._inputs)
            return
        self._graph = graph
        graph.replay()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    # One for good: cuBLAS keeps a workspace for every stream that it has seen.
    return torch.cuda.Stream(device)
