"""Gradient steps whose Python runs once and whose operations are then replayed.

A GPU is not needed: `Recorder` stands in for a CUDA graph. It keeps the operations that PyTorch
executes, takes back what they did, and repeats them on the same tensors as a graph would.
"""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from algorithms.stack import cuda_graphs


class Recorder(TorchDispatchMode):
    """The operations of a `with` block, none of which has had an effect when it is left."""

    def __init__(self):
        super().__init__()
        self.operations, self.before = [], {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        by_name = {a.name: a for a in function._schema.arguments}
        given = [*zip(by_name.values(), args, strict=False)]
        given += [(by_name[name], value) for name, value in kwargs.items()]
        written = [value for a, value in given if a.alias_info and a.alias_info.is_write]
        for tensor in tree_leaves(written):
            self.before.setdefault(id(tensor), (tensor, tensor.clone()))
        result = function(*args, **kwargs)
        returns = function._schema.returns
        is_new = bool(returns) and all(r.alias_info is None for r in returns)
        if function.namespace != "profiler":
            self.operations.append((function, args, kwargs, result, is_new))
        return result

    def __exit__(self, *exception):
        super().__exit__(*exception)
        with torch.no_grad():
            for tensor, value in self.before.values():
                tensor.copy_(value)

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, result, is_new in self.operations:
            again = function(*args, **kwargs)
            if is_new:
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    old.copy_(new)


@pytest.fixture
def graphs(monkeypatch):
    """Graphs made so far, on a machine that seems to have a GPU."""
    made = []

    def new_graph():
        made.append(Recorder())
        return made[-1]

    monkeypatch.setattr(cuda_graphs, "_REFUSED", set())
    monkeypatch.setattr(
        cuda_graphs, "can_replay", lambda device: device not in cuda_graphs._REFUSED
    )
    monkeypatch.setattr(torch.cuda, "CUDAGraph", new_graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(cuda_graphs, "_side_stream", Stream)
    return made


class Stream:
    """Does at once what it is given."""

    def __init__(self, device=None):
        self.device = device

    def wait_stream(self, other):
        pass


AGENTS = {
    "mopo": ("mopo", {}),
    "combo": ("combo", {}),
    "previous_policy": ("combo", {"prior": "previous_policy"}),
    "learned": ("combo", {"beta": "learned", "beta_warmup_steps": 16, "beta_lr": 0.01}),
    "cosine": ("sac", {"actor_lr_schedule": "cosine"}),
    "mobile": ("mobile", {}),
}


@pytest.mark.parametrize("name", AGENTS)
def test_replayed_epochs_are_those_of_python(offline_training, graphs, name, monkeypatch):
    algorithm, changes = AGENTS[name]
    changes = {"gradient_steps_per_epoch": 10, **changes}
    replayed = offline_training((3, 8), algorithm, **changes)
    statistics = [replayed.train_epoch() for _ in range(3)]
    # One capture per epoch, and one more where the warm-up of beta ends within an epoch.
    assert len(graphs) == (4 if name == "learned" else 3)

    monkeypatch.undo()
    python = offline_training((3, 8), algorithm, **changes)
    for values in statistics:
        for key, value in python.train_epoch().items():
            torch.testing.assert_close(values[key], value, rtol=1e-5, atol=1e-6, msg=key)
    state = replayed.state_dict()
    for key, value in python.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6, equal_nan=True, msg=key)


def test_where_a_capture_fails_training_goes_on_and_says_so_once(
    offline_training, graphs, monkeypatch, caplog
):
    @contextlib.contextmanager
    def failing(graph):
        del graph
        raise RuntimeError("operation not permitted when stream is capturing\nmore")
        yield

    monkeypatch.setattr(torch.cuda, "graph", failing)
    training = offline_training((3, 8), gradient_steps_per_epoch=10)
    statistics = training.train_epoch()
    training.train_epoch()
    assert [r.message for r in caplog.records] == [
        "gradient steps run without a CUDA graph: operation not permitted when stream is capturing"
    ]
    monkeypatch.undo()
    expected = offline_training((3, 8), gradient_steps_per_epoch=10).train_epoch()
    for key, value in expected.items():
        assert torch.equal(statistics[key], value), key


def test_a_step_sees_tensors_of_one_layout_or_it_would_be_compiled_in_a_capture(
    offline_training, graphs
):
    training = offline_training((3, 8), "combo", gradient_steps_per_epoch=10)
    step, layouts = training.agent.gradient_step, []

    def observed(batch, noise):
        layouts.append([x.stride() for x in (*batch, *noise)])
        return step(batch, noise)

    training.agent.gradient_step = observed
    training.train_epoch()
    assert len(graphs) == 1
    assert len(layouts) == cuda_graphs.WARM_UP + 2  # one more: the very first step is a branch
    assert all(layout == layouts[0] for layout in layouts)
