"""The mesh of charges against the same in numpy, against all waves, and against its own energy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dpserver.frames import Floats
from dpserver.kernels.mesh import moduli_of, splines_of
from dpserver.kernels.threads import Threads
from dpserver.models.config import ElectrostaticsConfig
from dpserver.models.electrostatics_mesh import Mesh, order_of, round_size, spacing_of
from dpserver.models.electrostatics_sum import ChargeSum
from dpserver.units import COULOMB
from tests import structures

CELL = np.array([[6.0, 0.3, -0.8], [0.5, 7.0, 0.2], [-0.4, 1.1, 5.5]])
MESHES = [((8, 8, 8), 8), ((12, 12, 12), 12), ((18, 20, 24), 8), ((16, 12, 30), 12), ((40, 18, 10), 8)]
SIGMA = 0.9


def charges(n: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Positions, some of them outside the cell, and charges that do not add up to 0."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.7, 1.7, (n, 3)) @ CELL, rng.normal(size=n)


def in_numpy(
    positions: Floats, q: Floats, cell: Floats, sizes: tuple[int, ...], order: int
) -> tuple[Floats, Floats, Floats]:
    """Potential, gradient and virial by smooth particle-mesh Ewald on the same mesh, with numpy's transforms."""
    table, n, inverse = splines_of(order)[:, :order], np.array(sizes), np.linalg.inv(cell)
    u = (positions @ inverse % 1.0) * n
    first, values, slopes = np.floor(u).astype(int) - order + 1, [], []
    for d in range(3):
        t = u[:, d] - np.floor(u[:, d]) - 0.5
        values.append(np.array([np.polyval(table[:, j], t) for j in range(order)]).T)
        slopes.append(np.array([np.polyval(np.polyder(table[:, j]), t) for j in range(order)]).T * n[d])
    index = [(first[:, d, None] + np.arange(order)) % n[d] for d in range(3)]
    where = index[0][:, :, None, None], index[1][:, None, :, None], index[2][:, None, None, :]
    mesh = np.zeros(sizes)
    np.add.at(mesh, where, np.einsum("i,ia,ib,ic->iabc", q, *values))
    m = np.stack(np.meshgrid(*(np.fft.fftfreq(size, 1 / size) for size in sizes), indexing="ij"), axis=-1)
    g = 2 * np.pi * m @ inverse.T
    square = (g**2).sum(axis=-1)
    square[0, 0, 0] = 1.0
    moduli = np.einsum("a,b,c->abc", *(moduli_of(size, order) for size in sizes))
    influence = 4 * np.pi * COULOMB / abs(np.linalg.det(cell)) * moduli * np.exp(-(SIGMA**2) * square) / square
    influence[0, 0, 0] = 0.0
    influence[(2 * np.abs(m) == n).any(axis=-1)] = 0.0
    waves = np.fft.fftn(mesh)
    points = np.fft.ifftn(waves * influence, norm="forward").real[where]
    gradient = [
        np.einsum("iabc,ia,ib,ic->i", points, *[(slopes if e == d else values)[e] for e in range(3)]) for d in range(3)
    ]
    each = 0.5 * influence * np.abs(waves) ** 2
    pulled = 2 * each * (1 / square + SIGMA**2)
    virial = each.sum() * np.eye(3) - np.einsum("abc,abcd,abce->de", pulled, g, g)
    return np.einsum("iabc,ia,ib,ic->i", points, *values), np.array(gradient).T @ inverse.T, virial


@pytest.mark.parametrize(("sizes", "order"), MESHES)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_as_in_numpy(sizes, order, threads):
    x, q = charges(23)
    found = Mesh(sizes, order, SIGMA, Threads(threads)).evaluate(x, q, CELL)
    for ours, expected in zip(found, in_numpy(x, q, CELL, sizes, order), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize(("sizes", "order"), MESHES)
def test_the_same_bits_for_any_number_of_threads(sizes, order):
    x, q = charges(57)
    one, four = (Mesh(sizes, order, SIGMA, Threads(n)).evaluate(x, q, CELL) for n in (1, 4))
    for a, b in zip(one, four, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_mesh_forgets_what_was_on_it():
    mesh = Mesh((18, 20, 24), 8, SIGMA, Threads(2))
    for n, cell in ((40, CELL), (3, CELL), (11, 1.1 * CELL), (0, CELL)):
        x, q = charges(n, n)
        fresh = Mesh((18, 20, 24), 8, SIGMA, Threads(2)).evaluate(x, q, cell)
        for a, b in zip(mesh.evaluate(x, q, cell), fresh, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("sizes", "order"), [((10, 12, 10), 8), ((12, 12, 12), 12)])
def test_derivatives_are_those_of_the_energy_however_coarse(sizes, order):
    (x, q), mesh, step = charges(9), Mesh(sizes, order, SIGMA, Threads(1)), 1e-4
    _, gradient, virial = mesh.evaluate(x, q, CELL)

    def energy(moved: Floats, cell: Floats) -> float:
        return 0.5 * float(q @ mesh.evaluate(moved, q, cell)[0])

    for d in range(3):
        shift = np.zeros_like(x)
        shift[4, d] = step
        numeric = (energy(x + shift, CELL) - energy(x - shift, CELL)) / (2 * step)
        assert q[4] * gradient[4, d] == pytest.approx(numeric, abs=1e-6 * np.abs(gradient).max())
    for a, b in ((0, 0), (1, 2), (2, 0)):
        strain = np.zeros((3, 3))
        strain[a, b] = step
        up, down = (energy(x @ (np.eye(3) + s), CELL @ (np.eye(3) + s)) for s in (strain, -strain))
        assert virial[a, b] == pytest.approx((down - up) / (2 * step), abs=1e-6 * np.abs(virial).max())


@pytest.mark.parametrize("accuracy", [1e-3, 1e-4, 1e-5, 2e-6, 1e-6, 1e-8])
@pytest.mark.parametrize(("sigma", "shear"), [(0.7, None), (1.0, structures.SHEAR), (1.4, None)])
def test_as_accurate_as_was_asked_for(accuracy, sigma, shear):
    frame = structures.water((4, 4, 4), shear, seed=5)
    q = np.array([-0.8, 0.4])[frame.types]

    def forces(**options: Any) -> Floats:
        config = ElectrostaticsConfig.model_validate({"charges": {"O": 1.0}, "sigma": sigma, **options})
        return ChargeSum(config, 1).evaluate(frame, q).gradient

    exact = forces(method="ewald", accuracy=1e-12)
    error = math.sqrt(np.mean((forces(method="pme", accuracy=accuracy) - exact) ** 2) / np.mean(exact**2))
    assert error < 0.6 * accuracy


def test_finer_meshes_for_more():
    spacings = [spacing_of(1.3, accuracy) for accuracy in (1e-2, 1e-3, 1e-4, 1e-5, 2e-6)]
    assert spacings == sorted(spacings, reverse=True)
    tighter = [spacing_of(1.3, accuracy) for accuracy in (1e-6, 1e-8, 1e-12)]
    assert tighter == sorted(tighter, reverse=True)
    assert spacing_of(2.6, 1e-5) == pytest.approx(2 * spacing_of(1.3, 1e-5))
    assert [order_of(accuracy) for accuracy in (1e-3, 1e-5, 1e-6, 1e-10)] == [8, 8, 12, 12]


def test_a_mesh_has_as_many_points_as_a_charge_takes():
    assert [round_size(least, 8) for least in (1, 8, 9, 11)] == [8, 8, 10, 12]
    assert [round_size(least, 12) for least in (1, 12, 13)] == [12, 12, 16]
