"""An answer as one array of float64, and back: what a rank sends to rank 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpserver.frames import CommitteeResult, Floats, ForceResult, Responses
from dpserver.parallel.shares import Form

_DIPOLE, _POLAR, _BORN_CHARGES = 1, 2, 4


class Contents(NamedTuple):
    """What an answer holds beside energies, forces and virials.

    Attributes:
        n_members: of the committee that has answered; 0 is a single model.
        responses: which of those of other models, bits.
    """

    n_members: int = 0
    responses: int = 0

    @classmethod
    def of(cls, result: ForceResult) -> Contents:
        """What a result holds."""
        n_members = 0 if result.committee is None else result.committee.n_members
        found = result.responses or Responses()
        kinds = ((found.dipole, _DIPOLE), (found.polar, _POLAR), (found.born_charges, _BORN_CHARGES))
        return cls(n_members, sum(bit for values, bit in kinds if values is not None))

    def shapes(self, form: Form) -> list[tuple[int, ...]]:
        """Of all arrays of an answer, in their order: the mean, the members, the responses."""
        n_frames, n_atoms, n_members = form.n_frames, form.n_atoms, self.n_members
        found: list[tuple[int, ...]] = [(n_frames,), (n_frames, 3, 3), (n_atoms, 3), (n_atoms,)]
        if n_members:
            found += [(n_members, n_frames), (n_members, n_frames, 3, 3), (n_members, n_atoms, 3)]
        others = {_DIPOLE: (n_frames, 3), _POLAR: (n_frames, 3, 3), _BORN_CHARGES: (n_atoms, 3, 3)}
        return found + [shape for bit, shape in others.items() if self.responses & bit]


def packed_size(form: Form, contents: Contents) -> int:
    """Numbers of an answer."""
    return sum(int(np.prod(shape)) for shape in contents.shapes(form))


def pack(result: ForceResult, numbers: Floats) -> None:
    """Write an answer to an array of `packed_size`."""
    arrays: list[Floats] = [result.energy, result.virial, result.forces, result.atom_energy]
    if result.committee is not None:
        arrays += [result.committee.energy, result.committee.virial, result.committee.forces]
    if (found := result.responses) is not None:
        arrays += [values for values in (found.dipole, found.polar, found.born_charges) if values is not None]
    at = 0
    for array in arrays:
        numbers[at : at + array.size] = array.ravel()
        at += array.size


def unpack(numbers: Floats, form: Form, contents: Contents) -> ForceResult:
    """Read an answer; its arrays are views.

    Args:
        numbers: (packed_size,).
        form: of what was asked.
        contents: of the answer.

    Raises:
        ValueError: there are more or fewer numbers.
    """
    if len(numbers) != (expected := packed_size(form, contents)):
        raise ValueError(
            f"an answer for {form.n_frames} structures of {form.n_atoms} atoms together has {expected} numbers with "
            f"{contents.n_members} members; {len(numbers)} have come"
        )
    energy, virial, forces, atom_energy, *others = _cut(numbers, contents.shapes(form))
    committee = None
    if contents.n_members:
        committee = CommitteeResult(others[0], others[2], others[1])
        others = others[3:]
    responses = None
    if contents.responses:
        given = iter(others)
        bits = (_DIPOLE, _POLAR, _BORN_CHARGES)
        responses = Responses(*(next(given) if contents.responses & bit else None for bit in bits))
    frame_idx = np.repeat(np.arange(form.n_frames), form.counts)
    return ForceResult(energy, forces, virial, atom_energy, frame_idx, committee, responses)


def _cut(numbers: Floats, shapes: Sequence[tuple[int, ...]]) -> list[Floats]:
    starts = np.cumsum([int(np.prod(shape)) for shape in shapes[:-1]])
    return [part.reshape(shape) for part, shape in zip(np.split(numbers, starts), shapes, strict=True)]
