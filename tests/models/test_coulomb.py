"""The sum over charges in torch against constants of crystals and an Ewald sum of its own."""

from __future__ import annotations

import builtins
import importlib
import math
import sys

import numpy as np
import pytest
import torch

from dpserver.errors import ConfigError, StructureError
from dpserver.frames import Floats
from dpserver.models import coulomb, memory
from dpserver.models.config import ElectrostaticsConfig
from dpserver.models.coulomb import SmearedCoulomb, half_space
from dpserver.units import COULOMB
from tests import structures
from tests.models import ewald

CHARGES = np.array([-0.8476, 0.4238])


def energy(positions: Floats, charges: Floats, cell: Floats | None, **options: object) -> float:
    config = ElectrostaticsConfig.model_validate({"charges": {"O": 1.0}, "accuracy": 1e-11, **options})
    lattice = torch.zeros(3, 3, dtype=torch.float64) if cell is None else torch.from_numpy(cell)
    q = torch.from_numpy(charges)
    found = SmearedCoulomb(config).potentials(q, torch.from_numpy(positions), lattice, is_periodic=cell is not None)
    return float(0.5 * (q * found).sum())


@pytest.mark.parametrize(
    ("cell", "basis", "distance", "madelung"),
    [
        (2.82 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0.0]]), [[0, 0, 0], [0.5, 0.5, 0.5]], 2.82, 1.7475645946331822),
        (4.12 * np.eye(3), [[0, 0, 0], [0.5, 0.5, 0.5]], 4.12 * math.sqrt(3) / 2, 1.7626747730709883),
    ],
    ids=["NaCl", "CsCl"],
)
@pytest.mark.parametrize("sigma", [0.6, 1.0])
def test_madelung_constants(cell, basis, distance, madelung, sigma):
    positions, charges = np.array(basis) @ cell, np.array([1.0, -1.0])
    total = energy(positions, charges, cell, sigma=sigma) + ewald.screened(positions, charges, cell, 1 / (2 * sigma))
    assert -total * distance / COULOMB == pytest.approx(madelung, rel=1e-10)


@pytest.mark.parametrize("frame", [structures.cubic(), structures.triclinic(), structures.tiny()])
@pytest.mark.parametrize("total", [0.0, 1.5], ids=["neutral", "charged"])
def test_water_against_an_ewald_sum_of_its_own(frame, total):
    charges = CHARGES[frame.types] + total / frame.n_atoms
    found = energy(frame.positions, charges, frame.cell[0], sigma=0.8)
    assert found == pytest.approx(ewald.smeared(frame.positions, charges, frame.cell[0], 0.8), rel=1e-10)


@pytest.mark.parametrize("accuracy", [1e-4, 1e-6])
@pytest.mark.parametrize("method", ["ewald", "pme"])
def test_forces_are_as_accurate_as_asked(method, accuracy):
    frame = structures.triclinic()
    charges, cell = torch.from_numpy(CHARGES[frame.types]), torch.from_numpy(frame.cell[0])

    def forces(**options: object) -> torch.Tensor:
        config = ElectrostaticsConfig.model_validate({"charges": {"O": 1.0}, **options})
        x = torch.from_numpy(frame.positions.copy()).requires_grad_()
        potentials = SmearedCoulomb(config).potentials(charges, x, cell, is_periodic=True)
        return torch.autograd.grad(-0.5 * (charges * potentials).sum(), x)[0]

    exact = forces(accuracy=1e-12, method="ewald")
    found = forces(accuracy=accuracy, method=method)
    assert (found - exact).norm() < 2 * accuracy * exact.norm()


def test_open_structures_are_a_sum_over_pairs():
    x, q = np.array([[0.0, 0, 0], [0, 0, 3.0], [1.0, 2.0, -1.0]]), np.array([1.0, -0.5, 0.25])
    expected = sum(
        COULOMB * q[i] * q[j] * math.erf(r / 1.8) / r
        for i, j in ((0, 1), (0, 2), (1, 2))
        if (r := float(np.linalg.norm(x[i] - x[j])))
    )
    assert energy(x, q, None, sigma=0.9) == pytest.approx(expected, rel=1e-14)


def test_a_large_box_is_like_an_open_one():
    frame = structures.molecule()
    charges = CHARGES[frame.types]
    boxed = energy(frame.positions, charges, 60 * np.eye(3), accuracy=1e-6)
    assert boxed == pytest.approx(energy(frame.positions, charges, None), rel=1e-4)


def test_the_cheaper_method_is_chosen():
    sums = SmearedCoulomb(ElectrostaticsConfig(charges={"O": 1.0}))
    assert sums.method_for(192, 12.4**3) == "ewald"
    assert sums.method_for(200_000, 126.0**3) == "pme"


def test_half_of_the_waves_stand_for_all():
    cell = torch.from_numpy(structures.SHEAR * 6)
    found = half_space(cell, 3.0)
    both = {tuple(n) for n in torch.cat([found, -found]).long().tolist()}
    assert len(both) == 2 * len(found)
    reciprocal = 2 * np.pi * np.linalg.inv(cell.numpy()).T
    grid = np.stack(np.meshgrid(*[np.arange(-9, 10)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    inside = np.linalg.norm(grid @ reciprocal, axis=1) <= 3.0
    assert both == {tuple(n) for n in grid[inside].tolist()} - {(0, 0, 0)}


def test_without_the_library_the_extra_is_named(monkeypatch):
    real = builtins.__import__
    monkeypatch.setitem(sys.modules, "torchpme", None)
    monkeypatch.setattr(importlib, "import_module", lambda name: real(name))
    with pytest.raises(ConfigError, match=r"needs torch-pme; install it with pip install 'dpserver\[longrange\]'"):
        energy(np.zeros((1, 3)), np.ones(1), np.eye(3))


def test_too_many_pairs_are_refused(monkeypatch):
    monkeypatch.setattr(coulomb, "_PAIR_BYTES", 1e18)
    with pytest.raises(MemoryError, match="the charges of 2 atoms without a cell"):
        energy(np.eye(3)[:2], np.ones(2), None)


@pytest.mark.parametrize("method", ["auto", "ewald", "pme"])
@pytest.mark.parametrize("length", [1e3, 1e6, 1e200])
def test_a_cell_that_is_too_large_is_refused(method, length):
    message = r"charges of 2 atoms in a cell of .* Å .*(waves|points of a mesh), about .*cell smaller.*wider .*open"
    with pytest.raises(StructureError, match=message):
        energy(np.eye(3)[:2], np.array([1.0, -1.0]), length * np.eye(3), method=method)


def test_more_pairs_than_anybody_waits_for_are_refused():
    with pytest.raises(StructureError, match=r"charges of 1000000 atoms without a cell .*5e\+11 pairs"):
        energy(np.zeros((1_000_000, 3)), np.ones(1_000_000), None)


@pytest.mark.parametrize(("method", "what"), [("ewald", "the Ewald sum"), ("pme", "the mesh")])
def test_room_is_looked_for_before_it_is_taken(monkeypatch, method, what):
    monkeypatch.setattr(memory, "memory_left", lambda: 1000)
    monkeypatch.setattr(coulomb, "half_space", None)  # nothing is built
    monkeypatch.setattr(coulomb, "_library", None)
    with pytest.raises(MemoryError, match=rf"{what} by torch .*charges of 2 atoms in a cell of 9 × 9 × 9 Å takes"):
        energy(np.eye(3)[:2], np.array([1.0, -1.0]), 9 * np.eye(3), method=method, accuracy=1e-6)
