"""The smooth three-body descriptor: the contract, and what is its own."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from dpserver.frames import Frames
from dpserver.models.config import ModelConfig, SeE3Config, parse
from dpserver.models.potential import Potential
from tests import structures
from tests.contract import PotentialContract, scaled
from tests.models import slots
from tests.models.test_se_e2_a import RCUT, pair


def every_cell() -> Frames:
    names = (structures.triclinic, structures.slab, structures.cluster)
    return Frames.concatenate([*(make_frame() for make_frame in names), structures.tiny(), structures.molecule()])


def make(*, pair_exclude_types: list[list[int]] | None = None, **descriptor: Any) -> Potential:
    """A small model of water with random weights."""
    shape = {"sel": [20, 40], "rcut": RCUT, "rcut_smth": 0.5, "neuron": [3, 6], **descriptor}
    model = {
        "type_map": list(structures.SPECIES),
        "descriptor": {"type": "se_e3", **shape},
        "fitting_net": {"neuron": [8, 8]},
        "pair_exclude_types": pair_exclude_types or [],
    }
    potential = Potential(parse(ModelConfig, model), seed=29)
    potential.descriptor.davg[:, 0] = torch.tensor([0.06, 0.05])
    potential.descriptor.dstd.copy_(torch.tensor([[0.15, 0.4, 0.4, 0.4], [0.12, 0.3, 0.3, 0.3]]))
    # The descriptor is small and nearly the same for all atoms; without this so would be the energies.
    with torch.no_grad():
        for net in potential.fitting:
            net[0].weight *= 20
    return scaled(potential, every_cell())


class SeE3Contract(PotentialContract):
    descriptor: ClassVar[dict[str, Any]] = {}

    def potential(self) -> Potential:
        return make(**self.descriptor)

    def frames(self) -> Frames:
        return every_cell()


class TestPlain(SeE3Contract):
    pass


class TestExcludedTypes(SeE3Contract):
    descriptor: ClassVar = {"exclude_types": [[0, 0]], "resnet_dt": True, "env_protection": 0.05}


@pytest.mark.parametrize("name", ["se_e3", "se_at", "se_a_3be", "se_t"])
def test_every_name_of_it(name: str) -> None:
    model = parse(ModelConfig, {"type_map": ["O"], "descriptor": {"type": name, "sel": [3]}})
    assert isinstance(model.descriptor, SeE3Config)
    assert (model.descriptor.type, model.descriptor.rcut, model.descriptor.neuron) == ("se_e3", 6.0, (10, 20, 40))


@pytest.mark.parametrize("exclude", [[], [[0, 1]]])
@pytest.mark.parametrize("unseen", [[], [[0, 0]]])
@pytest.mark.parametrize("tilt", [0.0, 0.07])
def test_descriptor_slot_by_slot(exclude: list[list[int]], unseen: list[list[int]], tilt: float) -> None:
    """Whatever davg is, and with empty slots of both species."""
    potential = make(sel=[15, 30], exclude_types=exclude, pair_exclude_types=unseen)
    potential.descriptor.davg[:, 1:] = tilt * torch.tensor([[1.0, -0.5, 0.2], [0.3, 0.1, -1.0]])
    for frame in (structures.tiny(), structures.molecule(), structures.atom()):
        graph = potential.graph(frame)
        found = potential.descriptor(graph, graph.vectors())
        near = slots.neighbours(frame, RCUT)
        for centre, description in enumerate(found):
            assert description.directions is None
            for row, atom in enumerate(graph.atoms[centre].tolist()):
                expected = slots.se_e3(potential.descriptor, centre, near[atom])
                np.testing.assert_allclose(description.features[row].detach(), expected, rtol=1e-12, atol=1e-15)


def test_continuous_across_the_cutoff() -> None:
    potential = make()
    outside = potential.evaluate(pair(np.array([RCUT + 1e-9])))
    result = potential.evaluate(pair(RCUT - np.array([1e-9, 1e-6, 1e-4, 1e-1])))
    energies = np.abs(result.energy - outside.energy)
    forces = np.abs(result.forces.reshape(4, 3, 3) - outside.forces).max(axis=(1, 2))
    assert np.all(energies[:3] <= 1e-11)
    assert np.all(forces[:3] <= [1e-11, 1e-9, 1e-6])
    assert energies[3] > 0


def test_a_species_without_slots_is_not_there() -> None:
    descriptor = {"type": "se_e3", "sel": [0, 12], "rcut": RCUT, "neuron": [3]}
    potential = Potential(parse(ModelConfig, {"type_map": ["O", "H"], "descriptor": descriptor}))
    frame = Frames.single([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [0, 0, 1])
    apart = Frames.single([[0, 0, 0], [1, 0, 9], [0, 1, 0]], [0, 0, 1])
    atoms = [potential.evaluate(f).atom_energy[0] for f in (frame, apart)]
    assert atoms[0] == pytest.approx(atoms[1], abs=1e-13)
