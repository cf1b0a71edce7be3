"""How far atoms have moved since something was found about them that holds for a while.

What was found is every pair that was closer than reach = rcut + skin at positions x₀ and cell h₀. With F = h₀⁻¹ h the
deformation since then and d_i = x_i - x₀_i F what each atom has moved beside it, any other pair is at

    |r_ij| ≥ σ_min(F) reach - 2 max|d|

σ_min the smallest singular value, and so every pair within rcut is known as long as that is not below rcut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from dpserver.frames import Bools, Floats, Frames
from dpserver.jit import jit
from dpserver.neighbors.grid import completed

_SOME: Final = 8
"""Atoms of a structure that are looked at first."""

_ROUNDED_UP: Final = 1 + 1e-6
"""A first look errs on the side of another one."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Where the atoms of one frame were.

    Attributes:
        positions: (n_atoms, 3), Å.
        cell: (3, 3), Å.
        pbc: (3,).
        inverse: h₀⁻¹, of the cell with unit vectors for open directions, (3, 3), 1/Å; 0 in the columns of these.
        unchanged: what of F is the same for any cell: h₀⁻¹ h₀ of the open directions alone, (3, 3).
    """

    positions: Floats
    cell: Floats
    pbc: Bools
    inverse: Floats
    unchanged: Floats

    @classmethod
    def take(cls, frame: Frames) -> Snapshot:
        """Keep a copy of one frame's positions and cell."""
        cell, pbc = frame.cell[0].copy(), frame.pbc[0].copy()
        full = completed(cell, pbc)
        inverse = np.linalg.inv(full)
        unchanged = inverse[:, ~pbc] @ full[~pbc]
        return cls(np.array(frame.positions, order="C"), cell, pbc, np.where(pbc, inverse, 0.0), unchanged)

    def compare(self, frame: Frames, rcut: float, reach: float, limit: float = np.inf) -> tuple[bool, float]:
        """Tell whether every pair within rcut is among those that were within reach.

        Args:
            frame: a later one, of the same atoms with the same periodic directions.
            rcut: Å.
            reach: Å.
            limit: look no further at atoms that have moved by more, Å.

        Returns:
            Whether that is so; and how far any atom has moved beside the deformation of the cell, squared, Å², inf
            where beyond the limit.
        """
        deformation = np.empty((3, 3))
        has_same_cell = _deform(frame.cell[0], self.cell, self.inverse, self.unchanged, deformation)
        moved = float(_farthest(frame.positions, self.positions, deformation, limit**2))
        if moved == np.inf:
            return False, moved
        shrinking = 1.0 if has_same_cell else float(np.linalg.svd(deformation, compute_uv=False)[-1])
        slack = (shrinking * reach - rcut) / 2 * (1 - 1e-9)
        return slack > 0 and moved <= slack**2, moved


class Sightings:
    """Where a few atoms of many snapshots were, all of the same atoms: for a first look at all of them.

    It has the last word on none: an atom that it does not see may have moved by more, and a deformation makes all
    distances no shorter than it makes the shortest of the unit vectors and of their projections.
    """

    def __init__(self) -> None:
        self._n = 0
        self._positions = np.empty((0, 0, 3))
        self._cells = np.empty((0, 3, 3, 3))

    def put(self, snapshot: Snapshot, place: int) -> None:
        """Note a snapshot, instead of that at a place or at the end."""
        some = _some(snapshot.positions)
        if place == len(self._positions):  # twice as much room, lest every snapshot moves all others
            room = np.zeros((place + 1, *some.shape))
            self._positions = np.concatenate([self._positions.reshape(place, *some.shape), room])
            self._cells = np.concatenate([self._cells, np.zeros((place + 1, 3, 3, 3))])
        self._positions[place] = some
        self._cells[place] = snapshot.cell, snapshot.inverse, snapshot.unchanged
        self._n = max(self._n, place + 1)

    def keep(self, places: Sequence[int]) -> None:
        """Give up all others."""
        self._positions, self._cells, self._n = self._positions[places], self._cells[places], len(places)

    def compare(self, frame: Frames, rcut: float, reach: float, limit: float) -> tuple[Floats, Bools]:
        """Tell of each snapshot at least what `Snapshot.compare` would.

        Args:
            frame: a later one, of the same atoms with the same periodic directions.
            rcut: Å.
            reach: Å.
            limit: atoms that have moved by more are not told apart, Å.

        Returns:
            How far some atom has moved at least beside the deformation of the cell, squared, (n,), Å², inf where
            beyond the limit; and whether every pair within rcut may be known, (n,): where not, some are not.
        """
        moved, may_hold = np.empty(self._n), np.empty(self._n, dtype=np.bool_)
        some = np.ascontiguousarray(_some(frame.positions))
        _look(some, frame.cell[0], self._positions, self._cells, (rcut, reach, limit**2), moved, may_hold)
        return moved, may_hold


def _some(positions: Floats) -> Floats:
    """Positions of a few atoms all over a structure."""
    n = len(positions)
    return positions if n <= _SOME else positions[np.linspace(0, n - 1, _SOME).astype(np.int64)]


@jit
def _deform(cell: Floats, reference: Floats, inverse: Floats, unchanged: Floats, f: Floats) -> bool:
    """Write what a reference cell has to be multiplied with for a cell; tell whether they are the same."""
    is_same = True
    for i in range(3):
        for k in range(3):
            is_same = is_same and cell[i, k] == reference[i, k]
            f[i, k] = unchanged[i, k]
            for j in range(3):
                f[i, k] += inverse[i, j] * cell[j, k]
    if is_same:
        for i in range(3):
            for k in range(3):
                f[i, k] = 1.0 if i == k else 0.0
    return is_same


@jit
def _farthest(x: Floats, reference: Floats, deformation: Floats, limit: float) -> float:
    """Largest distance, squared, of an atom from where the deformation has brought it; inf where beyond a limit."""
    f = deformation
    largest = 0.0
    for i in range(len(x)):
        a, b, c = reference[i]
        dx = x[i, 0] - a * f[0, 0] - b * f[1, 0] - c * f[2, 0]
        dy = x[i, 1] - a * f[0, 1] - b * f[1, 1] - c * f[2, 1]
        dz = x[i, 2] - a * f[0, 2] - b * f[1, 2] - c * f[2, 2]
        square = dx * dx + dy * dy + dz * dz
        if not square <= limit:
            return np.inf
        largest = max(largest, square)
    return largest


@jit
def _look(
    x: Floats,
    cell: Floats,
    seen: Floats,
    cells: Floats,
    lengths: tuple[float, float, float],
    moved: Floats,
    may_hold: Bools,
) -> None:
    """Write the largest movements among some atoms, and whether they are small enough for the deformation."""
    rcut, reach, limit = lengths
    f = np.empty((3, 3))
    for k in range(len(moved)):
        _deform(cell, cells[k, 0], cells[k, 1], cells[k, 2], f)
        moved[k] = _farthest(x, seen[k], f, limit)
        least = np.inf
        for i in range(3):
            row = f[i, 0] ** 2 + f[i, 1] ** 2 + f[i, 2] ** 2
            column = f[0, i] ** 2 + f[1, i] ** 2 + f[2, i] ** 2
            least = min(least, row, column)  # no less than the smallest singular value, squared
        slack = (np.sqrt(least) * reach - rcut) / 2 * _ROUNDED_UP
        may_hold[k] = slack > 0 and moved[k] <= slack**2
