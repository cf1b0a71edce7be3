"""What the models of atoms have in common: species, a descriptor, fitting nets and their precision."""

from __future__ import annotations

from itertools import chain
from typing import Final

import numpy as np
import torch
from torch import nn

from dpserver import neighbors
from dpserver.errors import ConfigError
from dpserver.frames import Floats, Frames
from dpserver.models.attention import AttentionLayer
from dpserver.models.config import ModelConfig
from dpserver.models.descriptors import Descriptor
from dpserver.models.fitting import Fitting
from dpserver.models.graph import Graph
from dpserver.models.memory import check_room
from dpserver.models.parameters import Takes

PRECISIONS: Final = {
    "double": (torch.float64, torch.float64),
    "mixed": (torch.float64, torch.float32),
    "single": (torch.float32, torch.float32),
}
"""Precision of the environment and of the networks; edge vectors come from and sums are made in float64 always."""

ORDERED: Final = "its se_atten has averages that are not zero, so that it counts which atom is the first"
"""Why such a model evaluates whole structures only."""

_MANY_EDGES: Final = 1_000_000
_MANY_ATTENTIVE: Final = 20_000
_ATTENTION: Final = 12  # numbers of a layer for two neighbours of one atom
_GRAPH_BYTES: Final = 300  # of an edge, beside the layers' outputs and their derivatives


class AtomicModel(nn.Module):
    """A sum over atoms, each of which is described by its neighbours within a cutoff.

    Args:
        config: species, descriptor and fitting net.

    Attributes:
        config: the same.
        species: symbol of each type.
        rcut: cutoff radius, Å.
        template: symbol of each atom of the training structures, where all share one order, else None.
        min_distance: smallest distance seen in training of each pair of species, (n_species, n_species), Å; inf where
            the pair was never met.
        crowd_distance: the same of pairs in numbers, see `neighbors.crowds`; inf where nothing is known.
        descriptor: describes the atoms.
        fitting: predicts from their descriptions.
        precision: the name of it.
    """

    descriptor: Descriptor
    fitting: Fitting
    rcut: float
    precision: str

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.species = tuple(config.type_map)
        self.template: tuple[str, ...] | None = None
        self.min_distance: Floats = np.full((len(self.species), len(self.species)), np.inf)
        self.crowd_distance: Floats = np.full_like(self.min_distance, np.inf)

    @property
    def n_fparam(self) -> int:
        """Parameters of each frame that the model takes."""
        return self.config.fitting_net.numb_fparam

    @property
    def n_aparam(self) -> int:
        """Parameters of each atom that it takes."""
        return self.config.fitting_net.numb_aparam

    @property
    def has_ordered_atoms(self) -> bool:
        """Whether the answer depends on which atom is the first."""
        return any(getattr(part, "has_ordered_atoms", False) for part in self.descriptor.modules())

    @property
    def can_cut(self) -> bool:
        """Whether a structure can be evaluated in parts, with ghosts, as it is over ranks."""
        return not self.has_ordered_atoms

    @property
    def whole_because(self) -> str:
        """Why it cannot, in words."""
        return ORDERED

    @property
    def takes(self) -> Takes:
        """The parameters that the model takes beside a structure."""
        fitting = self.config.fitting_net
        default = fitting.default_fparam
        return Takes(fitting.numb_fparam, fitting.numb_aparam, default is not None, default)

    def set_precision(self, precision: str) -> None:
        """Choose the precision of environment and networks; statistics and sums stay in float64.

        Raises:
            ConfigError: the name is unknown.
        """
        if precision not in PRECISIONS:
            raise ConfigError(f"precision {precision!r} is unknown; expected one of {', '.join(PRECISIONS)}")
        self.precision = precision
        self.environment_dtype, self.network_dtype = PRECISIONS[precision]
        for parameter in self.parameters():
            parameter.data = parameter.data.to(self.network_dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(chain(self.parameters(), self.buffers())).device

    def graph(self, frames: Frames) -> Graph:
        """Find the neighbours of a batch.

        Raises:
            StructureError: atoms overlap, or the density is absurd.
            MemoryError: what torch would make of them is more than there is memory for, on a CPU.
        """
        edges = neighbors.build(frames, self.rcut)
        if self.device.type == "cpu" and len(edges) > (_MANY_ATTENTIVE if self._attention(0) else _MANY_EDGES):
            numbers = 2 * self._width() + self._attention(len(edges) / frames.n_atoms)
            bytes_each = _GRAPH_BYTES + self.network_dtype.itemsize * numbers
            check_room(len(edges) * bytes_each, f"evaluating {frames.n_atoms} atoms with {len(edges)} neighbours")
        return Graph.build(frames, edges, len(self.species), self.device)

    def _attention(self, n_neighbours: float) -> float:
        """Numbers that layers of attention take for one neighbour of an atom with so many of them."""
        layers = [m for m in self.descriptor.modules() if isinstance(m, AttentionLayer)]
        return sum(_ATTENTION * n_neighbours + 3 * layer.inner.weight.shape[1] for layer in layers)

    def _width(self) -> int:
        """Outputs of all layers that the description of one neighbour takes, at most."""
        lists = [m for m in self.descriptor.modules() if isinstance(m, nn.ModuleList)]
        widths = [[sum(p.shape[-1] for p in net.parameters() if p.ndim == 2) for net in nets] for nets in lists]
        return sum(max(of_nets, default=0) for of_nets in widths)

    def check(self, frames: Frames) -> None:
        """Refuse what has no answer.

        Raises:
            StructureError: a structure is damaged, or lacks the parameters that the model takes.
        """
        frames.check(len(self.species))
        self.fitting.check(frames)
