"""By which way the charges of a structure are summed on CPU cores, and which structures would take too long.

Both are known from the number of atoms and the cell alone, by one rule whatever the number of threads and ranks: so
answers are the same, and who cuts a structure into parts knows before whether it has one.
"""

from __future__ import annotations

import math

from dpserver.frames import Frames
from dpserver.models.config import ElectrostaticsConfig
from dpserver.models.coulomb import reach_of
from dpserver.models.electrostatics_mesh import order_of, round_size, spacing_of
from dpserver.models.electrostatics_work import Box, check_work

_WAVE_COST, _MESH_COST, _POINT_COST = 3.2e-10, 1e-4, 1e-8
"""Seconds for a wave and an atom, for a mesh, and for each of its points, on one core."""
_ATOM_COST = {8: 2.6e-7, 12: 7.6e-7}
"""Seconds for an atom on a mesh, by the order of its splines."""
_BARE_WAVE_COST, _TRIAL_COST, _PAIR_COST = 1.3e-8, 2.5e-9, 3e-8
"""Seconds for a wave without any atom, for a triple of components that may be one, and for a pair of atoms."""
_THREADS = 2
"""For how many the cheaper method is chosen, and the time is estimated."""


class Methods:
    """The ways to sum charges.

    Args:
        config: of the charges.
    """

    def __init__(self, config: ElectrostaticsConfig) -> None:
        self._config = config

    def choose_or_refuse(self, frames: Frames) -> list[str]:
        """The one for each structure of a batch, `pairs`, `ewald` or `pme`; for parts that of the structure.

        Args:
            frames: structures that `electrostatics.checked` lets pass, or parts of such, taken to be not too large.

        Raises:
            StructureError: a structure would take too long; it says which cell it has.
        """
        found, wholes = [], frames.wholes
        for frame in range(frames.n_frames):
            n_atoms, box = _whole_of(frames, frame)
            method = self._choose(n_atoms, box)
            if wholes is None or not wholes.is_part[frame]:
                self._check(method, n_atoms, box)
            found.append(method)
        return found

    def sizes(self, box: Box) -> tuple[int, ...]:
        """Points of a mesh that is fine enough, along each lattice vector."""
        sigma, accuracy = self._config.sigma, self._config.accuracy
        spacing, order = spacing_of(sigma, accuracy), order_of(accuracy)
        return tuple(round_size(math.ceil(length / spacing), order) for length in box.lengths)

    def _choose(self, n_atoms: int, box: Box | None) -> str:
        """The one for a structure; without a cell it is open."""
        if box is None:
            return "pairs"
        if self._config.method != "auto":
            return self._config.method
        return "ewald" if self._ewald_seconds(n_atoms, box) < self._mesh_seconds(n_atoms, box) else "pme"

    def _check(self, method: str, n_atoms: int, box: Box | None) -> None:
        """Refuse a structure that would take too long by its method."""
        if box is None:
            pairs = n_atoms * (n_atoms - 1) / 2
            seconds, what = _PAIR_COST * pairs, f"{pairs:.2g} pairs"
        elif method == "ewald":
            seconds, what = self._ewald_seconds(n_atoms, box), f"{box.waves(reach_of(self._config)):.2g} waves"
        else:
            seconds, what = self._mesh_seconds(n_atoms, box), f"{self._points(box):.2g} points of a mesh"
        check_work(seconds, n_atoms, box, what, self._config)

    def _ewald_seconds(self, n_atoms: int, box: Box) -> float:
        """On one core, by which one structure is summed."""
        reach = reach_of(self._config)
        return (_WAVE_COST * n_atoms + _BARE_WAVE_COST) * box.waves(reach) + _TRIAL_COST * box.tried(reach)

    def _mesh_seconds(self, n_atoms: int, box: Box) -> float:
        """On so many cores as it is reckoned with."""
        for_atoms = n_atoms * _ATOM_COST[order_of(self._config.accuracy)]
        return _MESH_COST + (for_atoms + _POINT_COST * self._points(box)) / _THREADS

    def _points(self, box: Box) -> float:
        """How many a mesh for a cell has, as a float: no cell is too large for one."""
        return math.prod(float(size) for size in self.sizes(box))


def _whole_of(frames: Frames, frame: int) -> tuple[int, Box | None]:
    """Atoms and cell of a structure, which a frame may be a part of; no cell where it is open."""
    n, pbc, cell, wholes = int(frames.counts[frame]), frames.pbc[frame], frames.cell[frame], frames.wholes
    if wholes is not None and wholes.counts[frame]:
        n, pbc, cell = int(wholes.counts[frame]), wholes.pbc[frame], wholes.cell[frame]
    return n, Box.of(cell) if pbc.any() else None
