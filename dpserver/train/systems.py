"""Labelled frames made ready for training: neighbour lists built once, batches as graphs and tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor

from dpserver import neighbors
from dpserver.errors import DataError, StructureError
from dpserver.frames import Floats, Frames, Ints
from dpserver.models.config import ModelConfig, SmoothConfig
from dpserver.models.graph import Graph
from dpserver.models.potential import Potential
from dpserver.neighbors import Edges
from dpserver.train.config import LossConfig
from dpserver.train.data import LabelledFrames, template
from dpserver.train.loss import Labels
from dpserver.train.statistics import NeighbourStatistics, choose_sel, fit_energy_bias

MAX_CACHED_EDGES = 50_000_000
"""Neighbour lists of a system are kept up to this many edges, 48 bytes each, and built anew beyond."""


class System:
    """Labelled frames of one system, with their neighbour lists as far as they are kept.

    Args:
        data: structures and labels.
        rcut: cutoff of the lists, Å.
        n_species: number of species.
    """

    def __init__(self, data: LabelledFrames, rcut: float, n_species: int) -> None:
        self.data = data
        self.rcut = rcut
        self.n_species = n_species
        self._edges: dict[int, Edges] = {}
        self._room = MAX_CACHED_EDGES

    def edges(self, frame: int) -> Edges:
        """Neighbour list of one frame.

        Raises:
            DataError: atoms of the frame overlap.
        """
        if frame in self._edges:
            return self._edges[frame]
        try:
            edges = neighbors.build(self.data.subset([frame]).frames, self.rcut)
        except StructureError as error:
            raise DataError(f"{self.data.name}, frame {frame}: {error}") from None
        if len(edges) <= self._room:
            self._room -= len(edges)
            self._edges[frame] = edges
        return edges

    def batch(self, frame_idx: Sequence[int] | Ints, device: torch.device) -> tuple[Graph, Labels]:
        """Graph and labels of some frames, on the device."""
        data = self.data.subset(frame_idx)
        edges = Edges.concatenate([self.edges(int(k)) for k in frame_idx], data.frames.offsets[:-1])
        labels = Labels(
            _tensor(data.energy, device),
            _tensor(data.forces, device),
            _tensor(data.virial, device),
            _tensor(data.counts.astype(np.float64), device),
            _tensor(data.frames.frame_idx, device),
        )
        return Graph.build(data.frames, edges, self.n_species, device), labels


@overload
def _tensor(array: Floats | Ints, device: torch.device) -> Tensor: ...
@overload
def _tensor(array: None, device: torch.device) -> None: ...
def _tensor(array: Floats | Ints | None, device: torch.device) -> Tensor | None:
    return None if array is None else torch.as_tensor(array, device=device)


def check_labels(systems: Iterable[System], loss: LossConfig) -> None:
    """Refuse data without the labels the loss asks for.

    Raises:
        DataError: forces or virials are missing.
    """
    wanted = [("forces", "f")] * loss.has_force + [("virial", "v")] * loss.has_virial
    for system in systems:
        for label, key in wanted:
            if getattr(system.data, label) is None:
                raise DataError(
                    f"{system.data.name} has no {label}, but the loss asks for them; add them, or set "
                    f"loss.start_pref_{key} and loss.limit_pref_{key} to 0"
                )


def initial_potential(
    config: ModelConfig, systems: Sequence[System], batch_sizes: Sequence[int], seed: int, precision: str
) -> Potential:
    """A model with random weights and with the statistics of the training set.

    Args:
        config: the model; `sel: auto` is replaced by numbers.
        systems: the training set.
        batch_sizes: frames of a batch of each system; davg and dstd are taken from `data_stat_nbatch` batches.
        seed: of the weights.
        precision: `double`, `mixed` or `single`.
    """
    n_species = len(config.type_map)
    lists = ((s.data.subset([k]).frames, s.edges(k)) for s in systems for k in range(s.data.n_frames))
    neighbours = NeighbourStatistics.collect(lists, n_species)
    if isinstance(config.descriptor, SmoothConfig):
        sel = choose_sel(config.descriptor.sel, neighbours.max_count)
        config = config.model_copy(update={"descriptor": config.descriptor.model_copy(update={"sel": sel})})
    potential = Potential(config, seed=seed, precision=precision)
    potential.min_distance = neighbours.min_distance
    potential.template = template(s.data for s in systems)
    cpu = torch.device("cpu")
    potential.descriptor.fit_normalisation(
        (
            system.batch([k], cpu)[0]
            for system, size in zip(systems, batch_sizes, strict=True)
            for k in _evenly(system.data.n_frames, config.data_stat_nbatch * size)
        ),
        config.data_stat_protect,
    )
    bias = fit_energy_bias(
        np.concatenate([s.data.energy for s in systems]),
        np.concatenate([_composition(s.data.frames, n_species) for s in systems]),
        config.fitting_net.rcond,
    )
    potential.energy_bias.copy_(torch.from_numpy(bias))
    return potential


def _evenly(n_frames: int, n_wanted: int) -> Ints:
    """At most n_wanted frames, evenly spaced."""
    return np.linspace(0, n_frames - 1, min(n_frames, n_wanted)).round().astype(np.int64)


def _composition(frames: Frames, n_species: int) -> Floats:
    """Atoms of each species in each frame, (n_frames, n_species)."""
    counts = np.bincount(frames.frame_idx * n_species + frames.types, minlength=frames.n_frames * n_species)
    return counts.reshape(-1, n_species).astype(np.float64)
