"""The analysis of the science, against second formulas and cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.science import analysis
from benchmarks.science.analysis import HBAR_EV_FS, oscillator_kinetic
from dpserver.units import BOLTZMANN

OMEGA = 0.66  # 1/fs, 3500 1/cm


def thermal_trace(omega: float, temperature: float, beads: int) -> float:
    """log Z of the primitive P-bead oscillator, from the determinant of its action; what is left out is constant."""
    beta = 1 / (BOLTZMANN * temperature)
    tau = beta * HBAR_EV_FS * omega / beads
    action = np.diag(np.full(beads, 2 + tau**2))
    for k in range(beads):
        action[k, (k + 1) % beads] -= 1
        action[(k + 1) % beads, k] -= 1
    return -0.5 * float(np.linalg.slogdet(action)[1])


@pytest.mark.parametrize("beads", [1, 2, 4, 8, 32])
def test_the_oscillator_is_half_the_derivative_of_the_partition_function(beads: int) -> None:
    h = 1e-4
    derivative = (thermal_trace(OMEGA, 300 * (1 + h), beads) - thermal_trace(OMEGA, 300 * (1 - h), beads)) / (
        2 * 300 * h
    )
    # Z is τ-dependent through β only: <E> = kT² d(log Z)/dT, of which kinetic and potential energy are one half each.
    assert oscillator_kinetic(OMEGA, 300.0, beads) == pytest.approx(0.5 * BOLTZMANN * 300**2 * derivative, rel=1e-6)


def test_the_oscillator_in_its_limits() -> None:
    assert oscillator_kinetic(OMEGA, 300.0, 1) == pytest.approx(0.5 * BOLTZMANN * 300)
    exact = oscillator_kinetic(OMEGA, 300.0, 0)
    assert oscillator_kinetic(OMEGA, 300.0, 4096) == pytest.approx(exact, rel=1e-5)
    assert oscillator_kinetic(OMEGA, 1e-3 * 300.0, 0) == pytest.approx(0.25 * HBAR_EV_FS * OMEGA)


def test_slope_and_its_error() -> None:
    x = np.linspace(0.0, 10.0, 4000)
    noise = np.random.default_rng(3).normal(size=len(x))
    assert analysis.slope(x, 2 * x - 1).value == pytest.approx(2)
    assert analysis.slope(x, 2 * x - 1).error == pytest.approx(0, abs=1e-12)
    found = analysis.slope(x, 2 * x + noise)
    expected = 1 / np.sqrt(len(x) * x.var())
    assert found.error == pytest.approx(expected, rel=0.6)
    assert abs(found.value - 2) < 5 * expected


def test_block_mean() -> None:
    series = np.repeat(np.arange(10.0), 7)
    found = analysis.block_mean(series)
    assert found.value == pytest.approx(4.5)
    assert found.error == pytest.approx(np.arange(10.0).std(ddof=1) / np.sqrt(10))
    assert np.isnan(analysis.block_mean(np.ones(3)).error)


def test_power_law() -> None:
    n = np.array([1e2, 1e3, 1e4, 1e5])
    assert analysis.power_law(n, 3 * n**1.5).value == pytest.approx(1.5)
    assert analysis.power_law(n, 3 * n**1.5).error == pytest.approx(0, abs=1e-9)
    assert analysis.power_law(n[:2], n[:2]).value == pytest.approx(1)


def test_a_line_with_an_offset() -> None:
    n = np.array([2e2, 1e3, 1e4, 2e5])
    assert analysis.line_with_offset(n, 400 + 0.01 * n) == pytest.approx((400, 0.01))


def diamond(a: float = 3.0, n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A diamond lattice, each atom with four neighbours at 109.47°, (1, n_atoms, 3), and its cell, Å."""
    basis = np.array([[0, 0, 0], [0, 2, 2], [2, 0, 2], [2, 2, 0], [1, 1, 1], [1, 3, 3], [3, 1, 3], [3, 3, 1]]) / 4
    cells = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    return a * (cells + basis).reshape(1, -1, 3), a * n * np.eye(3)[None]


def test_angles_and_coordination_of_a_diamond() -> None:
    positions, cells = diamond()
    atoms = np.arange(positions.shape[1])
    radius = 1.2 * 3.0 * np.sqrt(3) / 4
    edges = np.linspace(0, 180, 37)
    found = analysis.angles(positions + 50.0, cells, atoms, radius, edges)
    assert analysis.coordination(positions, cells, atoms, radius) == pytest.approx(4)
    assert float((found * np.diff(edges)).sum()) == pytest.approx(1)
    assert found[np.searchsorted(edges, 109.47) - 1] == pytest.approx(1 / 5)
    bond = 3.0 * np.sqrt(3) / 4
    assert analysis.radius_of_coordination(positions, cells, atoms, 3.9) == pytest.approx(bond)


def test_no_angles_where_nobody_is_near() -> None:
    positions, cells = diamond()
    found = analysis.angles(positions, cells, np.arange(3), 0.5, np.linspace(0, 180, 5))
    np.testing.assert_array_equal(found, 0)


def test_deviation_is_relative_to_the_mean() -> None:
    assert analysis.deviation(np.full(4, 1.1), np.ones(4)) == pytest.approx(0.1)
