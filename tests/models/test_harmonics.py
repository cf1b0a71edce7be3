"""Solid harmonics: against the theorem that makes them useful."""

from __future__ import annotations

import numpy as np
import torch
from numpy.polynomial import legendre

from dpserver.models.harmonics import solid_harmonics
from tests import structures

DEGREE = 4


def vectors(n: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 3)))


def test_products_are_legendre_polynomials() -> None:
    u, v = vectors(7, 1), vectors(9, 2)
    of_u, of_v = (solid_harmonics(x, DEGREE).numpy() for x in (u, v))
    assert of_u.shape == (7, 5 + 7 + 9)
    lengths = np.outer(*(np.linalg.norm(x.numpy(), axis=1) for x in (u, v)))
    cosines = (u @ v.T).numpy() / lengths
    at = 0
    for degree in range(2, DEGREE + 1):
        here = slice(at, at + 2 * degree + 1)
        at = here.stop
        expected = lengths**degree * legendre.legval(cosines, [0] * degree + [1])
        np.testing.assert_allclose(of_u[:, here] @ of_v[:, here].T, expected, rtol=1e-12, atol=1e-12)


def test_a_rotation_mixes_one_degree_with_itself() -> None:
    u, turn = vectors(30, 3), torch.from_numpy(structures.rotation(np.random.default_rng(4)))
    before, after = (solid_harmonics(x, 3)[:, :5].numpy() for x in (u, u @ turn))
    mixing, _, rank, _ = np.linalg.lstsq(before, after, rcond=None)
    assert rank == 5
    np.testing.assert_allclose(before @ mixing, after, atol=1e-12)
    np.testing.assert_allclose(mixing @ mixing.T, np.eye(5), atol=1e-12)


def test_they_are_known_polynomials() -> None:
    x, y, z = 0.3, -0.7, 1.1
    found = solid_harmonics(torch.tensor([[x, y, z]], dtype=torch.float64), 2)[0].tolist()
    square, root = x * x + y * y + z * z, 3**0.5
    expected = [1.5 * z * z - square / 2, root * x * z, root * y * z, root / 2 * (x * x - y * y), root * x * y]
    np.testing.assert_allclose(sorted(found), sorted(expected), rtol=1e-12)
