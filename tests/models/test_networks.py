"""Layers and nets against their formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpserver.errors import ConfigError
from dpserver.models.networks import Layer, activation, embedding_net, fitting_net

X = torch.linspace(-8, 8, 321, dtype=torch.float64)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


FORMULAS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "sigmoid": sigmoid,
    "gelu": gelu,
    "gelu_tf": gelu,
    "silu": lambda x: x * sigmoid(x),
    "linear": lambda x: x,
    "none": lambda x: x,
    "Linear": lambda x: x,
    "TANH": np.tanh,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(n_in: int, n_out: int, *, is_residual: bool = True, has_timestep: bool = False) -> Layer:
    return Layer(n_in, n_out, "tanh", is_residual=is_residual, has_timestep=has_timestep, generator=generator())


@pytest.mark.parametrize("name", FORMULAS)
def test_activation_is_its_formula(name: str) -> None:
    np.testing.assert_allclose(activation(name)(X).numpy(), FORMULAS[name](X.numpy()), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "threshold"), [("silut", 3.0), ("silut:1.5", 1.5), ("custom_silu:10", 10.0)])
def test_silut_continues_silu_with_its_slope(name: str, threshold: float) -> None:
    silut = activation(name)
    below = X[threshold > X]
    torch.testing.assert_close(silut(below), torch.nn.functional.silu(below))
    x = torch.tensor([threshold - 1e-7, threshold + 1e-7], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(silut(x).sum(), x)
    assert silut(x)[0].item() == pytest.approx(silut(x)[1].item(), abs=1e-6)
    assert slope[0].item() == pytest.approx(slope[1].item(), abs=1e-6)
    assert silut(torch.tensor(1e3)).item() <= silut(torch.tensor(threshold)).item() + 1


def test_unknown_activation_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'tanhh' is unknown; expected one of tanh, .*silut"):
        activation("tanhh")


@pytest.mark.parametrize(
    ("n_in", "n_out", "copies"), [(3, 3, 1), (3, 6, 2), (3, 4, 0), (6, 3, 0), (1, 1, 1), (1, 2, 2)]
)
@pytest.mark.parametrize("has_timestep", [False, True])
def test_skip_connection_depends_on_the_sizes(n_in: int, n_out: int, copies: int, has_timestep: bool) -> None:
    x = torch.randn(5, n_in, dtype=torch.float64, generator=generator(1))
    residual = layer(n_in, n_out, has_timestep=has_timestep)
    y = torch.tanh(x @ residual.weight + residual.bias)
    assert (residual.timestep is not None) == (has_timestep and copies > 0)
    scale = 1.0 if residual.timestep is None else residual.timestep
    skipped = torch.cat([x] * copies, dim=1) if copies else torch.zeros_like(y)
    torch.testing.assert_close(residual(x), y * scale + skipped, rtol=1e-14, atol=1e-15)
    plain = layer(n_in, n_out, is_residual=False, has_timestep=has_timestep)
    assert plain.timestep is None
    torch.testing.assert_close(plain(x), y, rtol=1e-14, atol=1e-15)


def test_initial_values_have_the_spread_of_deepmd_kit() -> None:
    wide = layer(300, 600, has_timestep=True)
    assert wide.weight.std().item() == pytest.approx(1 / 30, rel=0.02)
    assert wide.bias.std().item() == pytest.approx(1, rel=0.1)
    assert wide.timestep is not None
    assert wide.timestep.mean().item() == pytest.approx(0.1, abs=1e-3)
    assert wide.timestep.std().item() == pytest.approx(1e-3, rel=0.1)
    assert all(p.dtype == torch.float64 for p in wide.parameters())


def test_nets_have_the_layers_asked_for() -> None:
    embedding = embedding_net([25, 50, 100], "tanh", False, generator())
    assert [(*k.weight.shape, k.copies) for k in embedding] == [(1, 25, 0), (25, 50, 2), (50, 100, 2)]
    fitting = fitting_net(64, [24, 24, 1], "tanh", True, generator())
    assert [(*k.weight.shape, k.copies) for k in fitting] == [(64, 24, 0), (24, 24, 1), (24, 1, 0), (1, 1, 0)]
    assert [k.timestep is not None for k in fitting] == [False, True, False, False]
    x = torch.randn(7, 64, dtype=torch.float64, generator=generator(2))
    last = fitting[-1]
    torch.testing.assert_close(fitting(x), fitting[:-1](x) @ last.weight + last.bias)


def test_same_seed_same_weights() -> None:
    nets = [fitting_net(8, [4, 4], "tanh", True, generator(seed)) for seed in (3, 3, 4)]
    first, second, other = (torch.cat([p.detach().flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
