"""Stacked multi-layer perceptrons: every network of the project is a stack.

A stack holds many networks of one shape in tensors with leading axes, so that
one batched product evaluates all of them. Axes, used as suffixes throughout:

    S seeds   C critics   E ensemble members   B batch rows
    O observation dims   A action dims   D = O + 1 (next-observation delta, reward)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Initializer = Callable[[Tensor, Tensor, torch.Generator], None]

MANY_ROWS = 512  # per network, from which on a CPU is faster network by network


def uniform_fan_in(weight: Tensor, bias: Tensor, generator: torch.Generator) -> None:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what `torch.nn.Linear` uses for weight and bias."""
    bound = 1.0 / math.sqrt(weight.shape[-2])
    weight.uniform_(-bound, bound, generator=generator)
    bias.uniform_(-bound, bound, generator=generator)


def truncated_normal(weight: Tensor, bias: Tensor, generator: torch.Generator) -> None:
    """N(0, (1 / (2 sqrt(fan_in)))^2) cut at two stds, biases zero: MBPO's dynamics models."""
    bias.zero_()
    std = 1.0 / (2.0 * math.sqrt(weight.shape[-2]))
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)


class StackedMLP(nn.Module):
    """A stack of MLPs with weights `[S, *members, in, out]`.

    Args:
        sizes: layer widths, input first and output last.
        generators: one CPU generator per seed; seed s's weights depend on `generators[s]` only.
        members: further leading axes, for example `(2,)` critics or `(7,)` dynamics models.
        activation: applied after every layer but the last.
        initializer: fills one seed's weight `[*members, in, out]` and bias in place.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        generators: Sequence[torch.Generator],
        members: tuple[int, ...] = (),
        activation: Callable[[Tensor], Tensor] = torch.relu,
        initializer: Initializer = uniform_fan_in,
    ) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.stack = (len(generators), *members)
        self.activation = activation
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in zip(self.sizes[:-1], self.sizes[1:], strict=True):
            weight = torch.empty(*self.stack, fan_in, fan_out)
            bias = torch.empty(*self.stack, 1, fan_out)
            for s, generator in enumerate(generators):
                initializer(weight[s], bias[s], generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))

    def forward(self, x: Tensor) -> Tensor:
        """`[S, *members, B, in] -> [S, *members, B, out]`.

        `x` may have size 1 on the member axes (all members see the same rows).
        """
        x = x.expand(*self.stack, *x.shape[-2:]).reshape(-1, *x.shape[-2:])
        weights = [weight.flatten(0, -3) for weight in self.weights]
        biases = [bias.flatten(0, -3) for bias in self.biases]
        return self._layers(x, weights, biases).view(*self.stack, x.shape[-2], self.sizes[-1])

    def one_member(self, x: Tensor, member_S: Tensor) -> Tensor:
        """Of one member per seed only, in a stack `[S, E]`: `[S, B, in] -> [S, B, out]`."""
        seed = torch.arange(self.stack[0], device=member_S.device)
        weights = [weight[seed, member_S] for weight in self.weights]
        biases = [bias[seed, member_S] for bias in self.biases]
        return self._layers(x, weights, biases)

    def _layers(self, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        """`[N, B, in] -> [N, B, out]` of N networks."""
        # One network's activations stay in the cache from layer to layer, and its product has
        # all threads, where seven products leave two threads uneven. Gradients need all
        # activations again in any case: with them nothing is gained.
        many_rows = x.is_cpu and x.shape[1] >= MANY_ROWS and not torch.is_grad_enabled()
        if len(x) > 1 and not many_rows:
            return self._all_layers(x, weights, biases)
        outputs = []
        for n, x_BI in enumerate(x):
            one = ([parameter[n] for parameter in layers] for layers in (weights, biases))
            outputs.append(self._all_layers(x_BI, *one))
        return torch.stack(outputs)

    def _all_layers(self, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            x = self.activation(_affine(x, weight, bias))
        # In bfloat16 a Q of 200 would be a whole number. The last layer is narrow and costs little.
        with torch.autocast(x.device.type, enabled=False):
            return _affine(x, weights[-1], biases[-1])


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # Compiled, a stack's biases are added together with the activation; baddbmm copies them first.
    # Under autocast the product alone shall have fewer bits, not the sum.
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return (x @ weight).to(bias.dtype) + bias
    return (torch.addmm if x.dim() == 2 else torch.baddbmm)(bias, x, weight)
