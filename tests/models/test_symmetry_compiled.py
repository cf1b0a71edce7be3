"""Behler-Parrinello networks by kernels, against the same by torch."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dpserver.frames import ForceResult, Frames
from dpserver.models import symmetry_compiled
from dpserver.models.committee import Committee
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.models.symmetry_compiled import SymmetryCompiled
from tests import structures
from tests.contract import EvaluationContract, assert_close
from tests.models.test_behler_parrinello import every_cell, make


def fast(potential: Potential, threads: int = 1) -> Potential:
    """The same, evaluated by kernels."""
    found = deepcopy(potential)
    found.accelerate(threads)
    return found


class TestContract(EvaluationContract):
    def potential(self) -> Potential:
        return fast(make(self.frames()))

    def frames(self) -> Frames:
        return every_cell()


def assert_same(potential: Potential, frames: Frames) -> ForceResult:
    """Kernels and torch answer the same."""
    expected, result = potential.reference(frames), fast(potential).evaluate(frames)
    assert_close(result, expected.energy, expected.forces, expected.virial)
    np.testing.assert_allclose(result.atom_energy, expected.atom_energy, rtol=0, atol=1e-11)
    return result


@pytest.mark.parametrize(
    "descriptor",
    [
        {},
        {"angular": []},
        {"radial": "auto", "angular": "auto", "rcut": 5.0},
        {"angular": [[0.1, -1, 2]], "radial": [[1.0, 0.0]], "rcut": 2.0},
    ],
    ids=["both", "pairs", "auto", "few"],
)
def test_the_reference_answers_the_same(descriptor: dict[str, Any]) -> None:
    potential = make(every_cell(), **descriptor)
    assert fast(potential).evaluated_by() == ["CPU kernels for symmetry functions on 1 thread, the nets by torch"]
    assert np.abs(assert_same(potential, every_cell()).forces).max() > 0.5


def test_three_species() -> None:
    model = {
        "type_map": ["O", "H", "X"],
        "descriptor": {"type": "behler_parrinello", "rcut": 3.0, "radial": "auto:3", "angular": "auto:1"},
        "fitting_net": {"neuron": [8], "atom_ener": [-1.0, None, 2.0]},
        "atom_exclude_types": [2],
    }
    frame = structures.cubic()
    types = np.where(np.arange(frame.n_atoms) % 5 == 0, 2, frame.types)
    potential = Potential(parse(ModelConfig, model), seed=3)
    potential.energy_bias.copy_(torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64))
    result = assert_same(potential, replace(frame, types=types))
    assert (result.atom_energy[types == 2] == 0).all()
    assert potential.vacuum_removed


@pytest.mark.parametrize("threads", [1, 2])
def test_nets_take_no_more_threads_than_the_kernels(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    potential, seen = fast(make(every_cell()), threads), []
    evaluate: Any = symmetry_compiled._evaluate_nets

    def watched(*args: Any) -> Any:
        seen.append(torch.get_num_threads())
        return evaluate(*args)

    monkeypatch.setattr(symmetry_compiled, "_evaluate_nets", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        potential.evaluate(every_cell())
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [threads]


def test_number_of_threads_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symmetry_compiled, "_ROWS", 2)
    potential, frames = make(every_cell()), every_cell()
    one, three = fast(potential).evaluate(frames), fast(potential, 3).evaluate(frames)
    for name in ("energy", "forces", "virial", "atom_energy"):
        np.testing.assert_array_equal(getattr(one, name), getattr(three, name))


def test_nets_in_float32() -> None:
    potential = make(every_cell())
    potential.set_precision("mixed")
    expected, result = potential.reference(every_cell()), fast(potential).evaluate(every_cell())
    np.testing.assert_allclose(result.forces, expected.forces, rtol=0, atol=1e-4)
    assert not np.array_equal(result.forces, make(every_cell()).reference(every_cell()).forces)


def test_members_of_a_committee_are_compiled_together() -> None:
    members = [make(every_cell()), make(every_cell())]
    with torch.no_grad():
        members[1].fitting[0][0].weight *= 1.1
    committee = Committee(deepcopy(members))
    committee.accelerate(1)
    (compiled,) = committee.compiled()
    assert isinstance(compiled, SymmetryCompiled)
    result = committee.evaluate(every_cell())
    expected = np.mean([member.reference(every_cell()).forces for member in members], axis=0)
    np.testing.assert_allclose(result.forces, expected, rtol=0, atol=1e-10)


def test_new_weights_are_used() -> None:
    potential = fast(make(every_cell()))
    before = potential.evaluate(every_cell())
    with torch.no_grad():
        potential.fitting[0][0].weight *= 1.2
    after = potential.evaluate(every_cell())
    np.testing.assert_allclose(after.forces, potential.reference(every_cell()).forces, rtol=0, atol=1e-10)
    assert not np.allclose(after.forces, before.forces, atol=1e-3)


def test_lists_are_used_again_while_atoms_move_little() -> None:
    potential, frames = fast(make(every_cell())), every_cell()
    potential.evaluate(frames)
    moved = structures.moved(frames, np.random.default_rng(2).normal(scale=0.05, size=(frames.n_atoms, 3)))
    expected, result = potential.reference(moved), potential.evaluate(moved)
    assert_close(result, expected.energy, expected.forces, expected.virial)
    (compiled,) = potential.compiled()
    assert isinstance(compiled, SymmetryCompiled)
    assert compiled._lists.n_built == frames.n_frames


def test_where_the_time_goes() -> None:
    potential = fast(make(every_cell()))
    (compiled,) = potential.compiled()
    assert compiled is not None
    assert set(compiled.profile(structures.cubic())) == {"symmetry functions", "fitting", "back to edges", "sums"}
    inputs = potential.descriptor.n_features
    assert compiled.products(structures.cubic()) == 4.0 * 24 * (inputs * 8 + 8 * 8 + 8)
