"""The sum over all waves against the formula in numpy."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from dpserver.frames import Floats
from dpserver.kernels import waves

SIGMA, FACTOR = 0.8, 2.3


def in_numpy(x: Floats, q: Floats, inverse: Floats, reach: float) -> tuple[Floats, Floats, Floats, int]:
    """Potential, gradient, virial, and how many waves there are, one of each pair of opposite ones."""
    m = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    g = 2 * np.pi * m @ inverse.T
    square = (g**2).sum(axis=1)
    is_in = (square <= reach) & (square > 0)
    g, square = g[is_in], square[is_in]
    weight = 0.5 * FACTOR * np.exp(-(SIGMA**2) * square) / square
    phases = np.exp(1j * x @ g.T)
    factors = q @ phases
    pulled = phases.conj() * factors * weight
    energy = 0.5 * weight * np.abs(factors) ** 2
    stress = energy.sum() * np.eye(3) - 2 * np.einsum("w,wd,we->de", energy * (1 / square + SIGMA**2), g, g)
    return pulled.sum(axis=1).real, (-1j * pulled @ g).real, stress, len(g) // 2


@pytest.mark.parametrize("n", [1, 15, 16, 37])
@pytest.mark.parametrize("reach", [0.3, 4.0, 20.0])
def test_all_waves(n, reach):
    rng = np.random.default_rng(n)
    cell = np.diag([5.0, 4.0, 6.0]) + rng.normal(0, 0.8, (3, 3))
    x, q, inverse = rng.uniform(-3, 9, (n, 3)), rng.normal(size=n), np.linalg.inv(cell)
    longest = np.floor(np.sqrt(reach) * np.linalg.norm(cell, axis=1) / (2 * np.pi)).astype(np.int64)
    potential, gradient, virial = np.ones(n), np.ones((3, n)), np.ones((3, 3))
    waves.add_waves(x, q, inverse, longest, np.array([reach, SIGMA**2, FACTOR]), potential, gradient, virial)
    expected = in_numpy(x, q, inverse, reach)
    scale = 1e-13 * max(1.0, np.abs(expected[1]).max())
    np.testing.assert_allclose(potential - 1, expected[0], rtol=0, atol=scale)
    np.testing.assert_allclose(gradient.T - 1, expected[1], rtol=0, atol=4 * scale)
    np.testing.assert_allclose(virial - 1, expected[2], rtol=0, atol=10 * scale * n)
    assert len(waves.list_waves(inverse, longest, reach)) == expected[3]
