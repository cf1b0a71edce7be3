"""The two network kinds of a Deep Potential, both of residual layers.

    y = act(x W + b) * t, to which x is added where in and out sizes agree, (x, x) where out is twice in

t is a trainable time step, present with `resnet_dt` where there is such a skip connection. Initial values follow
DeePMD-kit: W ~ N(0, 1/(n_in + n_out)), b ~ N(0, 1), t ~ N(0.1, 0.001²).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dpserver.errors import ConfigError

Activation = Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, Activation] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "relu6": nn.functional.relu6,
    "sigmoid": torch.sigmoid,
    "softplus": nn.functional.softplus,
    "silu": nn.functional.silu,
    "gelu": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "gelu_tf": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "linear": lambda x: x,
    "none": lambda x: x,
}


def activation(name: str) -> Activation:
    """Return an activation function by DeePMD-kit's name, case-insensitive.

    Besides the usual ones `silut:c` (or `custom_silu:c`, c = 3 by default) is SiLU below c, continued above it by a
    hyperbolic tangent of the same value and slope.

    Raises:
        ConfigError: the name is unknown.
    """
    key, _, threshold = name.lower().partition(":")
    if key in {"silut", "custom_silu"}:
        return _silut(float(threshold or 3.0))
    if key not in _ACTIVATIONS:
        known = ", ".join([*_ACTIVATIONS, "silut[:threshold]"])
        raise ConfigError(f"activation function {name!r} is unknown; expected one of {known}")
    return _ACTIVATIONS[key]


def _silut(c: float) -> Activation:
    sigmoid = 1 / (1 + math.exp(-c))
    slope, offset = sigmoid + c * sigmoid * (1 - sigmoid), c * sigmoid

    def silut(x: Tensor) -> Tensor:
        return torch.where(x < c, nn.functional.silu(x), torch.tanh(slope * (x - c)) + offset)

    return silut


class Layer(nn.Module):
    """One fully connected layer with optional time step and skip connection.

    Args:
        n_in: size of the input.
        n_out: size of the output.
        activation_function: name of the activation.
        is_residual: add the input where the sizes allow it.
        has_timestep: multiply by a trainable time step, if there is a skip connection.
        generator: source of the initial values.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        activation_function: str,
        *,
        is_residual: bool,
        has_timestep: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()

        def normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> nn.Parameter:
            return nn.Parameter(mean + std * torch.randn(*shape, dtype=torch.float64, generator=generator))

        self.weight = normal(n_in, n_out, std=1 / math.sqrt(n_in + n_out))
        self.bias = normal(n_out)
        self.activation = activation(activation_function)
        self.copies = n_out // n_in if is_residual and n_out in (n_in, 2 * n_in) else 0
        self.timestep = normal(n_out, mean=0.1, std=0.001) if has_timestep and self.copies else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_in) to (n, n_out)."""
        y = self.activation(torch.addmm(self.bias, x, self.weight))
        if self.timestep is not None:
            y = y * self.timestep
        if self.copies:
            y = y + (x if self.copies == 1 else torch.cat([x, x], dim=-1))
        return y


def embedding_net(
    neuron: Sequence[int], activation_function: str, resnet_dt: bool, generator: torch.Generator, n_in: int = 1
) -> nn.Sequential:
    """Build the net that maps the normalised s of an edge, (n, 1), to its features, (n, neuron[-1]).

    With another `n_in` the input holds more than s.
    """
    return nn.Sequential(
        *(
            Layer(a, b, activation_function, is_residual=True, has_timestep=resnet_dt, generator=generator)
            for a, b in pairwise([n_in, *neuron])
        )
    )


def fitting_net(
    n_in: int,
    neuron: Sequence[int],
    activation_function: str,
    resnet_dt: bool,
    generator: torch.Generator,
    skips_only_equal: bool = False,
    n_out: int = 1,
) -> nn.Sequential:
    """Build the net that maps a descriptor, (n, n_in), to what an atom adds, (n, n_out), by a linear last layer.

    With `skips_only_equal` only hidden layers of the width of the one before have a skip connection.
    """
    hidden = [
        Layer(
            a,
            b,
            activation_function,
            is_residual=not skips_only_equal or (k > 0 and a == b),
            has_timestep=resnet_dt,
            generator=generator,
        )
        for k, (a, b) in enumerate(pairwise([n_in, *neuron]))
    ]
    last = Layer([n_in, *neuron][-1], n_out, "linear", is_residual=False, has_timestep=False, generator=generator)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*hidden, last)
