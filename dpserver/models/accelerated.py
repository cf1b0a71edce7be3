"""What the fast forms of potentials have in common: what they leave to the reference."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from dpserver.frames import Floats, ForceResult, Frames, Ints
from dpserver.kernels.layout import GOOD, TOO_CLOSE
from dpserver.kernels.tables import TableError
from dpserver.models.memory import memory_left
from dpserver.models.smooth import SmoothDescriptor
from dpserver.models.standardised import StandardisedDescriptor
from dpserver.neighbors.rows import MOST_EDGES

if TYPE_CHECKING:
    from dpserver.models.potential import Potential

SKIN: Final = 1.0
"""How much further neighbour lists reach than the cutoff, Å."""

_LIST_BYTES: Final = 18  # of an edge: neighbour, shift, incoming; as it is found, and room to spare
_SHARE: Final = 0.9  # of the memory that is left

_EXAMINED: Final = 256
"""Atoms without an answer that are looked at; where there are more, these say what is wrong with the structure."""


class Accelerated(ABC):
    """Potentials of one cutoff, one `sel` and the same species, compiled together.

    Args:
        members: the potentials; their weights are copied.

    Attributes:
        error: of the tables against the embedding nets.
        is_accurate: whether that is near what was aimed at.
    """

    error: TableError
    is_accurate: bool

    def __init__(self, members: Sequence[Potential]) -> None:
        self._members = tuple(members)
        self._n_species = len(self._members[0].species)
        self._lock = threading.Lock()

    def evaluate(self, frames: Frames) -> list[ForceResult]:
        """Energies, forces and virials of a batch by each member.

        Args:
            frames: structures, of any sizes; not changed.

        Returns:
            Arrays that belong to the caller, in eV and eV/Å.

        Raises:
            StructureError: a structure that has no answer, named with its cause.
        """
        frames.check(self._n_species)
        if not frames.n_frames:
            return [member.reference(frames) for member in self._members]
        with self._lock:
            results, status = self._compute(frames)
        numbers = self.left_out(frames, status)
        if len(numbers):
            self._answer_exactly(frames, numbers, results)
        return results

    def warm_up(self) -> None:
        """Evaluate an atom alone, whether or not it has an energy: then machine code and work space are there."""
        with self._lock:
            self._compute(Frames.single([[0.0, 0.0, 0.0]], [0]))

    @abstractmethod
    def profile(self, frames: Frames) -> dict[str, float]:
        """Seconds by stage of one evaluation: of one thread, or on the device."""

    @abstractmethod
    def products(self, frames: Frames) -> float:
        """Multiplications and additions of the matrix products in one evaluation, there and back."""

    def left_out(self, frames: Frames, status: Ints) -> Ints:
        """Tell which frames the kernels have no answer to, but the reference has.

        Args:
            frames: structures.
            status: of each atom, as in `kernels.layout`.

        Returns:
            Their numbers, usually none: those with distances that no table reaches, and, where rounding decides
            whether an atom is refused, those that the reference does not refuse.

        Raises:
            StructureError: a structure that has no answer, named with its cause.
        """
        atoms = np.flatnonzero(status != GOOD)
        if not len(atoms):
            return atoms
        refused_first = atoms[np.argsort(status[atoms] == TOO_CLOSE, kind="stable")]
        check_atoms(self._members[0], frames, refused_first[:_EXAMINED])
        return np.unique(frames.frame_idx[atoms])

    @abstractmethod
    def _compute(self, frames: Frames) -> tuple[list[ForceResult], Ints]:
        """Results of each member, and the status of each atom, as in `kernels.layout`."""

    def centres_of(self, frames: Frames) -> Ints:
        """Atoms of each species that have an energy of their own, (n_species,)."""
        types = frames.types if frames.is_ghost is None else frames.types[~frames.is_ghost]
        return np.bincount(types, minlength=self._n_species)

    def _answer_exactly(self, frames: Frames, numbers: Ints, results: Sequence[ForceResult]) -> None:
        """Put the reference's answers for some frames in place."""
        some, atoms = chosen(frames, numbers)
        for member, result in zip(self._members, results, strict=True):
            put_in_place(result, member.reference(some), numbers, atoms)


class WithChargeNets(Accelerated):
    """What can take the nets along that tell charges from surroundings; a potential that has any is alone."""

    @abstractmethod
    def charges(self, frames: Frames) -> tuple[Floats, Ints]:
        """What these nets say of charges, (n_atoms,), e, and the status of each atom; zeros for ghosts."""

    @abstractmethod
    def respond(self, frames: Frames, by_charge: Floats) -> tuple[ForceResult, Ints]:
        """The answer with what follows from these charges, and the status of each atom.

        Args:
            frames: structures.
            by_charge: dE/dq of what `charges` says of each atom, (n_atoms,), eV/e.
        """


def chosen(frames: Frames, numbers: Ints) -> tuple[Frames, Ints]:
    """Some structures by their numbers, and their atoms among those of all."""
    if len(numbers) == frames.n_frames:
        return frames, np.arange(frames.n_atoms)
    return Frames.concatenate(frames[int(k)] for k in numbers), np.flatnonzero(np.isin(frames.frame_idx, numbers))


def check_atoms(member: Potential, frames: Frames, atoms: Ints) -> None:
    """Refuse atoms that overlap, or whose neighbours are more than `sel` or span no frame, as the reference does.

    Nothing is evaluated, and only neighbours of these atoms are looked for: that is quick however large a structure is.

    Args:
        member: refuses.
        frames: structures.
        atoms: to be looked at, among those of all frames.

    Raises:
        StructureError: one of them has no answer.
    """
    is_ghost = np.ones(frames.n_atoms, dtype=bool)
    is_ghost[atoms] = False
    graph = member.graph(replace(frames, is_ghost=is_ghost))
    if isinstance(member.descriptor, SmoothDescriptor | StandardisedDescriptor):
        member.descriptor.check(graph, graph.vectors())


def put_in_place(result: ForceResult, exact: ForceResult, numbers: Ints, atoms: Ints) -> None:
    """Let a result have the numbers of another for some frames.

    Args:
        result: of all frames.
        exact: of some.
        numbers: of these.
        atoms: theirs.
    """
    result.energy[numbers] = exact.energy
    result.forces[atoms] = exact.forces
    result.virial[numbers] = exact.virial
    result.atom_energy[atoms] = exact.atom_energy


def room_for_edges(computed: int, held: int = 0) -> int:
    """How many edges of a new list fit into the memory, with what is computed for each.

    Args:
        computed: bytes for an edge, beside those of the list itself.
        held: bytes that have been taken for that already.
    """
    left = memory_left()
    return MOST_EDGES if left is None else int((_SHARE * left + held) / (_LIST_BYTES + computed))
