"""The energy of each species that a model adds to its nets, set or changed by what a data set says.

set      b = argmin Σ_f (E_f - Σ_c n_fc b_c)²                of the reference energies E_f
change   b += argmin Σ_f (E_f - Ê_f - Σ_c n_fc δ_c)²         of what the model's energies Ê_f lack

with n_fc atoms of species c in frame f, each as far as it has the energy of its species: not at all where the species
is excluded, in part where a table of pair energies without it takes over. Forces and virials stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpserver.errors import DataError
from dpserver.frames import Floats
from dpserver.models.graph import Graph
from dpserver.models.potential import Potential
from dpserver.train.data import LabelledFrames
from dpserver.train.statistics import composition, fit_energy_bias
from dpserver.train.systems import Sample, System


@dataclass(frozen=True, eq=False)
class BiasChange:
    """What a change of the bias has done.

    Attributes:
        before: the energies of the species before, (n_species,), eV.
        after: and after.
        n_frames: frames it was fitted to.
        error_before: root mean squared error of the energy per atom on these, eV.
        error_after: the same after it.
    """

    before: Floats
    after: Floats
    n_frames: int
    error_before: float
    error_after: float


def set_bias(potential: Potential, data: Iterable[LabelledFrames]) -> None:
    """Set the energy of each species to what fits the reference energies best, whatever the nets say.

    Species whose energy in vacuum is given keep it; without any energies nothing is done.
    """
    known = [s for s in data if s.energy is not None]
    if not known:
        return
    bias = fit_energy_bias(
        np.concatenate([s.energy for s in known if s.energy is not None]),
        np.concatenate([_counts(potential, s) for s in known]),
        *_options(potential),
    )
    potential.energy_bias.copy_(torch.from_numpy(bias))


@torch.no_grad()
def change_bias(
    potential: Potential, systems: Sequence[System], n_wanted: Sequence[int] | None = None, *, is_set: bool = False
) -> BiasChange:
    """Change the energy of each species by what the model's energies lack, or set it by the energies themselves.

    Args:
        potential: the model; changed in place.
        systems: data with energies; systems without are passed over.
        n_wanted: frames of each system, at most, evenly spaced; all by default.
        is_set: whether to set it, without regard to the nets.

    Raises:
        DataError: there are no energies.
    """
    references, predictions, counts, sizes = _energies(potential, systems, n_wanted)
    errors = references - predictions
    rcond, given = _options(potential)
    before = potential.energy_bias.cpu().numpy().copy()
    if is_set:
        shift = fit_energy_bias(references, counts, rcond, given) - before
    else:
        shift = fit_energy_bias(errors, counts, rcond, [None if e is None else 0.0 for e in given])
    potential.energy_bias += torch.from_numpy(shift).to(potential.device)
    left = errors - counts @ shift
    rmse = (float(np.sqrt(np.mean((values / sizes) ** 2))) for values in (errors, left))
    return BiasChange(before, before + shift, len(errors), *rmse)


def _energies(
    potential: Potential, systems: Sequence[System], n_wanted: Sequence[int] | None
) -> tuple[Floats, Floats, Floats, Floats]:
    """Reference and predicted energies of frames, (n,), atoms of each species in them, (n, n_species), and of all."""
    wanted = [s.data.n_frames for s in systems] if n_wanted is None else n_wanted
    used = [(s, n) for s, n in zip(systems, wanted, strict=True) if s.data.energy is not None]
    if not used:
        raise DataError("the energies of the species cannot be fitted: the data has no energies")
    rows = []
    for graph, labels in Sample([s for s, _ in used], [n for _, n in used], potential.device).batches():
        coefficients = labels.get("atom_energy_coeff")
        atoms = potential.atom_energies(graph, graph.vectors())
        predicted = atoms if coefficients is None else coefficients * atoms
        weight = _shares(potential, graph, atoms)
        if coefficients is not None:
            weight = coefficients if weight is None else weight * coefficients
        given = None if weight is None else weight.cpu().numpy()
        counts = composition(graph.frames, len(potential.species), given)[0] * _carries_energy(potential)
        rows.append((float(labels.values["energy"][0]), float(predicted.sum()), counts, graph.frames.n_atoms))
    references, predictions, matrix, sizes = zip(*rows, strict=True)
    return np.array(references), np.array(predictions), np.array(matrix), np.array(sizes, dtype=np.float64)


def _shares(potential: Potential, graph: Graph, energies: Tensor) -> Tensor | None:
    """The part of its species' energy that each atom has, (n_atoms,); None where that is all of it.

    Args:
        potential: the model.
        graph: a batch.
        energies: of its atoms by the model as it is, (n_atoms,), eV.
    """
    switch = None if potential.table is None else potential.table.switch
    if switch is None or switch.has_bias:
        return None
    kept = potential.energy_bias.clone()
    potential.energy_bias += 1.0
    shares = potential.atom_energies(graph, graph.vectors()) - energies
    potential.energy_bias.copy_(kept)
    return shares


def _options(potential: Potential) -> tuple[float | None, Sequence[float | None]]:
    """The cut of small singular values, and the energies that are given."""
    return getattr(potential.config.fitting_net, "rcond", None), potential.config.given_energies


def _counts(potential: Potential, data: LabelledFrames) -> Floats:
    """Atoms of each species that carries energy, weighed where the data says so, (n_frames, n_species)."""
    counts = composition(data.frames, len(potential.species), data.atom_energy_coeff)
    return counts * _carries_energy(potential)


def _carries_energy(potential: Potential) -> Floats:
    """1 for each species whose atoms have an energy, else 0, (n_species,)."""
    return np.isin(np.arange(len(potential.species)), potential.config.selected_types).astype(np.float64)
