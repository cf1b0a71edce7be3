"""Charges by surroundings in two passes: the contract, the numbers of the reference, and what is left to torch."""

from __future__ import annotations

import builtins
import importlib
import logging
import sys
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from dpserver.errors import StructureError
from dpserver.frames import ForceResult, Frames
from dpserver.models.config import ModelConfig, parse
from dpserver.models.electrostatics_near import ByKernels, ByTorch
from dpserver.models.potential import Potential
from dpserver.parts import Wholes
from tests import structures
from tests.contract import ROUNDED, assert_close, scaled
from tests.meetings import Seat, together
from tests.models import test_behler_parrinello, test_electrostatics
from tests.models.test_electrostatics import CHARGES, MODEL, frames, make
from tests.models.test_loc_frame import WATER_RULE

SMOOTH: dict[str, Any] = {"rcut": 4.0, "neuron": [4, 8]}
ATTENTION: dict[str, Any] = {**SMOOTH, "type": "se_atten", "sel": 60, "axis_neuron": 2}
DESCRIPTORS: dict[str, dict[str, Any]] = {
    "se_e2_a": {**SMOOTH, "type": "se_e2_a", "sel": [20, 40], "axis_neuron": 3},
    "se_e2_r": {**SMOOTH, "type": "se_e2_r", "sel": [20, 40]},
    "se_atten": {**ATTENTION, "attn_layer": 0, "concat_output_tebd": False},
    "se_atten_v2": {**ATTENTION, "type": "se_atten_v2", "attn_layer": 0},
    "loc_frame": {"type": "loc_frame", "sel_a": [2, 4], "sel_r": [3, 5], "rcut": 4.0, "axis_rule": WATER_RULE},
    "behler_parrinello": {
        "type": "behler_parrinello",
        "rcut": 3.5,
        "radial": test_behler_parrinello.RADIAL,
        "angular": test_behler_parrinello.ANGULAR,
    },
}
BY_TORCH: dict[str, dict[str, Any]] = {
    "attention": {**ATTENTION, "attn": 4, "attn_layer": 1},
    "too sharp for tables": {**DESCRIPTORS["se_e2_a"], "activation_function": "relu"},
}


def structures_for(descriptor: dict[str, Any]) -> Frames:
    """In and out of cells; where local frames are needed, none that shows an atom two images at one distance."""
    if descriptor["type"] != "loc_frame":
        return frames()
    tilted = structures.water((2, 2, 2), structures.SHEAR, seed=8)
    return Frames.concatenate([structures.cubic(), tilted, structures.cluster(), structures.molecule()])


def surrounded(descriptor: dict[str, Any], **environment: Any) -> Potential:
    """A potential with forces of about 1 eV/Å, whose charges follow the surroundings closely."""
    whole = structures_for(descriptor)
    potential = make(descriptor=descriptor, total_charge=1.0, environment={"neuron": [6, 6], **environment})
    if hasattr(potential.descriptor, "fit_normalisation"):
        potential.descriptor.fit_normalisation([potential.graph(whole)], 1e-2)
    graph = potential.graph(whole)
    features = [d.features for d in potential.describe(graph, graph.vectors())]
    with torch.no_grad():
        for c, net in enumerate(charge_nets(potential)):
            net[0].weight /= (features[c] @ net[0].weight).std(dim=0).mean()
        found = potential.charges(whole)
        for net in charge_nets(potential):
            net[-1].weight *= 0.1 / max(found[whole.types == c].std() for c in range(2))
    return scaled(potential, whole)


def charge_nets(potential: Potential) -> Any:
    assert potential.electrostatics is not None
    return potential.electrostatics.nets


def assert_same(found: ForceResult, expected: ForceResult) -> None:
    for name in ("energy", "forces", "virial", "atom_energy"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=2e-8, err_msg=name)


class TestContract(test_electrostatics.TestOfTheEnvironment):
    def potential(self) -> Potential:
        potential = super().potential()
        potential.accelerate(threads=2)
        return potential

    def test_parts_with_ghosts_sum_to_the_whole(self) -> None:
        """They do if they are evaluated together, see below."""
        potential, whole = self.potential(), self.frames()
        assert potential.can_cut
        with pytest.raises(StructureError, match="needs whole structures"):
            potential.evaluate(replace(whole, is_ghost=np.arange(whole.n_atoms) % 2 == 0))


def in_parts(potential: Potential, frame: Frames) -> list[ForceResult]:
    """Both halves of a structure, with each other's atoms and their images as ghosts, evaluated together."""
    reach = [range(-1, 2) if periodic else [0] for periodic in frame.pbc[0]]
    shifts = np.array([[a, b, c] for a in reach[0] for b in reach[1] for c in reach[2]])
    owner = np.random.default_rng(5).integers(0, 2, frame.n_atoms)

    def evaluate(seat: Seat) -> ForceResult:
        positions = (frame.positions[None] + (shifts @ frame.cell[0])[:, None]).reshape(-1, 3)
        is_own = np.tile(owner == seat.number, len(shifts)) & np.repeat(~shifts.any(axis=1), frame.n_atoms)
        part = Frames.single(positions, np.tile(frame.types, len(shifts)), np.zeros((3, 3)), (False,) * 3)
        wholes = Wholes(frame.cell, frame.pbc, frame.counts, seat)
        found = deepcopy(potential).evaluate(replace(part, is_ghost=~is_own, wholes=wholes))
        forces = found.forces.reshape(len(shifts), -1, 3).sum(axis=0)
        return replace(found, forces=forces)

    return together(2, evaluate)


@pytest.mark.parametrize("name", ["se_e2_a", "behler_parrinello", "attention"])
def test_parts_that_are_evaluated_together(name):
    potential = surrounded({**DESCRIPTORS, **BY_TORCH}[name])
    potential.accelerate(threads=1)
    for frame in (structures.cubic(), structures.cluster()):
        expected = potential.evaluate(frame)
        found = in_parts(potential, frame)
        np.testing.assert_allclose(sum(part.energy for part in found), expected.energy, rtol=0, atol=1e-8)
        np.testing.assert_allclose(sum(part.forces for part in found), expected.forces, rtol=0, atol=1e-8)
        np.testing.assert_allclose(sum(part.virial for part in found), expected.virial, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_kernels_answer_what_the_reference_does(name):
    potential, whole = surrounded(DESCRIPTORS[name]), structures_for(DESCRIPTORS[name])
    expected, charges = potential.reference(whole), potential.charges(whole)
    assert min(charges[whole.types == c].std() for c in range(2)) > 1e-3
    through = ByTorch(potential).respond(whole, np.linspace(-5, 5, whole.n_atoms))
    assert np.abs(through.forces - ByTorch(potential).respond(whole, np.zeros(whole.n_atoms)).forces).max() > 0.01
    potential.accelerate(threads=2)
    assert_same(potential.evaluate(whole), expected)
    assert_same(potential.evaluate(whole[1]), expected[1])
    (words,) = potential.evaluated_by()
    assert words.startswith("CPU kernels")
    assert "; charges by surroundings in a pass of their own; beside it CPU kernels for the charges of all" in words
    found = potential.charges(whole)
    np.testing.assert_allclose(found, charges, rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.bincount(whole.frame_idx, weights=found), 1.0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["se_e2_a", "se_atten", "loc_frame", "behler_parrinello"])
def test_float32(name):
    potential, whole = surrounded(DESCRIPTORS[name]), structures_for(DESCRIPTORS[name])
    expected = potential.reference(whole)
    potential.set_precision("mixed")
    potential.accelerate(threads=1)
    found = potential.evaluate(whole)
    assert_close(found, expected.energy, expected.forces, expected.virial, ROUNDED)
    assert not np.array_equal(found.forces, expected.forces)
    np.testing.assert_allclose(np.bincount(whole.frame_idx, weights=potential.charges(whole)), 1.0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["se_e2_a", "se_e2_r", "loc_frame", "behler_parrinello"])
@pytest.mark.parametrize("copies", [1, 2])
def test_nets_whose_first_layer_adds_its_input(name, copies):
    """The sums over the inputs of both nets must not be mixed up."""
    width = copies * make(descriptor=DESCRIPTORS[name]).descriptor.n_features
    potential = surrounded(DESCRIPTORS[name], neuron=[width, 5], activation_function="silu")
    assert charge_nets(potential)[0][0].copies == copies
    whole = structures_for(DESCRIPTORS[name])
    expected = potential.reference(whole)
    potential.accelerate(threads=1)
    assert_same(potential.evaluate(whole), expected)


def test_nets_told_of_the_species():
    """The centre's species is an input of both nets, by its embedding; one that adds its input has no kernels."""
    descriptor, whole = {**DESCRIPTORS["se_atten"], "concat_output_tebd": True}, frames()
    for width, is_fast in ((6, True), (make(descriptor=descriptor).descriptor.n_features, False)):
        potential = surrounded(descriptor, neuron=[width])
        expected = potential.reference(whole)
        potential.accelerate(threads=1)
        assert potential.evaluated_by()[0].startswith("CPU kernels" if is_fast else "torch: there are no kernels")
        assert_same(potential.evaluate(whole), expected)


@pytest.mark.parametrize("name", BY_TORCH)
def test_without_kernels_only_the_net_is_left_to_torch(name):
    potential = surrounded(BY_TORCH[name])
    expected, charges = potential.reference(frames()), potential.charges(frames())
    potential.accelerate(threads=1)
    assert_same(potential.evaluate(frames()), expected)
    np.testing.assert_allclose(potential.charges(frames()), charges, rtol=0, atol=1e-12)
    (words,) = potential.evaluated_by()
    assert words == "torch: there are no kernels for this model; beside it CPU kernels for the charges of all atoms"


def test_parameters_of_frames_are_left_to_torch():
    fitting = {"neuron": [10], "numb_fparam": 1}
    section = {**MODEL, "fitting_net": fitting, "electrostatics": {**CHARGES, "environment": {}}}
    potential = Potential(parse(ModelConfig, section), seed=4)
    whole = replace(frames(), fparam=np.linspace(0.2, 0.9, frames().n_frames)[:, None])
    expected = potential.reference(whole)
    potential.accelerate(threads=1)
    assert_same(potential.evaluate(whole), expected)
    assert potential.evaluated_by()[0].startswith("torch: there are no kernels for this model; beside it CPU kernels")


def test_linear_nets_have_no_kernels():
    potential = surrounded(DESCRIPTORS["se_e2_a"], neuron=[])
    expected = potential.reference(frames())
    potential.accelerate(threads=1)
    assert potential.evaluated_by()[0].startswith("torch: there are no kernels for this model; beside it CPU kernels")
    assert_same(potential.evaluate(frames()), expected)


@pytest.mark.parametrize("name", ["se_e2_a", "se_e2_r", "loc_frame"])
def test_the_same_bits_by_any_number_of_threads(name):
    potential, whole = surrounded(DESCRIPTORS[name]), structures_for(DESCRIPTORS[name])
    found = []
    for threads in (1, 3):
        potential.accelerate(threads=threads)
        found.append(potential.evaluate(whole))
    np.testing.assert_array_equal(found[0].forces, found[1].forces)
    np.testing.assert_array_equal(found[0].virial, found[1].virial)


def test_changes_of_weights_are_seen():
    potential, whole = surrounded(DESCRIPTORS["se_e2_a"]), frames()
    potential.accelerate(threads=1)
    before, charges = potential.evaluate(whole), potential.charges(whole)
    for weight in (charge_nets(potential)[1][-1].weight, potential.descriptor.embedding[0][0].weight):
        with torch.no_grad():
            weight *= 1.5
        after, expected = potential.evaluate(whole), potential.reference(whole)
        assert np.abs(after.forces - before.forces).max() > 1e-3
        assert_same(after, expected)
        assert np.abs(potential.charges(whole) - charges).max() > 1e-4
        before, charges = after, potential.charges(whole)


def test_structures_that_no_table_reaches():
    potential, whole = surrounded(DESCRIPTORS["se_e2_a"]), structures.cubic()
    positions = whole.positions.copy()
    positions[1] = positions[0] + [0.05, 0.0, 0.0]
    close = Frames.single(positions, whole.types, whole.cell[0])
    batch = Frames.concatenate([whole, close, structures.cluster()])
    expected, charges = potential.reference(batch), potential.charges(batch)
    potential.accelerate(threads=1)
    found = potential.evaluate(batch)
    np.testing.assert_allclose(found.forces, expected.forces, rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(found.virial, expected.virial, rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(potential.charges(batch), charges, rtol=0, atol=1e-9)


def test_too_many_neighbours_are_refused():
    potential = make(descriptor={**DESCRIPTORS["se_e2_a"], "sel": [20, 4]}, environment={})
    potential.accelerate(threads=1)
    for ask in (potential.evaluate, potential.charges):
        with pytest.raises(StructureError, match=r"neighbours of type 1 within 4.0 Å, but .* at most 4"):
            ask(structures.cubic())


def test_torch_pme_is_not_needed(monkeypatch):
    potential, whole = surrounded(DESCRIPTORS["se_e2_a"]), frames()
    expected, real = potential.reference(whole), builtins.__import__
    monkeypatch.setitem(sys.modules, "torchpme", None)
    monkeypatch.setattr(importlib, "import_module", lambda name: real(name))
    potential.accelerate(threads=1)
    assert_same(potential.evaluate(whole), expected)


def test_it_is_said_once_that_the_potential_gets_ready(caplog):
    for environment in ({}, None):
        potential = make(environment=environment)
        potential.accelerate(threads=1)
        caplog.clear()
        with caplog.at_level(logging.INFO, "dpserver"):
            potential.warm_up()
        assert sum(record.message.startswith("getting ready") for record in caplog.records) == 1


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_both_passes_leave_ghosts_out(name):
    """Parts, each with the other's atoms as ghosts, know charges and forces that add up to those of the whole."""
    potential, whole = surrounded(DESCRIPTORS[name]), structures.cubic()
    potential.accelerate(threads=1)
    potential.warm_up()
    near = potential._compilation._near(potential)
    assert isinstance(near, ByKernels)
    by_charge = np.linspace(-5.0, 4.0, whole.n_atoms)
    is_ghost = np.random.default_rng(5).random(whole.n_atoms) < 0.5
    expected, charges = near.respond(whole, by_charge), near.charges(whole)
    forces, virial, told = np.zeros_like(expected.forces), np.zeros((1, 3, 3)), np.zeros(whole.n_atoms)
    for mask in (is_ghost, ~is_ghost):
        part = Frames(whole.positions, whole.types, whole.cell, whole.pbc, whole.frame_idx, mask)
        for evaluate in (near, ByTorch(potential)):
            assert not evaluate.charges(part)[mask].any()
        found = near.respond(part, np.where(mask, np.nan, by_charge))
        told += near.charges(part)
        forces, virial = forces + found.forces, virial + found.virial
    np.testing.assert_allclose(told, charges, rtol=0, atol=1e-12)
    np.testing.assert_allclose(forces, expected.forces, rtol=0, atol=1e-10)
    np.testing.assert_allclose(virial, expected.virial, rtol=0, atol=1e-9)
