"""Charges of potentials and committees in parts: given, learnt and by surroundings."""

from __future__ import annotations

import numpy as np
import pytest

from dpserver.engine import Accompanied
from dpserver.models.committee import Committee
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.models.tensors import TensorModel
from dpserver.parallel.plan import Decompose
from tests import structures
from tests.models import test_electrostatics, test_tensors
from tests.parallel.charged import BATCHES, ChargedSprings, agree, refuses_a_huge_cell
from tests.parallel.test_ranked import moved
from tests.ranks import ranked


def test_models_beside_charges_come_from_all_ranks():
    def model() -> Accompanied:
        config = {
            "type_map": ["B", "A"],
            "descriptor": {**test_tensors.DESCRIPTOR, "sel": [60, 120], "rcut": 4.0},
            "fitting_net": {"neuron": [6], "type": "dipole"},
        }
        return Accompanied(ChargedSprings(), TensorModel(parse(ModelConfig, config), seed=5))

    frames = structures.water((3, 3, 2))
    with ranked(model(), 2, lambda rank, file: model(), decompose=Decompose.SPACE) as found:
        result, expected = found.evaluate(frames), model().evaluate(frames)
        agree(result, expected)
        np.testing.assert_allclose(result.responses.dipole, expected.responses.dipole, rtol=1e-9, atol=1e-12)
        assert "in 2 parts" in found.choice


LEVELS = {
    "fixed": {"total_charge": None},
    "learnt": {"trainable": True, "total_charge": 1.0},
    "surroundings": {"environment": {"neuron": [6]}},
    "both": {"trainable": True, "environment": {"neuron": [6], "scale": 0.3}, "method": "pme"},
}


def fast(seed: int = 3, **options: object) -> Potential:
    descriptor = {**test_electrostatics.MODEL["descriptor"], "sel": [60, 120], "rcut": 3.0}
    found = test_electrostatics.make(seed, descriptor, accuracy=1e-6, **options)
    found.accelerate(threads=1)
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_potentials_with_charges(level):
    model, other = fast(**LEVELS[level]), fast(**LEVELS[level])
    assert model.can_cut
    assert model.has_long_range
    with ranked(model, 2, lambda rank, file: other, decompose=Decompose.SPACE) as found:
        found.warm_up()
        for name in ("one", "triclinic", "droplet", "mixed", "ion"):
            now = moved(BATCHES[name], 1, 0.01)
            agree(found.evaluate(now), model.evaluate(now), 1e-11)
            is_cut = "in 2 parts" in found.choice
            assert is_cut or name not in ("one", "mixed"), name


def test_a_committee_of_which_some_have_charges():
    kinds = [{"trainable": True}, {"environment": {"neuron": [6]}}]

    def committee() -> Committee:
        found = Committee([*(fast(k, **options) for k, options in enumerate(kinds)), fast(7).without_charges()])
        assert not found.can_cut
        found.accelerate(threads=1)
        return found

    model, other, frames = committee(), committee(), structures.water((3, 2, 2))
    assert model.can_cut
    with ranked(model, 2, lambda rank, file: other, decompose=Decompose.SPACE) as found:
        result, expected = found.evaluate(frames), model.evaluate(frames)
        agree(result, expected, 1e-11)
        np.testing.assert_allclose(result.committee.forces, expected.committee.forces, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [fast, lambda: accelerated(Committee([fast(1).without_charges(), fast(2)]))])
def test_a_potential_refuses_a_cell_that_is_too_large_before_it_is_cut(make):
    model, other = make(), make()
    with ranked(model, 2, lambda rank, file: other, decompose=Decompose.SPACE) as found:
        refuses_a_huge_cell(found, model)


def accelerated(committee: Committee) -> Committee:
    committee.accelerate(threads=1)
    return committee


def test_by_torch_charges_are_never_cut():
    plain = test_electrostatics.make(total_charge=None)
    assert not plain.can_cut
    assert plain.without_charges().can_cut
