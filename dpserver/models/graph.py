"""A batch as the models see it: atoms sorted out by species, edges by pair of species, on one device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpserver.frames import Frames
from dpserver.kernels.segments import Segments
from dpserver.neighbors import Edges


@dataclass(frozen=True, eq=False)
class Block:
    """The edges from centres of one species to neighbours of one species.

    Attributes:
        edges: their place among the graph's edges.
        segments: rows are the atoms of the centre's species in the order of `Graph.atoms`.
    """

    edges: slice
    segments: Segments


@dataclass(frozen=True, eq=False)
class Graph:
    """Atoms and edges of a batch of frames.

    Edges are sorted by the species of the centre, the species of the neighbour, and the centre.

    Attributes:
        frames: the structures this was made from.
        positions: (n_atoms, 3), float64, Å.
        atoms: indices of the atoms of each species, int64.
        blocks: edges of each pair of species, by (centre, neighbour).
        centre: atom i of each edge, (n_edges,), int64.
        neighbour: atom j, (n_edges,), int64.
        shift: lattice translation of each edge, S @ cell, (n_edges, 3), Å.
        frame_idx: frame of each atom, (n_atoms,), int64.
    """

    frames: Frames
    positions: Tensor
    atoms: list[Tensor]
    blocks: dict[tuple[int, int], Block]
    centre: Tensor
    neighbour: Tensor
    shift: Tensor
    frame_idx: Tensor

    @classmethod
    def build(cls, frames: Frames, edges: Edges, n_species: int, device: torch.device) -> Graph:
        """Sort the neighbour list of a batch and move it to the device."""
        types = frames.types
        ti, tj = types[edges.centre], types[edges.neighbour]
        order = np.lexsort((edges.centre, tj, ti))
        centre, pair = edges.centre[order], (ti * n_species + tj)[order]
        bounds = np.searchsorted(pair, np.arange(n_species**2 + 1))
        atoms = [np.flatnonzero(types == c) for c in range(n_species)]
        row = np.empty(frames.n_atoms, dtype=np.int64)
        for members in atoms:
            row[members] = np.arange(len(members))
        blocks = {}
        for c in range(n_species):
            for k in range(n_species):
                here = slice(*map(int, bounds[c * n_species + k : c * n_species + k + 2]))
                blocks[c, k] = Block(here, Segments.from_rows(row[centre[here]], len(atoms[c]), device))
        frame = frames.frame_idx[centre]
        shift = np.einsum("es,esd->ed", edges.shift[order], frames.cell[frame])
        return cls(
            frames,
            torch.tensor(frames.positions, device=device),
            [torch.as_tensor(a, device=device) for a in atoms],
            blocks,
            torch.as_tensor(centre, device=device),
            torch.as_tensor(edges.neighbour[order], device=device),
            torch.as_tensor(shift, device=device),
            torch.tensor(frames.frame_idx, device=device),
        )

    def vectors(self) -> Tensor:
        """r_ij = x_j - x_i + S @ cell, (n_edges, 3), float64, Å."""
        x = self.positions
        return x.index_select(0, self.neighbour) - x.index_select(0, self.centre) + self.shift

    def name_atom(self, species: int, row: int) -> str:
        """Name an atom in an error message: its index in its own frame, and the frame where there are several."""
        atom = int(self.atoms[species][row])
        frame = int(self.frames.frame_idx[atom])
        name = f"atom {atom - int(self.frames.offsets[frame])}"
        return name if self.frames.n_frames == 1 else f"{name} of frame {frame}"
