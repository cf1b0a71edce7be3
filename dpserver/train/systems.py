"""Labelled frames made ready for training: neighbour lists built once, batches as graphs and tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from dpserver import neighbors
from dpserver.errors import ConfigError, DataError, StructureError
from dpserver.frames import Ints
from dpserver.models.config import ModelConfig, TensorFittingConfig
from dpserver.models.graph import Graph
from dpserver.models.parameters import check_parameters
from dpserver.neighbors import Edges
from dpserver.train.data import LabelledFrames, join, read_systems
from dpserver.train.data_config import DataConfig
from dpserver.train.loss import Labels
from dpserver.train.room import EDGE_BYTES, Room

GRAPH_EDGES = 4
"""An edge of a batch that is kept ready takes the room of so many."""


class System:
    """Labelled frames of one system, with their neighbour lists as far as they are kept.

    Args:
        data: structures and labels.
        rcut: cutoff of the lists, Å.
        n_species: number of species.
        room: where lists and batches are kept; by default one of its own.
    """

    def __init__(self, data: LabelledFrames, rcut: float, n_species: int, room: Room | None = None) -> None:
        self.data = data
        self.rcut = rcut
        self.n_species = n_species
        self._edges: dict[int, Edges] = {}
        self._ready: dict[int, tuple[LabelledFrames, Graph, Labels]] = {}
        self.room = Room() if room is None else room

    def edges(self, frame: int) -> Edges:
        """Neighbour list of one frame.

        Raises:
            DataError: atoms of the frame overlap.
        """
        if frame in self._edges:
            return self._edges[frame]
        try:
            frames = self.data.subset([frame]).frames
            edges = neighbors.build(frames, self.rcut)
        except StructureError as error:
            raise DataError(f"{self.data.name}, frame {frame}: {error}") from None
        edges = _as_in_graphs(edges, frames.types)
        if self.room.take(EDGE_BYTES * len(edges)):
            self._edges[frame] = edges
        return edges

    def batch(self, frame_idx: Sequence[int] | Ints, device: torch.device) -> tuple[Graph, Labels]:
        """Graph and labels of some frames, on the device; those of a single frame on the CPU are kept."""
        only = int(frame_idx[0]) if len(frame_idx) == 1 and device.type == "cpu" else None
        if only is not None and (kept := self._ready.get(only)) is not None:
            if kept[0] is self.data:
                return kept[1:]
            self._forget(only)
        data = self.data.subset(frame_idx)
        edges = Edges.concatenate([self.edges(int(k)) for k in frame_idx], data.frames.offsets[:-1])
        labels = Labels(
            {name: torch.as_tensor(values, device=device) for name, values in data.labels.items()},
            torch.as_tensor(data.counts.astype(np.float64), device=device),
            torch.as_tensor(data.frames.frame_idx, device=device),
            torch.as_tensor(data.frames.types, device=device),
        )
        graph = Graph.build(data.frames, edges, self.n_species, device)
        more = (GRAPH_EDGES - 1) * EDGE_BYTES * len(edges)
        if only is not None and only in self._edges and self.room.take(more):
            del self._edges[only]
            self._ready[only] = self.data, graph, labels
        return graph, labels

    def subset(self, frame_idx: Sequence[int]) -> System:
        """A system of some of the frames, in the same room; this one keeps nothing any more."""
        self.room.give(EDGE_BYTES * sum(map(len, self._edges.values())))
        self._edges.clear()
        for frame in list(self._ready):
            self._forget(frame)
        return System(self.data.subset(frame_idx), self.rcut, self.n_species, self.room)

    def _forget(self, frame: int) -> None:
        """Keep the batch of a frame no longer."""
        _, graph, _ = self._ready.pop(frame)
        self.room.give(GRAPH_EDGES * EDGE_BYTES * len(graph.centre))

    def closest(self, frame: int) -> float:
        """Smallest distance between atoms of a frame within the cutoff, Å; 0 where they overlap, inf without any."""
        try:
            return float(self.edges(frame).distance.min(initial=np.inf))
        except DataError:
            return 0.0


class Sample:
    """Some frames of each system, evenly spaced, as batches of one frame; may be gone through more than once.

    Args:
        systems: what to take them from.
        n_wanted: frames of each, at most; None for all.
        device: where the batches are to be.
    """

    def __init__(
        self, systems: Sequence[System], n_wanted: Sequence[int] | None = None, device: torch.device | None = None
    ) -> None:
        self.device = torch.device("cpu") if device is None else device
        wanted = [s.data.n_frames for s in systems] if n_wanted is None else n_wanted
        self.parts = [(s, _evenly(s.data.n_frames, n)) for s, n in zip(systems, wanted, strict=True)]

    def batches(self) -> Iterator[tuple[Graph, Labels]]:
        """Graph and labels of each frame."""
        return (system.batch([k], self.device) for system, frames in self.parts for k in frames)

    def __iter__(self) -> Iterator[Graph]:
        """The graphs alone."""
        return (graph for graph, _ in self.batches())


def _as_in_graphs(edges: Edges, types: Ints) -> Edges:
    """The edges of a frame in the order they have in a `Graph`, so that it need not sort them every time."""
    order = np.lexsort((edges.centre, types[edges.neighbour], types[edges.centre]))
    return Edges(edges.centre[order], edges.neighbour[order], edges.shift[order], edges.distance[order])


def _evenly(n_frames: int, n_wanted: int) -> Ints:
    """At most n_wanted frames, evenly spaced."""
    return np.linspace(0, n_frames - 1, min(n_frames, n_wanted)).round().astype(np.int64)


def open_systems(
    config: DataConfig,
    model: ModelConfig,
    types: Sequence[str] | None = None,
    *,
    has_coefficients: bool = False,
    room: Room | None = None,
) -> list[System]:
    """Read the systems of a section, without the frames it leaves out.

    Args:
        config: `training_data` or `validation_data`.
        model: whose species the frames are indexed by.
        types: what the numbers of systems without names of their own stand for; the model's species by default.
        has_coefficients: whether `atom_ener_coeff.npy` is to be heeded.
        room: that they share; by default one that is theirs.

    Raises:
        DataError: the data cannot be read, or nothing is left of it.
    """
    types = model.type_map if types is None else types
    data = read_systems(config.systems, types, config.rglob_patterns, _selected(model))
    data = [_fitted(s, model, has_coefficients=has_coefficients) for s in data]
    word, number = config.batch_rule or ("", 0)
    if word == "filter":
        data = [s.subset(np.flatnonzero(s.counts <= number)) for s in data if (s.counts <= number).any()]
    if word == "mixed" and data:
        if config.sys_probs is not None:
            raise ConfigError('sys_probs: has no meaning with batch_size "mixed:N", which draws from all systems alike')
        data = [join(data)]
    room = Room() if room is None else room
    systems = [System(s, model.rcut, len(model.type_map), room) for s in data]
    if config.min_pair_dist:
        systems = [kept for s in systems if (kept := _without_close(s, config.min_pair_dist)) is not None]
    if not systems:
        raise DataError("batch_size filter:N or min_pair_dist leaves no frame of the data; allow more")
    return systems


def _selected(model: ModelConfig) -> list[str] | None:
    """Species whose atoms have a tensor; None for all."""
    types = model.fitting_net.sel_type if isinstance(model.fitting_net, TensorFittingConfig) else None
    return None if types is None else [model.type_map[c] for c in types]


def _fitted(data: LabelledFrames, model: ModelConfig, *, has_coefficients: bool) -> LabelledFrames:
    """The frames with the model's species, and without what it does not take."""
    fitting, frames = model.fitting_net, data.frames
    index = np.array([model.type_map.index(name) for name in data.species])
    frames = replace(
        frames,
        types=index[frames.types],
        fparam=frames.fparam if fitting.numb_fparam else None,
        aparam=frames.aparam if fitting.numb_aparam else None,
    )
    has_default = fitting.default_fparam is not None
    try:
        check_parameters(frames, fitting.numb_fparam, fitting.numb_aparam, has_default_fparam=has_default)
    except StructureError as error:
        raise DataError(f"{data.name}: {error}") from None
    coefficients = data.atom_energy_coeff if has_coefficients else None
    return replace(data, frames=frames, species=tuple(model.type_map), atom_energy_coeff=coefficients)


def _without_close(system: System, closest: float) -> System | None:
    """A system without the frames whose atoms come closer; None if there is nothing left."""
    kept = [k for k in range(system.data.n_frames) if system.closest(k) >= closest]
    if len(kept) == system.data.n_frames:
        return system
    return system.subset(kept) if kept else None


def check_labels(systems: Sequence[System], needed: Mapping[str, str]) -> list[str]:
    """Refuse data without the labels the loss asks for.

    A system without one of them is trained on without that term of the loss, as DeePMD-kit does.

    Args:
        systems: the training set.
        needed: the labels, and which keys of the loss to set to 0 without each.

    Returns:
        A sentence about each label that some systems lack.

    Raises:
        DataError: no system has a label, or a system has none of them.
    """
    data = [system.data for system in systems]
    notes = []
    for label, keys in needed.items():
        lacking = [s.name for s in data if label not in s.labels]
        if len(lacking) == len(data):
            raise DataError(f"{_listed(lacking)} has no {label}, but the loss asks for it; add it, or set {keys} to 0")
        if lacking:
            notes.append(f"no {label} in {_listed(lacking)}: there the loss goes without that term")
    for system in data:
        if not needed.keys() & system.labels.keys():
            raise DataError(f"{system.name} has nothing of what the loss asks for ({', '.join(needed)}); leave it out")
    return notes


def check_coordinates(systems: Iterable[System], n_coordinates: int) -> None:
    """Refuse data whose generalized coordinates are not as many as the loss says.

    Raises:
        DataError: naming the system.
    """
    for data in (system.data for system in systems):
        if data.drdq is not None and data.drdq.shape[1] != 3 * n_coordinates:
            raise DataError(
                f"{data.name}: drdq has {data.drdq.shape[1]} numbers for each atom, but loss.numb_generalized_coord is "
                f"{n_coordinates}, for which it should be {3 * n_coordinates}"
            )


def _listed(names: Sequence[str]) -> str:
    """A few names and how many there are more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
