"""The smooth radial descriptor: the contract, and what is its own."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from dpserver.frames import Frames
from dpserver.models.config import ModelConfig, SeE2RConfig, parse
from dpserver.models.potential import Potential
from tests import structures
from tests.contract import PotentialContract, scaled
from tests.models.test_se_e2_a import RCUT, every_cell, pair


def make(**descriptor: Any) -> Potential:
    """A small model of water with random weights."""
    shape = {"sel": [20, 40], "rcut": RCUT, "rcut_smth": 0.5, "neuron": [4, 8, 8], **descriptor}
    model = {
        "type_map": list(structures.SPECIES),
        "descriptor": {"type": "se_e2_r", **shape},
        "fitting_net": {"neuron": [10, 10]},
    }
    potential = Potential(parse(ModelConfig, model), seed=23)
    potential.descriptor.davg[:] = torch.tensor([[0.06], [0.05]])
    potential.descriptor.dstd[:] = torch.tensor([[0.15], [0.12]])
    # The descriptor is small and nearly the same for all atoms; without this so would be the energies.
    with torch.no_grad():
        for net in potential.fitting:
            net[0].weight *= 30
    return scaled(potential, every_cell())


class SeE2RContract(PotentialContract):
    descriptor: ClassVar[dict[str, Any]] = {}

    def potential(self) -> Potential:
        return make(**self.descriptor)

    def frames(self) -> Frames:
        return every_cell()


class TestOneSided(SeE2RContract):
    descriptor: ClassVar = {"type_one_side": True}


class TestTwoSided(SeE2RContract):
    descriptor: ClassVar = {"type_one_side": False, "resnet_dt": True, "env_protection": 0.05}


class TestExcludedTypes(SeE2RContract):
    descriptor: ClassVar = {"exclude_types": [[1, 1]], "activation_function": "gelu"}


def test_deepmd_kits_other_name() -> None:
    model = parse(ModelConfig, {"type_map": ["O"], "descriptor": {"type": "se_r", "sel": [3]}})
    assert isinstance(model.descriptor, SeE2RConfig)
    assert (model.descriptor.type, model.descriptor.rcut, model.descriptor.neuron) == ("se_e2_r", 6.0, (10, 20, 40))


def test_continuous_across_the_cutoff() -> None:
    potential = make()
    outside = potential.evaluate(pair(np.array([RCUT + 1e-9])))
    result = potential.evaluate(pair(RCUT - np.array([1e-9, 1e-6, 1e-4, 1e-2])))
    energies = np.abs(result.energy - outside.energy)
    assert np.all(energies[:3] <= 1e-11)
    assert energies[3] > 0


def test_knows_no_directions() -> None:
    """Two neighbours at the same distances answer alike, whatever the angle between them, beyond their own cutoff."""
    potential = make()

    def energy(angle: float) -> float:
        far = 2.5 * np.array([np.cos(angle), np.sin(angle), 0])
        return float(potential.evaluate(Frames.single([[0, 0, 0], [2.5, 0, 0], far], [0, 1, 1])).energy[0])

    assert energy(2.0) == pytest.approx(energy(3.0), abs=1e-13)
    assert energy(1.0) != pytest.approx(energy(2.0), abs=1e-6)
