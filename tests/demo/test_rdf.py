import numpy as np
import pytest

from dpserver.demo.rdf import coarsen, largest_radius, radial_distribution, shell_volumes
from dpserver.errors import StructureError

SKEWED = np.array([[9.0, 0.0, 0.0], [3.0, 8.0, 0.0], [-2.0, 1.5, 10.0]])


def test_ideal_gas_is_one_in_any_cell():
    rng = np.random.default_rng(1)
    fractional = rng.uniform(-3, 3, (200, 60, 3))
    cells = np.broadcast_to(SKEWED, (200, 3, 3))
    edges = np.linspace(0.0, largest_radius(cells), 9)
    oxygen, hydrogen = np.arange(20), np.arange(20, 60)
    for first, second in ((oxygen, oxygen), (oxygen, hydrogen), (hydrogen, hydrogen)):
        g = radial_distribution(fractional @ SKEWED, cells, first, second, edges)
        n_pairs = len(first) * (len(first) - 1) / 2 if first is second else len(first) * len(second)
        counts = 200 * n_pairs * shell_volumes(edges) / np.linalg.det(SKEWED)
        np.testing.assert_allclose(g, 1.0, atol=5 * counts.min() ** -0.5)


def test_crystal_has_its_coordination_numbers():
    # Simple cubic, 4 × 4 × 4 with a = 2 Å: 6 neighbours at 2, 12 at 2√2, 8 at 2√3 Å, 6 at 4 Å (seen once per pair of
    # opposite images, which lie at the largest radius and are left out here).
    lattice = 2.0 * np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(1, -1, 3)
    cells = 8.0 * np.eye(3)[None]
    edges = np.arange(0.05, 3.96, 0.1)
    atoms = np.arange(64)
    g = radial_distribution(lattice, cells, atoms, atoms, edges)
    neighbours = g * shell_volumes(edges) * 63 / 512.0
    shells = np.zeros(len(edges) - 1)
    for distance, number in ((2.0, 6), (2 * 2**0.5, 12), (2 * 3**0.5, 8)):
        shells[np.searchsorted(edges, distance) - 1] = number
    np.testing.assert_allclose(neighbours, shells, atol=1e-12)


def test_atoms_many_cells_away_and_rotated_cells_count_the_same():
    rng = np.random.default_rng(2)
    x = rng.uniform(0, 8, (1, 30, 3))
    cells = SKEWED[None]
    edges = np.linspace(0.0, 3.0, 7)
    first, second = np.arange(10), np.arange(10, 30)
    g = radial_distribution(x, cells, first, second, edges)
    shifted = x + rng.integers(-4, 5, x.shape) @ SKEWED
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    np.testing.assert_array_equal(radial_distribution(shifted, cells, first, second, edges), g)
    np.testing.assert_allclose(radial_distribution(x @ rotation, cells @ rotation, first, second, edges), g, rtol=1e-12)


def test_beyond_half_the_height_is_refused():
    assert largest_radius(np.eye(3)[None] * 8.0) == pytest.approx(4.0)
    with pytest.raises(StructureError, match=r"up to 4\.500 Å, but half the smallest height of the cell is 4\.000 Å"):
        radial_distribution(np.zeros((1, 2, 3)), 8 * np.eye(3)[None], np.arange(1), np.arange(1, 2), np.array([0, 4.5]))


def test_coarsening_equals_counting_in_wider_shells():
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 8, (3, 40, 3))
    cells = np.broadcast_to(8.0 * np.eye(3), (3, 3, 3))
    atoms = np.arange(40)
    fine = np.linspace(0.0, 3.9, 40)
    edges, g = coarsen(fine, radial_distribution(x, cells, atoms, atoms, fine), 3)
    np.testing.assert_allclose(edges, fine[::3])
    np.testing.assert_allclose(g, radial_distribution(x, cells, atoms, atoms, edges), rtol=1e-12)
