"""What the fast forms of potentials have in common: what they leave to the reference."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dpserver.frames import ForceResult, Frames, Ints
from dpserver.kernels.layout import NO_FRAME, TOO_CLOSE, TOO_MANY
from dpserver.kernels.tables import TableError

if TYPE_CHECKING:
    from dpserver.models.potential import Potential


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
        if ((status == TOO_MANY) | (status == NO_FRAME)).any():
            return [member.reference(frames) for member in self._members]  # which says what is wrong
        if (status == TOO_CLOSE).any():
            self._answer_exactly(frames, np.unique(frames.frame_idx[status == TOO_CLOSE]), results)
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

    @abstractmethod
    def _compute(self, frames: Frames) -> tuple[list[ForceResult], Ints]:
        """Results of each member, and the status of each atom, as in `kernels.layout`."""

    def centres_of(self, frames: Frames) -> Ints:
        """Atoms of each species that have an energy of their own, (n_species,)."""
        types = frames.types if frames.is_ghost is None else frames.types[~frames.is_ghost]
        return np.bincount(types, minlength=self._n_species)

    def _answer_exactly(self, frames: Frames, numbers: Ints, results: Sequence[ForceResult]) -> None:
        """Put the reference's answers for some frames in place: those with distances that no table reaches."""
        some = Frames.concatenate(frames[int(k)] for k in numbers)
        atoms = np.isin(frames.frame_idx, numbers)
        for member, result in zip(self._members, results, strict=True):
            exact = member.reference(some if len(numbers) < frames.n_frames else frames)
            result.energy[numbers] = exact.energy
            result.forces[atoms] = exact.forces
            result.virial[numbers] = exact.virial
            result.atom_energy[atoms] = exact.atom_energy
