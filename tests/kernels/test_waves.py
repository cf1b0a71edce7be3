"""The sums over all waves and all pairs against formulas in numpy, of all atoms and of some."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("numba")

from dpserver.frames import Floats
from dpserver.kernels import waves

SIGMA, FACTOR = 0.8, 2.3


def in_numpy(x: Floats, q: Floats, inverse: Floats, reach: float) -> tuple[Floats, Floats, Floats, int]:
    """Potential, gradient, virial, and how many lines of waves there are, one of each pair of opposite ones."""
    m = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    g = 2 * np.pi * m @ inverse.T
    square = (g**2).sum(axis=1)
    is_in = (square <= reach) & (square > 0)
    g, square, lines = g[is_in], square[is_in], {tuple(line) for line in m[is_in, :2].tolist()} | {(0, 0)}
    weight = 0.5 * FACTOR * np.exp(-(SIGMA**2) * square) / square
    phases = np.exp(1j * x @ g.T)
    factors = q @ phases
    pulled = phases.conj() * factors * weight
    energy = 0.5 * weight * np.abs(factors) ** 2
    stress = energy.sum() * np.eye(3) - 2 * np.einsum("w,wd,we->de", energy * (1 / square + SIGMA**2), g, g)
    return pulled.sum(axis=1).real, (-1j * pulled @ g).real, stress, (len(lines) + 1) // 2


@pytest.mark.parametrize("n", [1, 15, 16, 37])
@pytest.mark.parametrize("reach", [0.3, 4.0, 20.0])
def test_all_waves(n, reach):
    rng = np.random.default_rng(n)
    cell = np.diag([5.0, 4.0, 6.0]) + rng.normal(0, 0.8, (3, 3))
    x, q, inverse = rng.uniform(-3, 9, (n, 3)), rng.normal(size=n), np.linalg.inv(cell)
    longest = np.floor(np.sqrt(reach) * np.linalg.norm(cell, axis=1) / (2 * np.pi)).astype(np.int64)
    shape, found = np.array([reach, SIGMA**2, FACTOR]), ones(n)
    waves.add_waves(x, q, inverse, longest, shape, *found)
    expected = in_numpy(x, q, inverse, reach)
    assert_added(found, expected)
    lines = waves.list_lines(inverse, longest, reach)
    assert len(lines) == expected[3]
    parts = [slice(0, n // 3), slice(n // 3, n)]
    factors = np.zeros((len(parts), lines[-1, 2:].sum(), 4))
    for part, some in zip(parts, factors, strict=True):
        waves.find_factors(x[part], q[part], inverse, longest, lines, some)
    for part in parts:
        potential, gradient, virial = ones(len(q[part]))
        waves.add_factors(x[part], inverse, longest, lines, shape, factors.sum(axis=0), potential, gradient, virial)
        found[0][part], found[1][:, part] = potential, gradient
        assert_added((*found[:2], virial), expected)


@pytest.mark.parametrize("n", [1, 2, 17])
def test_all_pairs(n):
    rng = np.random.default_rng(n)
    x, q, shape, found = rng.uniform(-3, 3, (n, 3)), rng.normal(size=n), np.array([SIGMA, FACTOR]), ones(n)
    waves.add_pairs(x, q, 0, shape, *found)
    d = x[:, None] - x
    r = np.linalg.norm(d, axis=2) + np.eye(n)
    value = FACTOR * np.vectorize(math.erf)(r / (2 * SIGMA)) / r * (1 - np.eye(n))
    slope = FACTOR * np.exp(-((r / (2 * SIGMA)) ** 2)) / (SIGMA * np.sqrt(np.pi)) * (1 - np.eye(n)) - value
    pull = (q[:, None] * slope / r**2 * q)[..., None] * d
    expected = value @ q, np.einsum("ij,ijd->id", slope / r**2 * q, d), -np.einsum("ijd,ije->de", pull, d) / 2
    assert_added(found, expected)
    virial = np.ones((3, 3))
    for low, end in ((0, n // 3), (n // 3, n - n // 4), (n - n // 4, n)):
        potential, gradient, _ = ones(end - low)
        waves.add_pairs(x, q, low, shape, potential, gradient, virial)
        found[0][low:end], found[1][:, low:end] = potential, gradient
    assert_added((*found[:2], virial), expected)


def ones(n: int) -> tuple[Floats, Floats, Floats]:
    """Where potential, gradient and virial are added to."""
    return np.ones(n), np.ones((3, n)), np.ones((3, 3))


def assert_added(found: tuple[Floats, ...], expected: tuple[Floats | int, ...]) -> None:
    scale = 1e-13 * max(1.0, np.abs(expected[1]).max())
    np.testing.assert_allclose(found[0] - 1, expected[0], rtol=0, atol=scale)
    np.testing.assert_allclose(found[1].T - 1, expected[1], rtol=0, atol=4 * scale)
    np.testing.assert_allclose(found[2] - 1, expected[2], rtol=0, atol=10 * scale * len(found[0]))
