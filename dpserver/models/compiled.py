"""The fast form of potentials on CPU cores: run by the kernels, on neighbour lists that serve more than once.

It answers what `Potential.reference` does, to the accuracy of its tables. Members of a committee share one neighbour
list and the geometry of its edges.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dpserver.frames import Floats, ForceResult, Frames, Ints
from dpserver.kernels import cpu
from dpserver.kernels.layout import Batch, Output
from dpserver.kernels.tables import TableError
from dpserver.kernels.threads import Threads
from dpserver.models.accelerated import SKIN, WithChargeNets, room_for_edges
from dpserver.models.assembly import assemble
from dpserver.models.frame_assembly import assemble_frames
from dpserver.models.loc_frame import LocFrame
from dpserver.neighbors.cache import ListCache, Neighbourhood

if TYPE_CHECKING:
    from dpserver.models.potential import Potential

_GRADIENT_BYTES: Final = 24  # of an edge
_MOST_ROWS: Final = 96
_SERIAL_EDGES: Final = 100_000
"""Edges over which one thread has summed before it has woken the others."""


@dataclass(frozen=True, eq=False)
class _Work:
    """What stays the same while a neighbourhood is used again.

    Attributes:
        atoms: that are no ghosts, sorted by species; blocks: first, end and species of each piece of work.
        room: edges in the largest block; rows: atoms.
    """

    neighbourhood: Neighbourhood
    atoms: Ints
    blocks: Ints
    room: int
    rows: int


class Compiled(WithChargeNets):
    """Potentials of one cutoff, one `sel` and the same species, compiled together.

    Args:
        members: the potentials, that the kernels know, see `curves.tabulated`; their weights are copied. Charges that
            surroundings decide may come with one that is alone, see `charges` and `respond`.
        threads: that compute; None is one for each core available.
        table_error: of forces, relative, that is aimed at.

    Attributes:
        error: of the tables against the embedding nets.
        is_accurate: whether that is near what was aimed at.
    """

    def __init__(self, members: Sequence[Potential], threads: int | None, table_error: float) -> None:
        super().__init__(members)
        self._threads = Threads(threads)
        is_framed = isinstance(self._members[0].descriptor, LocFrame)
        assembly = assemble_frames(self._members) if is_framed else assemble(self._members, table_error)
        self._kernels, self._model, self._sizes = assembly.kernels, assembly.model, assembly.sizes
        self._has_tables = assembly.error is not None
        self.error, self.is_accurate = assembly.error or TableError(0.0, 0.0, 0.0), assembly.is_accurate
        self._lists = ListCache(
            self._members[0].rcut, SKIN, self._n_species, room=self._room_for_edges, workers=self._threads
        )
        self._work: _Work | None = None
        self._spaces: list[Any] = []
        self._room = self._rows = 0
        self._gradient = np.zeros(0)

    def __str__(self) -> str:
        e, n = self.error, self._threads.count
        text = f"CPU kernels in {self._model.nets.weights.dtype} on {n} {'thread' if n == 1 else 'threads'}"
        if not self._has_tables:
            return text
        return (
            f"{text}; tables of the embedding nets deviate by {e.value:.1e}, "
            f"{e.first:.1e} (first) and {e.second:.1e} (second derivative)"
        )

    def profile(self, frames: Frames) -> dict[str, float]:
        """Seconds that one thread spends in each stage, for one batch; what the stages are say the kernels."""
        with self._lock:
            self._compute(frames)
            batch, output = self._arrays(frames)
            seconds = dict.fromkeys(self._kernels.STAGES, 0.0)
            for block in range(len(batch.blocks)):
                for stage, run in self._kernels.stages(self._model, batch, output, self._spaces[0], block):
                    start = time.perf_counter()
                    run()
                    seconds[stage] += time.perf_counter() - start
            start = time.perf_counter()
            self._sum(batch, output, cpu.Sums.of(frames, len(self._members)))
            return {**seconds, "sums": time.perf_counter() - start}

    def products(self, frames: Frames) -> float:
        """Multiplications and additions of the matrix products in one evaluation, there and back."""
        return float(self._products_of_atoms() @ self.centres_of(frames))

    def _products_of_atoms(self) -> Floats:
        """The same for an atom of each species, (n_species,)."""
        nets, found = self._model.nets, np.zeros(self._n_species)
        for heads in (*nets.heads, *nets.charge_heads):
            for species, head in enumerate(heads):
                layers = nets.layers[head["layer_at"] : head["layer_at"] + head["n_layers"]]
                found[species] += 4.0 * float((layers["n_in"] * layers["n_out"]).sum())
        return found

    def charges(self, frames: Frames) -> tuple[Floats, Ints]:
        """What the nets for charges say; see `WithChargeNets`."""
        with self._lock:
            batch, output = self._arrays(frames)
            counter = np.zeros(1, dtype=np.int64)
            self._threads.run(
                lambda k: self._kernels.run_blocks(counter, self._model, batch, output, self._spaces[k], True)
            )
            return output.atom_charge[0], output.status

    def respond(self, frames: Frames, by_charge: Floats) -> tuple[ForceResult, Ints]:
        """The answer with what follows from charges; see `WithChargeNets`."""
        with self._lock:
            (result,), status = self._compute(frames, by_charge)
            return result, status

    def _compute(self, frames: Frames, by_charge: Floats | None = None) -> tuple[list[ForceResult], Ints]:
        """Run the kernels: results, and the status of each atom."""
        batch, output = self._arrays(frames, by_charge)
        sums = cpu.Sums.of(frames, len(self._members))
        counter, ended = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        is_small = output.edge_gradient.shape[1] < _SERIAL_EDGES

        def work(k: int) -> None:
            self._kernels.run_blocks(counter, self._model, batch, output, self._spaces[k], False)
            if is_small:
                cpu.sum_at_the_end(ended, self._threads.count, batch, output, sums)

        self._threads.run(work)
        if not is_small:
            self._sum(batch, output, sums)
        return sums.results(output.atom_energy), output.status

    def _arrays(self, frames: Frames, by_charge: Floats | None = None) -> tuple[Batch, Output]:
        """What the kernels take, and where they leave results."""
        work = self._prepare(self._lists.find(frames), frames)
        near, n_atoms, n_members = work.neighbourhood, frames.n_atoms, len(self._members)
        n_charges = len(self._model.nets.charge_heads), n_atoms
        batch = Batch(
            near.positions(frames),
            near.translations(frames),
            near.starts,
            near.neighbour,
            near.shift,
            near.incoming,
            near.incoming_starts,
            work.atoms,
            work.blocks,
            np.zeros(n_charges) if by_charge is None else by_charge.reshape(n_charges),
        )
        output = Output(
            self._gradient[: n_members * near.n_edges * 3].reshape(n_members, near.n_edges, 3),
            np.zeros((n_members, n_atoms)),
            np.zeros(n_charges),
            np.zeros((n_members, n_atoms, 6)),
            np.zeros(n_atoms, dtype=np.int64),
        )
        return batch, output

    def _room_for_edges(self) -> int:
        """How many edges of a new list fit into the memory, with what is computed for each."""
        return room_for_edges(_GRADIENT_BYTES * len(self._members), self._gradient.nbytes)

    def _prepare(self, near: Neighbourhood, frames: Frames) -> _Work:
        """Cut the work into blocks, and see that there is room for it."""
        if self._work is None or self._work.neighbourhood is not near:
            self._work = self._cut(near, frames)
        work = self._work
        if work.room > self._room or work.rows > self._rows or len(self._spaces) < self._threads.count:
            room, rows = max(work.room, self._room), max(work.rows, self._rows)
            dtype = self._model.nets.weights.dtype
            self._spaces = []  # if there is no memory for the new ones, the next batch must not run in the old ones
            self._spaces = [
                self._sizes.workspace(rows, room, self._n_species, dtype) for _ in range(self._threads.count)
            ]
            self._room, self._rows = room, rows
        if len(self._gradient) < len(self._members) * near.n_edges * 3:
            self._gradient = np.zeros(0)  # first: there may not be room for both
            self._gradient = np.empty(len(self._members) * near.n_edges * 3)
        return work

    def _cut(self, near: Neighbourhood, frames: Frames) -> _Work:
        """Blocks of centres of one species, small enough for a cache and for all threads to have some."""
        types = frames.types
        atoms = np.argsort(types, kind="stable")
        if frames.is_ghost is not None:
            atoms = atoms[~frames.is_ghost[atoms]]
        counts = np.bincount(types[atoms], minlength=self._n_species)
        blocks = cpu.cut_into_blocks(counts, self._products_of_atoms(), self._threads.count, _MOST_ROWS)
        n_edges = np.append(0, np.cumsum(np.diff(near.starts[:: self._n_species])[atoms]))
        room = int((n_edges[blocks[:, 1]] - n_edges[blocks[:, 0]]).max(initial=0))
        return _Work(near, atoms, blocks, room, int((blocks[:, 1] - blocks[:, 0]).max(initial=1)))

    def _sum(self, batch: Batch, output: Output, sums: cpu.Sums) -> None:
        """Sum what belongs together, by all threads."""
        n = self._threads.count
        ends = np.linspace(0, len(batch.positions), n + 1).astype(np.int64)
        self._threads.run(lambda k: cpu.sum_forces(batch, output.edge_gradient, ends[k], ends[k + 1], sums.forces))
        cpu.sum_frames(output.atom_energy, output.atom_virial, sums)
