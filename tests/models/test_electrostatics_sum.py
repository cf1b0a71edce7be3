"""The sum of charges by kernels against that in torch, exact and on a mesh, for any number of threads."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpserver.errors import StructureError
from dpserver.frames import Floats, Frames
from dpserver.models import electrostatics_sum, memory
from dpserver.models.config import ElectrostaticsConfig
from dpserver.models.coulomb import SmearedCoulomb, half_space
from dpserver.models.electrostatics_mesh import Mesh, round_size
from dpserver.models.electrostatics_method import Methods
from dpserver.models.electrostatics_sum import ChargeSum, Interaction
from dpserver.models.electrostatics_work import Box
from dpserver.units import COULOMB
from tests import structures
from tests.models import ewald

Q = np.array([-0.8, 0.4])


def config(**options: Any) -> ElectrostaticsConfig:
    return ElectrostaticsConfig.model_validate({"charges": {"O": 1.0}, "accuracy": 1e-12, **options})


def in_torch(frame: Frames, charges: Floats, sigma: float) -> tuple[Floats, Floats, Floats]:
    """Potential, gradient and virial of one structure."""
    x, q = torch.from_numpy(frame.positions).requires_grad_(), torch.from_numpy(charges)
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    deform = torch.eye(3, dtype=torch.float64) + strain
    found = SmearedCoulomb(config(sigma=sigma, method="ewald")).potentials(
        q, x @ deform, torch.from_numpy(frame.cell[0]) @ deform, is_periodic=bool(frame.pbc.all())
    )
    gradient, stress = torch.autograd.grad(0.5 * (q * found).sum(), (x, strain))
    return found.detach().numpy(), gradient.numpy(), -stress.numpy()


@pytest.mark.parametrize(
    ("method", "accuracy", "tolerance"), [("ewald", 1e-12, 1e-10), ("pme", 1e-6, 3e-6), ("pme", 1e-9, 3e-9)]
)
@pytest.mark.parametrize("sigma", [0.7, 1.2])
@pytest.mark.parametrize("total", [0.0, 2.0], ids=["neutral", "charged"])
def test_kernels_agree_with_torch(method, accuracy, tolerance, sigma, total):
    whole = Frames.concatenate([structures.cubic(), structures.triclinic(), structures.cluster()])
    charges = Q[whole.types] + total / whole.counts[whole.frame_idx]
    found = ChargeSum(config(sigma=sigma, method=method, accuracy=accuracy), 2).evaluate(whole, charges)
    for k, frame in enumerate(whole):
        here = whole.frame_idx == k
        potential, gradient, virial = in_torch(frame, charges[here], sigma)
        scale = np.abs(potential).max()
        np.testing.assert_allclose(found.potential[here], potential, rtol=0, atol=tolerance * scale)
        np.testing.assert_allclose(found.gradient[here], gradient, rtol=0, atol=tolerance * scale)
        np.testing.assert_allclose(found.virial[k], virial, rtol=0, atol=10 * tolerance * scale)
        np.testing.assert_allclose(
            found.atom_energy[here], 0.5 * charges[here] * potential, rtol=0, atol=scale * tolerance
        )


@pytest.mark.parametrize("method", ["ewald", "pme"])
def test_energy_against_an_ewald_sum_of_its_own(method):
    frame = structures.triclinic()
    found = ChargeSum(config(method=method, accuracy=1e-9)).evaluate(frame, Q[frame.types])
    expected = ewald.smeared(frame.positions, Q[frame.types], frame.cell[0], 1.0)
    assert found.atom_energy.sum() == pytest.approx(expected, rel=1e-9)


def test_the_spce_water_of_nist():
    """Configuration 1 of NIST's reference calculations of SPC/E: α = 5.6/L, waves n² < 27.

    The numbers are those of NIST's FEASST, in kJ/mol; in K and to six digits they are on NIST's page, -2.84469e6 and
    6.27009e3.
    """
    positions, length, kj_per_mol = np.loadtxt(Path(__file__).with_name("nist_spce.txt")), 20.0, 96.48533
    charges, alpha = np.tile([-0.8476, 0.4238, 0.4238], 100), 5.6 / length
    sigma = 1 / (2 * alpha)
    accuracy = 30 * math.exp(-(sigma**2) * 26.5 * (2 * math.pi / length) ** 2)  # takes the waves n² ≤ 26.5
    frame = Frames.single(positions, np.tile([0, 1, 1], 100), length * np.eye(3))
    found = ChargeSum(config(sigma=sigma, method="ewald", accuracy=accuracy)).evaluate(frame, charges)
    own = -COULOMB * alpha / math.sqrt(math.pi) * float((charges**2).sum())
    assert own * kj_per_mol == pytest.approx(-23652.08040365018, rel=2e-7)
    assert (found.atom_energy.sum() - own) * kj_per_mol == pytest.approx(52.1324574151071, rel=2e-7)


@pytest.mark.parametrize("method", ["ewald", "pme"])
def test_derivatives_by_finite_differences(method):
    frame, step = structures.triclinic(), 1e-4
    charges, total = Q[frame.types], ChargeSum(config(method=method, accuracy=1e-10 if method == "ewald" else 1e-6))

    def energy(moved: Frames) -> float:
        return float(total.evaluate(moved, charges).atom_energy.sum())

    exact = total.evaluate(frame, charges)
    for atom, d in ((0, 0), (4, 1), (11, 2)):
        shift = np.zeros((frame.n_atoms, 3))
        shift[atom, d] = step
        numeric = energy(structures.moved(frame, shift)) - energy(structures.moved(frame, -shift))
        assert exact.gradient[atom, d] == pytest.approx(numeric / (2 * step), abs=1e-6 * np.abs(exact.gradient).max())
    for a, b in ((0, 0), (0, 1), (2, 1)):
        strain = np.zeros((3, 3))
        strain[a, b] = step
        numeric = energy(structures.strained(frame, -strain)) - energy(structures.strained(frame, strain))
        assert exact.virial[0, a, b] == pytest.approx(numeric / (2 * step), abs=1e-6 * np.abs(exact.virial).max())


@pytest.mark.parametrize("method", ["ewald", "pme"])
def test_the_same_bits_for_any_number_of_threads(method):
    whole = Frames.concatenate([structures.cubic(), structures.cluster(), structures.triclinic()])
    one, three = (ChargeSum(config(method=method, accuracy=1e-6), n).evaluate(whole, Q[whole.types]) for n in (1, 3))
    for name in Interaction.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, name), getattr(three, name), err_msg=name)


def test_a_mesh_serves_cells_that_change():
    frame, sums = structures.cubic(), ChargeSum(config(method="pme", accuracy=1e-6))
    sums.evaluate(frame, Q[frame.types])
    for strain in (1e-3, 0.2):
        other = structures.strained(frame, strain * np.eye(3))
        fresh = ChargeSum(config(method="pme", accuracy=1e-6)).evaluate(other, Q[frame.types])
        np.testing.assert_array_equal(sums.evaluate(other, Q[frame.types]).gradient, fresh.gradient)


def test_meshes_of_cells_that_take_turns_are_kept(monkeypatch):
    made: list[tuple[int, ...]] = []

    class Noted(electrostatics_sum.Mesh):
        def __init__(self, sizes: tuple[int, ...], *rest: Any) -> None:
            super().__init__(sizes, *rest)
            made.append(sizes)

    monkeypatch.setattr(electrostatics_sum, "Mesh", Noted)
    frame = structures.triclinic()
    cells = [structures.strained(frame, strain * np.eye(3)) for strain in (0.0, 0.3, 0.6, 0.9, 1.2)]
    sums, options = ChargeSum(config(method="pme", accuracy=1e-6), 1), {"method": "pme", "accuracy": 1e-6}
    expected = [ChargeSum(config(**options), 1).evaluate(cell, Q[frame.types]) for cell in cells]
    made.clear()

    def take_turns(*numbers: int) -> int:
        for k in numbers:
            found = sums.evaluate(cells[k], Q[frame.types])
            for name in Interaction.__dataclass_fields__:
                np.testing.assert_array_equal(getattr(found, name), getattr(expected[k], name), err_msg=name)
        return len(made)

    assert take_turns(0, 1, 2, 3, 0, 1, 2, 3, 0) == 4
    assert take_turns(4, 0, 2, 3, 4) == 5  # in the place of the second
    assert take_turns(1) == 6
    assert len(set(made)) == 5
    monkeypatch.setattr(electrostatics_sum, "_LARGE", 0.0)
    assert take_turns(0) == 7  # in the place of the first, and alone
    assert take_turns(0, 2) == 8


def test_a_large_mesh_is_gone_when_another_is_wanted(monkeypatch):
    frame = structures.water((2, 2, 2))
    small, large = frame, replace(frame, cell=4 * frame.cell)
    sums = ChargeSum(config(method="pme", accuracy=1e-6), 1)
    sums.evaluate(small, Q[frame.types])
    (size,) = (Mesh.n_bytes(sizes, 12, 1) for sizes in sums._meshes)
    monkeypatch.setattr(electrostatics_sum, "_LARGE", 2 * size)
    sums.evaluate(large, Q[frame.types])
    (kept,) = sums._meshes  # the small one had to make room
    assert Mesh.n_bytes(kept, 12, 1) > 2 * size
    sums.evaluate(small, Q[frame.types])
    assert kept not in sums._meshes


def test_the_cheaper_method_is_chosen():
    small = structures.cubic()
    large = Frames.single(np.zeros((12288, 3)), np.zeros(12288), 49.7 * np.eye(3))
    chosen = [
        Methods(config(accuracy=1e-6)).choose_or_refuse(frame)[0] for frame in (small, large, structures.cluster())
    ]
    assert chosen == ["ewald", "pme", "pairs"]
    assert Methods(config(method="pme")).choose_or_refuse(small) == ["pme"]


def boxed(length: float) -> Frames:
    molecule = structures.molecule()
    return Frames.single(molecule.positions, molecule.types, length * np.eye(3))


@pytest.mark.parametrize("method", ["auto", "ewald", "pme"])
@pytest.mark.parametrize("length", [1e3, 1e6, 1e200])
def test_a_cell_that_is_too_large_is_refused(method, length):
    frame = boxed(length)
    message = (
        r"charges of 3 atoms in a cell of .* × .* × .* Å .*(waves|points of a mesh), about .*cell smaller.*wider .*open"
    )
    with pytest.raises(StructureError, match=message):
        ChargeSum(config(method=method, accuracy=1e-6), 1).evaluate(frame, Q[frame.types])


def test_too_many_pairs_are_refused():
    frame = Frames.single(np.zeros((1_000_000, 3)), np.zeros(1_000_000))
    with pytest.raises(
        StructureError, match=r"charges of 1000000 atoms without a cell .* 5e\+11 pairs.* periodic cell"
    ):
        ChargeSum(config()).evaluate(frame, Q[frame.types])


@pytest.mark.parametrize(("method", "what"), [("ewald", "the Ewald sum of"), ("pme", "the mesh for")])
def test_room_is_looked_for_before_it_is_taken(monkeypatch, method, what):
    monkeypatch.setattr(electrostatics_sum, "_LARGE", 0.0)
    monkeypatch.setattr(memory, "memory_left", lambda: 1000)
    frame = structures.cubic()
    with pytest.raises(MemoryError, match=rf"{what} the charges of 24 atoms in a cell of 6.2 × 6.2 × 6.2 Å takes"):
        ChargeSum(config(method=method, accuracy=1e-6)).evaluate(frame, Q[frame.types])


def test_sizes_of_meshes_are_the_next_products_of_2_3_and_5():
    def is_product(size: int) -> bool:
        for factor in (2, 3, 5):
            while size % factor == 0:
                size //= factor
        return size == 1

    products = np.array([n for n in range(8, 3000, 2) if is_product(n)])
    for least in range(1, 2500):
        assert round_size(least) == products[products >= least][0]


def test_the_waves_that_are_expected_are_those_there_are():
    cell, reach = structures.water((4, 3, 5), structures.SHEAR).cell[0], 4.0
    box = Box.of(cell)
    assert box.volume == pytest.approx(abs(np.linalg.det(cell)))
    assert box.waves(reach) == pytest.approx(len(half_space(torch.from_numpy(cell), reach)), rel=0.02)


def test_getting_ready_changes_no_number():
    frame = structures.triclinic()
    cold, warm = (ChargeSum(config(method="pme", accuracy=1e-6), 2) for _ in range(2))
    warm.warm_up()
    expected = cold.evaluate(frame, Q[frame.types])
    np.testing.assert_array_equal(warm.evaluate(frame, Q[frame.types]).gradient, expected.gradient)
