"""Derivatives of nets of one variable, layer by layer.

y = f(z(x)):  y' = f' z',  y'' = f'' z'² + f' z'',  y''' = f''' z'³ + 3 f'' z' z'' + f' z'''
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dpserver.models.networks import Activation, Layer


def derivatives(layers: Iterable[Layer], x: Tensor, beside: Tensor | None = None) -> list[Tensor]:
    """Value and first three derivatives of a net by its input.

    Args:
        layers: of the net.
        x: its first input, (n,), float64.
        beside: further inputs, which are constant, (m,), float64; None where there are none.

    Returns:
        Four tensors, (n, n_out), float64.
    """
    others = x.new_zeros(0) if beside is None else beside
    n_in = 1 + len(others)
    zeros, slope = x.new_zeros(len(x), n_in), x.new_zeros(len(x), n_in)
    slope[:, 0] = 1
    y = [torch.cat([x[:, None], others.expand(len(x), -1)], dim=1), slope, zeros, zeros]
    for layer in layers:
        weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
        z = [part @ weight for part in y]
        f = _slopes(layer.activation, z[0] + bias)
        out = [
            f[0],
            f[1] * z[1],
            f[2] * z[1] ** 2 + f[1] * z[2],
            f[3] * z[1] ** 3 + 3 * f[2] * z[1] * z[2] + f[1] * z[3],
        ]
        if layer.timestep is not None:
            out = [part * layer.timestep.detach().double() for part in out]
        if layer.copies:
            out = [part + torch.cat([given] * layer.copies, dim=1) for part, given in zip(out, y, strict=True)]
        y = out
    return y


def _slopes(activation: Activation, z: Tensor) -> list[Tensor]:
    """An activation function and its first three derivatives, number by number."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        found = [activation(z)]
        for _ in range(3):
            last = found[-1]
            if last.requires_grad:
                (last,) = torch.autograd.grad(last.sum(), z, create_graph=True, materialize_grads=True)
            else:
                last = torch.zeros_like(z)
            found.append(last)
    return [part.detach() for part in found]
