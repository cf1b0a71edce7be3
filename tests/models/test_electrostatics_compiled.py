"""Potentials with charges by kernels: the numbers of the reference, for structures and weights that change."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from dpserver.errors import StructureError
from dpserver.frames import ForceResult, Frames
from dpserver.models import electrostatics_compiled
from tests import structures
from tests.contract import scaled
from tests.models.test_electrostatics import frames, make

CASES: list[dict[str, Any]] = [{}, {"trainable": True, "total_charge": 1.0}, {"environment": {"neuron": [6]}}]


def assert_same(found: ForceResult, expected: ForceResult) -> None:
    for name in ("energy", "forces", "virial", "atom_energy"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=2e-8, err_msg=name)


@pytest.mark.parametrize("options", CASES, ids=["fixed", "trained", "environment"])
def test_kernels_answer_what_the_reference_does(options):
    potential, whole = scaled(make(**options), frames()), frames()
    expected = potential.reference(whole)
    potential.accelerate(threads=1)
    assert_same(potential.evaluate(whole), expected)
    assert_same(potential.evaluate(whole[1]), expected[1])
    assert all("kernels" in words for words in potential.evaluated_by())


@pytest.mark.parametrize("options", CASES, ids=["fixed", "trained", "environment"])
def test_no_structures_have_no_charges(options):
    potential, none = make(**options), Frames.concatenate([])
    for _ in range(2):
        result = potential.evaluate(none)
        assert (result.energy.shape, result.forces.shape, result.virial.shape) == ((0,), (0, 3), (0, 3, 3))
        assert potential.charges(none).shape == (0,)
        potential.accelerate(threads=1)


def test_a_change_of_charges_is_seen():
    potential, whole = make(trainable=True), frames()
    potential.accelerate(threads=1)
    before = potential.evaluate(whole)
    with torch.no_grad():
        potential.electrostatics.charges += torch.tensor([-0.2, 0.1])
    after = potential.evaluate(whole)
    assert np.abs(after.forces - before.forces).max() > 0.01
    assert_same(after, potential.reference(whole))


def test_atoms_too_close_for_tables():
    potential, close = make(total_charge=None), structures.cubic()
    positions = close.positions.copy()
    positions[1] = positions[0] + [0.05, 0.0, 0.0]
    frame = Frames.single(positions, close.types, close.cell[0])
    expected = potential.reference(frame)
    potential.accelerate(threads=1)
    np.testing.assert_allclose(potential.evaluate(frame).forces, expected.forces, rtol=1e-9, atol=1e-8)


def test_a_potential_is_got_ready_and_says_what_evaluates_it():
    potential, whole = make(), frames()
    expected = potential.reference(whole)
    potential.accelerate(threads=1)
    potential.warm_up()
    near = potential.without_charges()
    near.accelerate(threads=1)
    (words,) = potential.evaluated_by()
    assert words == f"{near.evaluated_by()[0]}; beside it CPU kernels for the charges of all atoms"
    assert words.startswith("CPU kernels in float64 on 1 thread")
    assert_same(potential.evaluate(whole), expected)


def test_what_has_no_kernels_is_said_beside_charges_that_have():
    descriptor = {"type": "se_e2_a", "sel": [20, 40], "rcut": 4.0, "neuron": [4, 8], "axis_neuron": 3}
    potential = make(descriptor={**descriptor, "activation_function": "relu"})
    potential.accelerate(threads=1)
    assert potential.evaluated_by()[0].startswith("torch: there are no kernels for this model; beside it CPU kernels")


def test_copies_of_a_potential_that_has_answered():
    potential, whole = make(trainable=True), structures.cubic()
    potential.accelerate(threads=1)
    before = potential.evaluate(whole)
    other = copy.deepcopy(potential)
    assert_same(other.evaluate(whole), before)
    with torch.no_grad():
        other.electrostatics.charges += torch.tensor([-0.2, 0.1])
    assert np.abs(other.evaluate(whole).forces - before.forces).max() > 0.01
    assert_same(potential.evaluate(whole), before)


MOLECULE = structures.molecule()
REFUSED: dict[str, tuple[Any, list[int]]] = {
    "the cell is singular": ([[9.0, 0, 0], [0, 9.0, 0], [9.0, 9.0, 0]], [0, 1, 2]),
    "check the cell and its units": ([[9.0, 0, 0], [0, 9.0, 0], [0, 0, 1e-12]], [0, 1, 2]),
    "they overlap": (9 * np.eye(3), [0, 1, 1]),
    "charges of 3 atoms in a cell of 2000 × 2000 × 2000 Å": (2e3 * np.eye(3), [0, 1, 2]),
}


@pytest.mark.parametrize("message", REFUSED)
@pytest.mark.parametrize("is_fast", [True, False])
def test_structures_without_an_answer(message, is_fast, monkeypatch):
    cell, atoms = REFUSED[message]
    potential = make(accuracy=1e-6)
    if is_fast:
        potential.accelerate(threads=1)
    if "charges" not in message:  # the sum is not asked at all
        monkeypatch.setattr(electrostatics_compiled.ChargeSum, "evaluate", None)
    with pytest.raises(StructureError, match=message):
        potential.evaluate(Frames.single(MOLECULE.positions[atoms], MOLECULE.types, cell))
