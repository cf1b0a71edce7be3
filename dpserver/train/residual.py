"""Labels without what fixed charges say: what is left for the nets to learn.

The energy of charges that training does not change is the same in every step. It is taken off the labels once, and the
nets are fitted to the rest, as fast as if there were no charges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dpserver.errors import DataError, StructureError
from dpserver.frames import Floats
from dpserver.models.config import ModelConfig
from dpserver.models.electrostatics import checked
from dpserver.train.data import LabelledFrames
from dpserver.train.systems import System

if TYPE_CHECKING:
    from dpserver.models.electrostatics_sum import ChargeSum

_CAUSES = (
    "the charges of the input are wrong (model.electrostatics.charges), or the structure has other molecules, or lacks "
    "atoms"
)


def take_charges_off(systems: Sequence[System], model: ModelConfig) -> None:
    """Take energy, forces and virial of the charges off the labels, where the charges are fixed.

    Args:
        systems: their data are replaced.
        model: whose charges; nothing is done where it has none, or learns them.

    Raises:
        DataError: a frame has no such energy.
    """
    if model.electrostatics is None or not model.electrostatics.is_fixed:
        return
    from dpserver.models.electrostatics_sum import ChargeSum

    of_species = np.array([model.electrostatics.charges[name] for name in model.type_map])
    total = ChargeSum(model.electrostatics)
    for system in systems:
        system.data = _taken_off(system.data, total, of_species)


def _taken_off(data: LabelledFrames, total: ChargeSum, of_species: Floats) -> LabelledFrames:
    """The data of one system without the energy of its charges."""
    frames, charges = data.frames, of_species[data.frames.types]
    try:
        checked(total.config, frames, charges, _CAUSES)
    except StructureError as error:
        raise DataError(f"{data.name}: {error}") from None
    found = total.evaluate(frames, charges)
    weighed = found.atom_energy if data.atom_energy_coeff is None else found.atom_energy * data.atom_energy_coeff
    energy = np.bincount(frames.frame_idx, weights=weighed, minlength=frames.n_frames)
    return replace(
        data,
        energy=None if data.energy is None else data.energy - energy,
        forces=None if data.forces is None else data.forces + found.gradient,
        virial=None if data.virial is None else data.virial - found.virial,
        atom_energy=None if data.atom_energy is None else data.atom_energy - found.atom_energy,
    )
