"""Activation functions and their derivatives, number by number."""

from __future__ import annotations

import math
from typing import Final

from dpserver.jit import jit

TANH, RELU, RELU6, SOFTPLUS, SIGMOID, GELU, SILU, SILUT, LINEAR = range(9)
CODES: Final = {
    "tanh": TANH,
    "relu": RELU,
    "relu6": RELU6,
    "softplus": SOFTPLUS,
    "sigmoid": SIGMOID,
    "gelu": GELU,
    "gelu_tf": GELU,
    "silu": SILU,
    "silut": SILUT,
    "custom_silu": SILUT,
    "linear": LINEAR,
    "none": LINEAR,
}
"""Code of each of DeePMD-kit's names."""

_GELU: Final = math.sqrt(2 / math.pi)


def code(name: str) -> tuple[int, float]:
    """The code of an activation function, and its parameter: the threshold of `silut`, else 0."""
    key, _, threshold = name.lower().partition(":")
    return CODES[key], float(threshold or 3.0) if CODES[key] == SILUT else 0.0


@jit
def activate(kind: int, parameter: float, x: float) -> tuple[float, float]:
    """Value and derivative at x of the function of a code."""
    if kind == TANH:
        y = math.tanh(x)
        return y, 1 - y * y
    if kind == RELU:
        return max(x, 0.0), 1.0 if x > 0 else 0.0
    if kind == RELU6:
        return min(max(x, 0.0), 6.0), 1.0 if 0 < x < 6 else 0.0
    if kind == LINEAR:
        return x, 1.0
    if kind == GELU:
        inner = math.tanh(_GELU * (x + 0.044715 * x**3))
        slope = _GELU * (1 + 3 * 0.044715 * x * x)
        return x / 2 * (1 + inner), (1 + inner) / 2 + x / 2 * (1 - inner * inner) * slope
    sigmoid = 1 / (1 + math.exp(-x))
    if kind == SIGMOID:
        return sigmoid, sigmoid * (1 - sigmoid)
    if kind == SOFTPLUS:
        return max(x, 0.0) + math.log1p(math.exp(-abs(x))), sigmoid
    if kind == SILU or x < parameter:
        return x * sigmoid, sigmoid * (1 + x * (1 - sigmoid))
    edge = 1 / (1 + math.exp(-parameter))
    slope = edge + parameter * edge * (1 - edge)
    y = math.tanh(slope * (x - parameter))
    return y + parameter * edge, slope * (1 - y * y)
