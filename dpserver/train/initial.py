"""The model a training starts from: random weights, and what is read off the training set beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dpserver.frames import Floats
from dpserver.models.config import ModelConfig, PolarFittingConfig, TensorFittingConfig
from dpserver.models.potential import Potential
from dpserver.models.splines import coefficients_of
from dpserver.models.tensors import TensorModel
from dpserver.train.bias import change_bias, set_bias
from dpserver.train.data import LabelledFrames, template
from dpserver.train.statistics import NeighbourStatistics, composition, fit_energy_bias
from dpserver.train.systems import Sample, System

Model = Potential | TensorModel
"""What can be trained."""


def initial_model(
    config: ModelConfig,
    systems: Sequence[System],
    n_wanted: Sequence[int],
    seed: int,
    precision: str,
    table: Floats | None = None,
    neighbours: NeighbourStatistics | None = None,
) -> Model:
    """A model with random weights and with the statistics of the training set.

    Args:
        config: the model; `sel: auto` is replaced by numbers.
        systems: the training set.
        n_wanted: frames of each system, at most, that davg and dstd are taken from.
        seed: of the weights.
        precision: `double`, `mixed` or `single`.
        table: distances and energies of the model's table of pair energies, if it has one.
        neighbours: of the data; by default of the training set.
    """
    neighbours = neighbour_statistics(systems, config.descriptor.cutoffs) if neighbours is None else neighbours
    config = config.model_copy(update={"descriptor": config.descriptor.resolved(neighbours.counts)})
    is_tensor = isinstance(config.fitting_net, TensorFittingConfig)
    model: Model = (TensorModel if is_tensor else Potential)(config, seed=seed, precision=precision)
    model.min_distance, model.crowd_distance = neighbours.min_distance, neighbours.crowd_distance
    model.template = template(s.data for s in systems)
    model.descriptor.fit_normalisation(Sample(systems, n_wanted), config.data_stat_protect)
    model.fitting.fit_parameters(*_parameters(model, systems), config.data_stat_protect)
    if isinstance(model, Potential):
        if model.table is not None and table is not None:
            model.table.fill(table, coefficients_of(table, len(config.type_map)))
        set_bias(model, [s.data for s in systems])
        charges = config.electrostatics
        if charges is not None and not charges.is_fixed and any(s.data.energy is not None for s in systems):
            change_bias(model, systems, n_wanted)  # the charges have an energy from the start
    elif isinstance(config.fitting_net, PolarFittingConfig) and config.fitting_net.shift_diag:
        model.shift.copy_(torch.from_numpy(_polar_shift(model, [s.data for s in systems])))
    return model


def neighbour_statistics(systems: Sequence[System], cutoffs: frozenset[float] = frozenset()) -> NeighbourStatistics:
    """Go once over the neighbour lists of all frames.

    Args:
        systems: the training set; at least one.
        cutoffs: within which neighbours are counted, Å.
    """
    lists = ((s.data.subset([k]).frames, s.edges(k)) for s in systems for k in range(s.data.n_frames))
    return NeighbourStatistics.collect(lists, systems[0].n_species, cutoffs)


def _parameters(model: Model, systems: Sequence[System]) -> tuple[Floats | None, Floats | None]:
    """The parameters of all frames and atoms, (n, n_fparam) and (n, n_aparam); None where the model takes none."""
    frames = [s.data.frames for s in systems]
    fparam = [f.fparam for f in frames if f.fparam is not None and model.n_fparam]
    aparam = [f.aparam for f in frames if f.aparam is not None and model.n_aparam]
    return np.concatenate(fparam) if fparam else None, np.concatenate(aparam) if aparam else None


def _polar_shift(model: TensorModel, data: Sequence[LabelledFrames]) -> Floats:
    """A third of the mean trace of each species' polarizability, (n_species,), from the labels there are.

    As in DeePMD-kit: from the atoms' own where they are known, else by least squares from those of the structures.
    """
    n_species = len(model.species)
    is_selected = np.isin(np.arange(n_species), model.selected)
    atoms = [(s.atom_polar, s.frames.types) for s in data if s.atom_polar is not None]
    if atoms:
        traces = np.concatenate([np.trace(polar, axis1=1, axis2=2) for polar, _ in atoms]) / 3
        types = np.concatenate([types for _, types in atoms])
        n_atoms = np.maximum(np.bincount(types, minlength=n_species), 1)
        means = np.bincount(types, weights=traces, minlength=n_species) / n_atoms
        return np.where(is_selected, means, 0.0)
    wholes = [(s.polar, s.frames) for s in data if s.polar is not None]
    if not wholes:
        return np.zeros(n_species)
    traces = np.concatenate([np.trace(polar, axis1=1, axis2=2) for polar, _ in wholes]) / 3
    counts = np.concatenate([composition(frames, n_species) for _, frames in wholes])
    return fit_energy_bias(traces, counts * is_selected.astype(np.float64))
