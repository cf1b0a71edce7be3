"""Potentials with charges: the whole contract of a potential, the charges themselves, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from dpserver.errors import ConfigError, StructureError
from dpserver.frames import Frames
from dpserver.models import checkpoint
from dpserver.models.committee import Committee
from dpserver.models.config import ElectrostaticsConfig, ModelConfig, parse
from dpserver.models.deepmd.exporter import tree_of
from dpserver.models.potential import Potential
from tests import structures
from tests.contract import PotentialContract, scaled

MODEL: dict[str, Any] = {
    "type_map": ["O", "H"],
    "descriptor": {"type": "se_e2_a", "sel": [20, 40], "rcut": 4.0, "neuron": [4, 8], "axis_neuron": 3},
    "fitting_net": {"neuron": [10, 10]},
}
CHARGES = {"charges": {"O": -0.8, "H": 0.4}, "accuracy": 1e-12, "sigma": 1.2}


def make(seed: int = 3, descriptor: dict[str, Any] | None = None, **charges: Any) -> Potential:
    section = {**MODEL, "electrostatics": {**CHARGES, **charges}}
    if descriptor is not None:
        section["descriptor"] = descriptor
    potential = Potential(parse(ModelConfig, section), seed=seed)
    if potential.electrostatics is not None and potential.electrostatics.nets is not None:
        with torch.no_grad():  # otherwise all charges of a species would be nearly the same
            for net in potential.electrostatics.nets:
                net[0].weight *= 3000.0
    return potential


def frames() -> Frames:
    """Periodic in all directions or in none."""
    return Frames.concatenate(
        [structures.cubic(), structures.tiny(), structures.triclinic(), structures.cluster(), structures.molecule()]
    )


class Contract(PotentialContract):
    options: ClassVar[dict[str, Any]] = {}

    def frames(self) -> Frames:
        return frames()

    def potential(self) -> Potential:
        return scaled(make(**self.options), self.frames())

    def test_parts_with_ghosts_sum_to_the_whole(self) -> None:
        potential, whole = self.potential(), self.frames()
        assert not potential.can_cut
        with pytest.raises(StructureError, match="needs whole structures"):
            potential.evaluate(replace(whole, is_ghost=np.arange(whole.n_atoms) % 2 == 0))


class TestFixed(Contract):
    options: ClassVar[dict[str, Any]] = {"total_charge": None, "sigma": 0.8}


class TestTrained(Contract):
    options: ClassVar[dict[str, Any]] = {"trainable": True, "sigma": 0.8}


class TestOfTheEnvironment(Contract):
    options: ClassVar[dict[str, Any]] = {"environment": {"neuron": [6]}}


def test_the_energy_is_the_sum_of_both_parts():
    potential, whole = make(), frames()
    found, bare = potential.evaluate(whole), potential.without_charges()
    near = bare.evaluate(whole)
    assert bare.electrostatics is None
    assert bare.config.electrostatics is None
    assert potential.electrostatics is not None
    assert np.abs(found.energy - near.energy).min() > 0.1
    assert potential.fitting is bare.fitting
    assert bare.can_cut


def test_charges_add_up():
    whole = frames()
    assert make().charges(whole) == pytest.approx(np.array([-0.8, 0.4])[whole.types])
    for options in ({"trainable": True}, {"environment": {}}):
        sums = np.bincount(whole.frame_idx, weights=make(total_charge=-2.0, **options).charges(whole))
        np.testing.assert_allclose(sums, -2.0, atol=1e-13)
    assert not Potential(parse(ModelConfig, MODEL)).charges(whole).any()


def test_charges_of_the_environment_differ_from_atom_to_atom():
    whole = structures.cubic()
    charges = make(environment={"scale": 0.2}).charges(whole)
    assert charges[whole.types == 0].std() > 1e-4
    assert not np.array_equal(charges, make(environment={"scale": 0.4}).charges(whole))


def test_one_net_serves_all_species_of_an_embedding_descriptor():
    descriptor = {"type": "se_atten_v2", "sel": 40, "rcut": 4.0, "neuron": [4, 8], "axis_neuron": 2, "attn_layer": 0}
    potential = make(descriptor=descriptor, environment={})
    assert potential.electrostatics is not None
    assert potential.electrostatics.nets is not None
    assert len(potential.electrostatics.nets) == 1
    found = potential.evaluate(frames())
    assert np.isfinite(found.forces).all()


def test_slabs_are_refused():
    with pytest.raises(StructureError, match=r"frame 1 is periodic in 2 of 3 directions.*room around it"):
        make().evaluate(Frames.concatenate([structures.cubic(), structures.slab()]))


def test_fixed_charges_that_do_not_add_up_are_refused():
    molecule = structures.molecule()
    ion = Frames.concatenate([molecule, structures.atom(1)])
    for evaluate in (make().evaluate, make().reference):
        with pytest.raises(StructureError, match=r"charges of frame 1 add up to \+0.4 e, the model is for \+0 e"):
            evaluate(ion)
    assert make(total_charge=None).evaluate(ion).energy.shape == (2,)


@pytest.mark.parametrize(
    ("charges", "message"),
    [
        ({}, r"model.electrostatics.charges: this key is required, the charge of each species"),
        ({"charges": {"O": 1.0}}, r"model.electrostatics.charges: lacks H; it needs the charge of each species"),
        ({"charges": {"O": 1.0, "H": 0, "C": 2}}, r"model.electrostatics.charges: names C"),
        ({"charges": {"O": "a", "H": 0}}, r"model.electrostatics.charges: must name a charge in e"),
        ({**CHARGES, "trainable": True, "total_charge": None}, r"electrostatics.total_charge: must be a number"),
        ({**CHARGES, "sigma": 0.0}, r"model.electrostatics.sigma"),
        ({**CHARGES, "methode": "pme"}, r"model.electrostatics.methode: unknown key; did you mean .*method"),
        ({**CHARGES, "accuracy": 0.5}, r"model.electrostatics.accuracy"),
    ],
)
def test_sections_that_are_wrong(charges, message):
    with pytest.raises(ConfigError, match=message):
        parse(ModelConfig, {**MODEL, "electrostatics": charges}, "model")


@pytest.mark.parametrize(
    ("options", "rcut", "expected"),
    [
        ({}, 6.0, []),
        ({"sigma": 2.0}, 6.0, []),
        ({"sigma": 2.1}, 6.0, ["sigma is 2.1 Å, more than a third of the cutoff of 6 Å: "]),
        ({"charges": {"O": -10.0, "H": 5.0}}, 3.6, []),
        ({"charges": {"O": -82.0, "H": 41.0}}, 3.6, ["charges: -82 e for O; usual", "charges: 41 e for H; usual"]),
    ],
)
def test_values_that_are_hardly_meant(options, rcut, expected):
    found = ElectrostaticsConfig.model_validate({**CHARGES, **options}).doubts(rcut)
    assert len(found) == len(expected)
    for said, wanted in zip(found, expected, strict=True):
        assert said.startswith(f"model.electrostatics.{wanted}")


def test_charges_need_a_net_of_energies():
    with pytest.raises(ConfigError, match=r"model.electrostatics: goes with a fitting net of energies only"):
        parse(ModelConfig, {**MODEL, "fitting_net": {"type": "dipole"}, "electrostatics": CHARGES}, "model")


def test_a_file_without_the_section_is_read(tmp_path):
    values = checkpoint.contents(Potential(parse(ModelConfig, MODEL)))
    del values["config"]["model"]["electrostatics"]
    checkpoint.write(tmp_path / "w.pt", values)
    assert checkpoint.load(tmp_path / "w.pt").config.electrostatics is None


def test_a_file_without_its_charges_is_refused(tmp_path):
    values = checkpoint.contents(make())
    del values["state"]["electrostatics.charges"]
    checkpoint.write(tmp_path / "w.pt", values)
    with pytest.raises(checkpoint.ModelFileError, match=r"its state lacks electrostatics\.charges"):
        checkpoint.load(tmp_path / "w.pt")


def test_deepmd_kit_has_no_place_for_charges():
    with pytest.raises(ConfigError, match=r"a model with charges \(model.electrostatics\) cannot be exported"):
        tree_of(make())


def test_committee_of_potentials_with_and_without_charges():
    members = [make(1), make(2, environment={}), Potential(parse(ModelConfig, MODEL), seed=3)]
    committee, whole = Committee(members), frames()
    assert not committee.can_cut
    expected = [member.evaluate(whole) for member in members]
    committee.accelerate(threads=1)
    found = committee.evaluate(whole)
    assert found.committee is not None
    for k, one in enumerate(expected):
        np.testing.assert_allclose(found.committee.forces[k], one.forces, rtol=0, atol=1e-8)
    assert committee.can_cut
    assert committee.has_long_range


def test_charges_can_be_trained():
    potential = make(trainable=True)
    prediction = potential(potential.graph(structures.cubic()), is_training=True)
    (gradient,) = torch.autograd.grad((prediction.forces**2).sum(), potential.electrostatics.charges)
    assert (gradient.abs() > 1e-3).all()
