"""A stack of networks is nothing but its networks, evaluated together."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from algorithms.stack.mlp import MANY_ROWS, StackedMLP, truncated_normal, uniform_fan_in

SIZES = (5, 8, 6, 3)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def separate(stack, index, activation):
    """The network at `index` of a stack as plain torch modules with their own weights."""
    layers = []
    for weight, bias in zip(stack.weights, stack.biases, strict=True):
        linear = nn.Linear(*weight.shape[-2:])
        linear.weight.data = weight.detach()[index].T.clone()
        linear.bias.data = bias.detach()[index][0].clone()
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("members", [(), (2,), (2, 3)])
@pytest.mark.parametrize(
    ("activation", "module"), [(torch.relu, nn.ReLU), (F.silu, nn.SiLU)], ids=["relu", "silu"]
)
@pytest.mark.parametrize("shared_rows", [False, True])
def test_equals_separate_networks_forward_and_backward(members, activation, module, shared_rows):
    stack = StackedMLP(SIZES, generators(0, 1), members, activation)
    lead = (2, *(1 if shared_rows else m for m in members))
    x = torch.randn(*lead, 7, SIZES[0], generator=generators(9)[0])
    output = stack(x)
    assert output.shape == (2, *members, 7, SIZES[-1])
    output.square().sum().backward()

    rows = x.expand(2, *members, 7, SIZES[0])
    for index in torch.cartesian_prod(*(torch.arange(n) for n in (2, *members))).view(
        -1, 1 + len(members)
    ):
        at = tuple(index.tolist())
        network = separate(stack, at, module)
        expected = network(rows[at])
        torch.testing.assert_close(output[at], expected, rtol=1e-5, atol=1e-6)
        expected.square().sum().backward()
        linears = [layer for layer in network if isinstance(layer, nn.Linear)]
        for weight, bias, linear in zip(stack.weights, stack.biases, linears, strict=True):
            torch.testing.assert_close(weight.grad[at], linear.weight.grad.T, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(bias.grad[at][0], linear.bias.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("members", [(), (3,)])
@pytest.mark.parametrize("shared_rows", [False, True])
def test_many_rows_without_gradients_give_what_they_give_with_them(members, shared_rows):
    stack = StackedMLP(SIZES, generators(0, 1), members, F.silu)
    lead = (2, *(1 if shared_rows else m for m in members))
    x = torch.randn(*lead, MANY_ROWS, SIZES[0], generator=generators(9)[0])
    with_gradients = stack(x)
    assert with_gradients.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(stack(x), with_gradients.detach())


@pytest.mark.parametrize("members", [(), (3,)])
@pytest.mark.parametrize("rows", [7, MANY_ROWS])
@pytest.mark.parametrize("sizes", [SIZES, SIZES[-2:]], ids=["hidden layers", "only a last layer"])
def test_autocast_shortens_the_products_of_hidden_layers_alone(members, rows, sizes):
    stack = StackedMLP(sizes, generators(0, 1), members)
    x = torch.randn(2, *members, rows, sizes[0], generator=generators(9)[0])
    with torch.no_grad():
        exact = stack(x)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            output = stack(x)
    assert output.dtype == torch.float32
    error = (output - exact).norm() / exact.norm()  # of bfloat16: 8 bits, relative 0.004
    assert 1e-4 < error < 0.02 if len(sizes) > 2 else error == 0


@pytest.mark.parametrize("rows", [7, MANY_ROWS])
def test_one_member_per_seed_gives_what_it_gives_among_all(rows):
    stack = StackedMLP(SIZES, generators(0, 1), (3,), F.silu)
    x = torch.randn(2, rows, SIZES[0], generator=generators(9)[0])
    member = torch.tensor([2, 0])
    with torch.no_grad():
        expected = stack(x[:, None])[torch.arange(2), member]
        torch.testing.assert_close(stack.one_member(x, member), expected)


@pytest.mark.parametrize("initializer", [uniform_fan_in, truncated_normal])
def test_a_seeds_first_weights_depend_on_its_generator_alone(initializer):
    def parameters(*seeds):
        stack = StackedMLP(SIZES, generators(*seeds), (2,), initializer=initializer)
        return [p.detach() for p in stack.parameters()]

    together, alone, company = parameters(3, 7), parameters(7), parameters(7, 1)
    for both, one, other in zip(together, alone, company, strict=True):
        assert torch.equal(both[1], one[0])
        assert torch.equal(other[0], one[0])
    assert not torch.equal(together[0][0], together[0][1])  # seeds differ
    assert not torch.equal(together[0][0, 0], together[0][0, 1])  # and so do members


def test_uniform_weights_and_biases_fill_the_range_of_torch_linear():
    stack = StackedMLP((100, 200, 50), generators(0), (3,))
    stack.requires_grad_(False)
    for fan_in, weight, bias in zip((100, 200), stack.weights, stack.biases, strict=True):
        bound = 1 / math.sqrt(fan_in)
        for values in (weight, bias):
            assert 0.9 * bound < values.abs().max() <= bound
        assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert weight.mean() == pytest.approx(0, abs=0.02 * bound)


def test_truncated_normal_weights_are_cut_at_two_stds_and_biases_are_0():
    stack = StackedMLP((100, 200, 50), generators(0), (3,), initializer=truncated_normal)
    stack.requires_grad_(False)
    for fan_in, weight, bias in zip((100, 200), stack.weights, stack.biases, strict=True):
        std = 1 / (2 * math.sqrt(fan_in))
        assert 1.9 * std < weight.abs().max() <= 2 * std
        # A normal cut at +-2 has std 0.8796 of the uncut one.
        assert weight.std() == pytest.approx(0.8796 * std, rel=0.02)
        assert not bias.any()
