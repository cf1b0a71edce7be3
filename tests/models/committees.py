"""Small committees of water for tests: random weights, forces of about 1 eV/Å that differ from member to member."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dpserver.models.committee import Committee
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from tests import structures
from tests.contract import scaled


def member(seed: int, rcut: float = 4.0, species: Sequence[str] = structures.SPECIES) -> Potential:
    """One member; its template and smallest distances are those of a molecule."""
    model = {
        "type_map": list(species),
        "descriptor": {
            "type": "se_e2_a", "sel": [30, 60], "rcut": rcut, "rcut_smth": 0.5, "neuron": [4, 8], "axis_neuron": 3,
        },
        "fitting_net": {"neuron": [10, 10]},
    }  # fmt: skip
    potential = Potential(parse(ModelConfig, model), seed=seed)
    potential.descriptor.davg[:, 0] = torch.tensor([0.06, 0.05])
    potential.descriptor.dstd.copy_(torch.tensor([[0.15, 0.09, 0.09, 0.09], [0.12, 0.08, 0.08, 0.08]]))
    return scaled(potential, structures.cubic())


def committee(*rcuts: float) -> Committee:
    """A committee with one member for each cutoff; by default three of 4 Å."""
    return Committee([member(seed, rcut) for seed, rcut in enumerate(rcuts or (4.0, 4.0, 4.0))])
