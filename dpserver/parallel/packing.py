"""An answer as one array of float64, and back: what a rank sends to rank 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpserver.frames import CommitteeResult, Floats, ForceResult
from dpserver.parallel.shares import Form

_PER_FRAME = 10  # energy and virial
_PER_ATOM = 3


def packed_size(form: Form, n_members: int) -> int:
    """Numbers of an answer: of the mean with atomic energies, and of each member."""
    return (1 + n_members) * (_PER_FRAME * form.n_frames + _PER_ATOM * form.n_atoms) + form.n_atoms


def pack(result: ForceResult, numbers: Floats) -> None:
    """Write an answer to an array of `packed_size`."""
    arrays: list[Floats] = [result.energy, result.virial, result.forces, result.atom_energy]
    if result.committee is not None:
        arrays += [result.committee.energy, result.committee.virial, result.committee.forces]
    at = 0
    for array in arrays:
        numbers[at : at + array.size] = array.ravel()
        at += array.size


def unpack(numbers: Floats, form: Form, n_members: int) -> ForceResult:
    """Read an answer; its arrays are views.

    Args:
        numbers: (packed_size,).
        form: of what was asked.
        n_members: of the committee that has answered; 0 is a single model.

    Raises:
        ValueError: there are more or fewer numbers.
    """
    if len(numbers) != (expected := packed_size(form, n_members)):
        raise ValueError(
            f"an answer for {form.n_frames} structures of {form.n_atoms} atoms together has {expected} numbers with "
            f"{n_members} members; {len(numbers)} have come"
        )
    n_frames, n_atoms = form.n_frames, form.n_atoms
    shapes: list[tuple[int, ...]] = [(n_frames,), (n_frames, 3, 3), (n_atoms, 3), (n_atoms,)]
    if n_members:
        shapes += [(n_members, n_frames), (n_members, n_frames, 3, 3), (n_members, n_atoms, 3)]
    energy, virial, forces, atom_energy, *members = _cut(numbers, shapes)
    committee = CommitteeResult(members[0], members[2], members[1]) if n_members else None
    return ForceResult(energy, forces, virial, atom_energy, np.repeat(np.arange(n_frames), form.counts), committee)


def _cut(numbers: Floats, shapes: Sequence[tuple[int, ...]]) -> list[Floats]:
    starts = np.cumsum([int(np.prod(shape)) for shape in shapes[:-1]])
    return [part.reshape(shape) for part, shape in zip(np.split(numbers, starts), shapes, strict=True)]
