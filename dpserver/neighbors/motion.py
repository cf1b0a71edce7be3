"""How far atoms have moved since something was found about them that holds for a while.

What was found is every pair that was closer than reach = rcut + skin at positions x₀ and cell h₀. With F = h₀⁻¹ h the
deformation since then and d_i = x_i - x₀_i F what each atom has moved beside it, any other pair is at

    |r_ij| ≥ σ_min(F) reach - 2 max|d|

σ_min the smallest singular value, and so every pair within rcut is known as long as that is not below rcut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpserver.frames import Bools, Floats, Frames
from dpserver.jit import jit
from dpserver.neighbors.grid import completed

_NONE: Floats = np.eye(3)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Where the atoms of one frame were.

    Attributes:
        positions: (n_atoms, 3), Å.
        cell: (3, 3), Å.
        pbc: (3,).
        full_cell: with unit vectors for open directions, (3, 3), Å.
    """

    positions: Floats
    cell: Floats
    pbc: Bools
    full_cell: Floats

    @classmethod
    def take(cls, frame: Frames) -> Snapshot:
        """Keep a copy of one frame's positions and cell."""
        cell, pbc = frame.cell[0].copy(), frame.pbc[0].copy()
        return cls(np.array(frame.positions, order="C"), cell, pbc, completed(cell, pbc))

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
        has_same_cell = np.array_equal(frame.cell[0], self.cell)
        deformation = _NONE if has_same_cell else self._deformation(frame)
        moved = float(_farthest(frame.positions, self.positions, deformation, limit**2))
        if moved == np.inf:
            return False, moved
        shrinking = 1.0 if has_same_cell else float(np.linalg.svd(deformation, compute_uv=False)[-1])
        slack = (shrinking * reach - rcut) / 2 * (1 - 1e-9)
        return slack > 0 and moved <= slack**2, moved

    def _deformation(self, frame: Frames) -> Floats:
        """What the cell has to be multiplied with for that of another frame."""
        deformed = np.where(self.pbc[:, None], frame.cell[0], self.full_cell)
        return np.asarray(np.linalg.solve(self.full_cell, deformed))


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
