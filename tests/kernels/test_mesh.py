"""B-splines, and charges on a mesh by them, against formulas in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("numba")

from dpserver.frames import Floats
from dpserver.kernels import mesh

ORDERS = [8, 12]
SIZES = [(8, 8, 8), (18, 12, 20), (12, 30, 25)]


def cardinal(u: Floats, order: int) -> Floats:
    """M_p(u) = Σ_k (-1)^k (p over k) (u - k)₊^(p-1)/(p - 1)!, by its symmetry from the left half."""
    u = np.minimum(u, order - u)
    terms = [(-1) ** k * math.comb(order, k) * np.maximum(u - k, 0.0) ** (order - 1) for k in range(order)]
    return sum(terms) / math.factorial(order - 1)


@pytest.mark.parametrize("order", ORDERS)
def test_splines_are_those_of_the_formula(order):
    table = mesh.splines_of(order)
    assert table.shape == (order, mesh.width_of(order))
    for f in (0.0, 0.3, 0.999):
        found = np.array([np.polyval(table[:, j], f - 0.5) for j in range(order)])
        np.testing.assert_allclose(found, cardinal(f + order - 1 - np.arange(order), order), rtol=0, atol=1e-12)
        assert found.sum() == pytest.approx(1.0, abs=1e-14)
    np.testing.assert_array_equal(table[:, order:], 0.0)


@pytest.mark.parametrize("order", ORDERS)
def test_pieces_meet(order):
    table = mesh.splines_of(order)
    for j in range(order - 1):  # M_p(f + k) at f = 0 is M_p(f + k - 1) at f = 1, and so are the slopes
        for piece in (lambda c: c, np.polyder):
            left, right = np.polyval(piece(table[:, j + 1]), 0.5), np.polyval(piece(table[:, j]), -0.5)
            assert left == pytest.approx(right, abs=1e-14)


@pytest.mark.parametrize("order", ORDERS)
def test_moduli(order):
    size = 20
    values = np.zeros(size)
    values[:order] = cardinal(np.arange(order) + 1.0, order)
    expected = 1 / np.abs(np.fft.fft(values)) ** 2
    np.testing.assert_allclose(mesh.moduli_of(size, order), expected, rtol=1e-9)


class Sample:
    """Charges in a sheared cell, and what is on and read off a mesh, slowly."""

    def __init__(self, sizes: tuple[int, int, int], order: int, n: int = 30) -> None:
        rng = np.random.default_rng(3)
        self.sizes, self.order = np.array(sizes), order
        self.cell = np.diag([5.0, 6.0, 7.0]) + rng.normal(0, 0.5, (3, 3))
        self.inverse = np.linalg.inv(self.cell)
        fractions = rng.uniform(-1.5, 1.5, (n, 3))
        fractions[0], fractions[1] = 0.0, (np.array(sizes) - 1e-13) / np.array(sizes)
        self.positions, self.charges = fractions @ self.cell, rng.normal(size=n)
        self.points, self.beyond = np.zeros((n, 3), dtype=np.int64), np.zeros((n, 3))
        mesh.find_places(self.positions, self.inverse, self.sizes, 0, n, self.points, self.beyond)
        self.starts, self.atoms = np.zeros(sizes[0] + 1, dtype=np.int64), np.zeros(n, dtype=np.int64)
        mesh.sort_planes(self.points, sizes[0], self.starts, self.atoms)
        self.table = mesh.splines_of(order)
        self.weights = np.zeros((n, 3, mesh.width_of(order)))
        mesh.find_weights(self.table, self.beyond, self.charges, self.atoms, 0, n, self.weights)

    def basis(self, positions: Floats) -> Floats:
        """The weight of each point of the mesh for each position, (n, nx, ny, nz)."""
        factors = []
        for d, size in enumerate(self.sizes):
            u = (positions @ self.inverse)[:, d] * size
            apart = (u[:, None] - np.arange(size)) % size
            factors.append(
                sum(cardinal(apart + k * size, self.order) * (apart + k * size < self.order) for k in (0, 1))
            )
        return np.einsum("ia,ib,ic->iabc", *factors)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sizes", SIZES)
def test_charges_are_spread(sizes, order):
    sizes = tuple(max(size, order) for size in sizes)
    sample = Sample(sizes, order)
    nx, ny, nz = sizes
    found = np.full((nx, ny, nz + 24), np.nan)
    for low, high in ((0, 3), (3, nx)):
        mesh.spread(found, sample.sizes, order, sample.points, sample.starts, sample.atoms, sample.weights, low, high)
    assert found.sum() == pytest.approx(sample.charges.sum(), abs=1e-12)
    wrapped = found[:, :, :nz].copy()
    for z in range(nz, nz + 24):
        wrapped[:, :, z % nz] += found[:, :, z]
    expected = np.einsum("i,iabc->abc", sample.charges, sample.basis(sample.positions))
    np.testing.assert_allclose(wrapped, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sizes", SIZES)
def test_potential_and_gradient_are_read(sizes, order):
    sizes = tuple(max(size, order) for size in sizes)
    sample, nz = Sample(sizes, order), sizes[2]
    values = np.random.default_rng(4).normal(size=sizes)
    given = values[:, :, np.arange(nz + 24) % nz].copy()
    n = len(sample.charges)
    potential, gradient = np.zeros(n), np.zeros((n, 3))
    for low, high in ((0, 7), (7, n)):
        mesh.collect(
            given, sample.sizes, sample.table, sample.inverse, sample.points, sample.beyond, sample.atoms, low, high,
            potential, gradient,
        )  # fmt: skip

    def read(positions: Floats) -> Floats:
        return np.einsum("iabc,abc->i", sample.basis(positions), values)

    np.testing.assert_allclose(potential, read(sample.positions), rtol=0, atol=1e-11)
    for d in range(3):
        step = np.zeros(3)
        step[d] = 1e-4
        numeric = (read(sample.positions + step) - read(sample.positions - step)) / 2e-4
        np.testing.assert_allclose(gradient[:, d], numeric, rtol=0, atol=1e-6)


def test_atoms_are_sorted_by_planes_and_stay_in_order():
    points = np.array([[2, 0, 0], [0, 1, 0], [2, 5, 1], [0, 0, 0], [3, 0, 0]])
    starts, atoms = np.zeros(6, dtype=np.int64), np.zeros(5, dtype=np.int64)
    mesh.sort_planes(points, 5, starts, atoms)
    np.testing.assert_array_equal(atoms, [1, 3, 0, 2, 4])
    np.testing.assert_array_equal(starts, [0, 2, 2, 4, 5, 5])
