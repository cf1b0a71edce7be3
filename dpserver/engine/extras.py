"""What travels beside the forces, as i-PI reads it: one JSON object for each structure.

Of a committee:

    committee_pot         energies of the M members, M numbers, Hartree
    committee_force       their forces, M lists of 3·n_atoms numbers, Hartree/Bohr
    committee_virial      their virials -dE/d(strain), M lists of 9 numbers, Hartree
    max_force_deviation   max_i sqrt(⟨|F_i - ⟨F_i⟩|²⟩), one number, Hartree/Bohr

Of models that are served with it:

    dipole                3 numbers, e Bohr
    BEC                   Born's charges dμ_b/dx_a, one list of 3 numbers b for each of the 3·n_atoms coordinates a, e
    polarizability        3 lists of 3 numbers, Bohr³

i-PI takes the first three apart where an `<ffcommittee>` has `parse_json`, reads `dipole` and `BEC` in its driven
dynamics, and prints any of them as a trajectory of `extras`. Every structure has the same keys, and every value is
finite, since the results have been found to be.
"""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dpserver.frames import CommitteeResult, Floats, ForceResult, Responses
from dpserver.units import BOHR, HARTREE, HARTREE_PER_BOHR

_DIGITS: Final = 12
"""Decimal places of forces, in Hartree/Bohr: 5e-11 eV/Å, well below what a float32 network resolves."""

_GROUPS: Final = np.array([b"%04d" % k for k in range(10_000)]).view(np.uint32)
"""The four characters 0000 to 9999, each as one word."""

_HEADS: Final = np.array([b",%c%d." % (sign, k) for sign in b" -" for k in range(10)]).view(np.uint32)
"""A comma, the sign, a digit and the point, as one word: 0 to 9, then -0 to -9."""


def encode_extras(result: ForceResult) -> list[bytes]:
    """Encode what there is to say of each structure beside its forces.

    Args:
        result: of structures with equally many atoms, finite.

    Returns:
        A JSON object for each; nothing at all where a single model answered.
    """
    parts: list[list[bytes]] = []
    if result.committee is not None:
        parts.append(_of_members(result, result.committee))
    if result.responses is not None:
        parts.append(_of_responses(result.responses, len(result.energy)))
    return [b"{" + b", ".join(entries) + b"}" for entries in zip(*parts, strict=True)] if parts else []


def _of_responses(responses: Responses, n_frames: int) -> list[bytes]:
    """The entries of other models, for each structure, without braces."""
    numbers: list[dict[str, Any]] = [{} for _ in range(n_frames)]
    for name, values, unit in (("dipole", responses.dipole, BOHR), ("polarizability", responses.polar, BOHR**3)):
        if values is not None:
            for entries, value in zip(numbers, (values / unit).tolist(), strict=True):
                entries[name] = value
    found = [_without_braces(entries) for entries in numbers]
    if responses.born_charges is None:
        return found
    charges = _encode_lists(responses.born_charges.reshape(n_frames, -1, 3))
    return [entries + b', "BEC": ' + charge for entries, charge in zip(found, charges, strict=True)]


def _without_braces(entries: dict[str, Any]) -> bytes:
    return json.dumps(entries, allow_nan=False)[1:-1].encode()


def _of_members(result: ForceResult, members: CommitteeResult) -> list[bytes]:
    """The entries of the members of a committee, for each structure, without braces."""
    n_frames = len(result.energy)
    energies = (members.energy / HARTREE).T.tolist()
    virials = (members.virial / HARTREE).transpose(1, 0, 2, 3).reshape(n_frames, members.n_members, 9).tolist()
    deviations = (result.max_force_deviation() / HARTREE_PER_BOHR).tolist()
    by_frame = members.forces.reshape(members.n_members, n_frames, -1).transpose(1, 0, 2)
    forces = _encode_lists(by_frame / HARTREE_PER_BOHR)
    extras = []
    for energy, virial, deviation, force in zip(energies, virials, deviations, forces, strict=True):
        numbers = {"committee_pot": energy, "committee_virial": virial, "max_force_deviation": deviation}
        # The forces are nearly all of the numbers.
        extras.append(_without_braces(numbers) + b', "committee_force": ' + force)
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
