"""Gradient steps as CUDA graphs: one launch replays what Python would launch kernel by kernel.

At batch sizes of a few hundred rows a GPU finishes a kernel sooner than Python can launch
the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

log = logging.getLogger(__name__)

WARM_UP = 3  # calls before a capture, as PyTorch's notes on CUDA graphs ask for


def can_replay(device: torch.device) -> bool:
    """Whether the device has graphs of kernels."""
    return device.type == "cuda"


class Replayed:
    """A function of GPU tensors, called a few times, then captured and replayed.

    Whatever else the function reads or writes must stay where it is in memory. Its Python
    runs in no replay, so all that it branches on must be in `branch`. Where a capture fails,
    a warning says so once and the function is called as it is.

    Args:
        function: changes tensors in place and returns nothing.
        branch: what the function's Python would branch on now; a change asks for a new capture.
        replayed: called after a replay, for what the function's Python counts.
    """

    def __init__(
        self,
        function: Callable[..., None],
        branch: Callable[[], Hashable],
        replayed: Callable[[], None],
    ) -> None:
        self._function, self._branch, self._replayed = function, branch, replayed
        self._branched: Hashable = None
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._refused = False

    def __call__(self, *inputs: Tensor) -> None:
        branch = self._branch()
        if branch != self._branched:
            self._branched, self._calls, self._graph = branch, 0, None
        self._calls += 1
        if self._refused:
            self._function(*inputs)
        elif self._calls <= WARM_UP:
            self._call_on_a_side_stream(inputs)
        elif self._graph is None:
            self._capture(inputs)
        else:
            torch._foreach_copy_(self._inputs, list(inputs))
            self._graph.replay()
            self._replayed()

    def _call_on_a_side_stream(self, inputs: tuple[Tensor, ...]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        """Capture, which runs the Python but no kernel, then replay."""
        static = [x.clone() for x in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._function(*static)
        except RuntimeError as error:
            self._refused = True
            reason = str(error).strip().partition("\n")[0]
            log.warning("gradient steps run without a CUDA graph: %s", reason)
            self._function(*inputs)
            return
        self._graph, self._inputs = graph, static
        graph.replay()
