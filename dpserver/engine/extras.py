"""What a committee has to say beside its mean, as i-PI reads it: one JSON object for each structure.

    committee_pot         energies of the M members, M numbers, Hartree
    committee_force       their forces, M lists of 3·n_atoms numbers, Hartree/Bohr
    committee_virial      their virials -dE/d(strain), M lists of 9 numbers, Hartree
    max_force_deviation   max_i sqrt(⟨|F_i - ⟨F_i⟩|²⟩), one number, Hartree/Bohr

i-PI takes the first three apart where an `<ffcommittee>` has `parse_json`, and prints any of them as a trajectory of
`extras`. Every structure has the same keys, and every value is finite, since the mean has been found to be.
"""

from __future__ import annotations

import json
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dpserver.frames import CommitteeResult, Floats, ForceResult
from dpserver.units import HARTREE, HARTREE_PER_BOHR

_DIGITS: Final = 12
"""Decimal places of forces, in Hartree/Bohr: 5e-11 eV/Å, well below what a float32 network resolves."""

_GROUPS: Final = np.array([b"%04d" % k for k in range(10_000)]).view(np.uint32)
"""The four characters 0000 to 9999, each as one word."""

_HEADS: Final = np.array([b",%c%d." % (sign, k) for sign in b" -" for k in range(10)]).view(np.uint32)
"""A comma, the sign, a digit and the point, as one word: 0 to 9, then -0 to -9."""


def committee_extras(result: ForceResult) -> list[bytes]:
    """Encode what the members say of each structure.

    Args:
        result: of structures with equally many atoms, finite.

    Returns:
        A JSON object for each; nothing at all where a single model answered.
    """
    if result.committee is None:
        return []
    n_frames = len(result.energy)
    members: CommitteeResult = result.committee
    energies = (members.energy / HARTREE).T.tolist()
    virials = (members.virial / HARTREE).transpose(1, 0, 2, 3).reshape(n_frames, members.n_members, 9).tolist()
    deviations = (result.max_force_deviation() / HARTREE_PER_BOHR).tolist()
    by_frame = members.forces.reshape(members.n_members, n_frames, -1).transpose(1, 0, 2)
    forces = _encode_lists(by_frame / HARTREE_PER_BOHR)
    extras = []
    for energy, virial, deviation, force in zip(energies, virials, deviations, forces, strict=True):
        numbers = {"committee_pot": energy, "committee_virial": virial, "max_force_deviation": deviation}
        # The closing brace makes way for the forces, which are nearly all of the numbers.
        extras.append(json.dumps(numbers, allow_nan=False)[:-1].encode() + b', "committee_force": ' + force + b"}")
    return extras


def _encode_lists(values: Floats) -> list[bytes]:
    """JSON of each of several lists of lists, many times as fast as `json.dumps` where they are long.

    Args:
        values: (n, n_rows, n_columns), finite.
    """
    if (np.abs(values) > 9.5).any():  # more than one digit in front of the point: nothing that is common
        return [json.dumps(rows, allow_nan=False).encode() for rows in values.tolist()]
    return [b"[" + b", ".join(b"[" + row.tobytes()[1:] + b"]" for row in rows) + b"]" for rows in _decimals(values)]


def _decimals(values: Floats) -> NDArray[np.uint32]:
    """Write numbers below 9.5 as `,-d.dddddddddddd`, (*shape, 4): sixteen characters in four words for each."""
    steps = np.rint(np.abs(values) * 10.0**_DIGITS).astype(np.int64)
    words = np.empty((*values.shape, 4), dtype=np.uint32)
    for word in (3, 2, 1):
        rest = steps // 10_000
        words[..., word] = _GROUPS[steps - 10_000 * rest]
        steps = rest
    words[..., 0] = _HEADS[steps + 10 * (values < 0)]
    return words
