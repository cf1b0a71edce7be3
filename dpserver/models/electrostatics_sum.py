"""The interaction of given charges on CPU cores: energies, potentials, forces and virials by kernels.

It answers what `coulomb` does in torch, to the accuracy that was asked for.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np

from dpserver.frames import Floats, Frames
from dpserver.kernels.threads import Threads
from dpserver.kernels.waves import add_pairs, add_waves
from dpserver.models.config import ElectrostaticsConfig
from dpserver.models.coulomb import reach_of
from dpserver.models.electrostatics_mesh import Mesh, inverse_of, round_size, volume
from dpserver.models.electrostatics_work import Box, check_work
from dpserver.models.memory import check_room
from dpserver.units import COULOMB

_WAVE_COST, _MESH_COST, _ATOM_COST, _POINT_COST = 2e-9, 1e-3, 1.2e-6, 2.5e-8
"""Seconds for a wave and an atom, for a mesh, for an atom on it and for each of its points, on one core."""
_BARE_WAVE_COST, _TRIAL_COST, _PAIR_COST = 1.3e-8, 2.5e-9, 3e-8
"""Seconds for a wave without any atom, for a triple of components that may be one, and for a pair of atoms."""
_POINT_BYTES, _ATOM_BYTES, _PHASE_BYTES = 40, 450, 16
"""Of a point of a mesh and of an atom on it, and of an atom's phase by one component of a wave."""
_LARGE = 1e8
"""Bytes that are not taken without a look at what is left."""


@dataclass(frozen=True, eq=False)
class Interaction:
    """What charges do to each other.

    Attributes:
        atom_energy: (n_atoms,), eV; half of each atom's charge times its potential.
        potential: dE/dq, (n_atoms,), eV/e.
        gradient: dE/dx with the charges as they are, (n_atoms, 3), eV/Å.
        virial: -dE/d(strain), (n_frames, 3, 3), eV.
    """

    atom_energy: Floats
    potential: Floats
    gradient: Floats
    virial: Floats


class ChargeSum:
    """Sums the interaction of charges.

    Args:
        config: their width, and how the sum is made.
        threads: that compute; by default one for each core available.
    """

    def __init__(self, config: ElectrostaticsConfig, threads: int | None = None) -> None:
        self.config = config
        self._threads = Threads(threads)
        self._meshes: dict[tuple[int, ...], Mesh] = {}
        self._lock = threading.Lock()

    def evaluate(self, frames: Frames, charges: Floats) -> Interaction:
        """Sum the interaction in each structure of a batch.

        Args:
            frames: structures that `electrostatics.checked` lets pass.
            charges: of their atoms, (n_atoms,), e.

        Raises:
            StructureError: the sum would take too long, see `electrostatics_work.check_work`.
            MemoryError: there is no room for it.
        """
        n, offsets = frames.n_atoms, frames.offsets
        potential, gradient, virial = np.zeros(n), np.zeros((n, 3)), np.zeros((frames.n_frames, 3, 3))
        methods = [self.method_for(frames, k) for k in range(frames.n_frames)]
        for k, method in enumerate(methods):
            self._check(frames, k, method)
        small = iter([k for k, method in enumerate(methods) if method != "pme"])
        with self._lock:
            todo = threading.Lock()

            def work(_: int) -> None:
                while True:
                    with todo:
                        k = next(small, None)
                    if k is None:
                        return
                    atoms = slice(offsets[k], offsets[k + 1])
                    found = self._directly(frames.positions[atoms], charges[atoms], frames.cell[k], methods[k])
                    potential[atoms], gradient[atoms], virial[k] = found

            self._threads.run(work)
            for k in (k for k, method in enumerate(methods) if method == "pme"):
                atoms = slice(offsets[k], offsets[k + 1])
                found = self._on_mesh(frames.positions[atoms], charges[atoms], frames.cell[k])
                potential[atoms], gradient[atoms], virial[k] = found
        gradient *= charges[:, None]
        return Interaction(0.5 * charges * potential, potential, gradient, virial)

    def method_for(self, frames: Frames, frame: int) -> str:
        """How a structure is summed: `pairs`, `ewald` or `pme`."""
        if not frames.pbc[frame].any():
            return "pairs"
        if self.config.method != "auto":
            return self.config.method
        n, box = int(frames.counts[frame]), Box.of(frames.cell[frame])
        return "ewald" if self._ewald_seconds(n, box) < self._mesh_seconds(n, box) else "pme"

    def warm_up(self) -> None:
        """Have the machine code of every way to sum made."""
        positions, charges, cell = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]]), np.array([1.0, -1.0]), np.eye(3)
        with self._lock:
            for method in ("pairs", "ewald"):
                self._directly(positions, charges, cell, method)
            self._on_mesh(positions, charges, cell)

    def _ewald_seconds(self, n_atoms: int, box: Box) -> float:
        """On one core, by which one structure is summed."""
        reach = reach_of(self.config)
        return (_WAVE_COST * n_atoms + _BARE_WAVE_COST) * box.waves(reach) + _TRIAL_COST * box.tried(reach)

    def _mesh_seconds(self, n_atoms: int, box: Box) -> float:
        """On all threads."""
        return _MESH_COST + (n_atoms * _ATOM_COST + _POINT_COST * self._points(box)) / self._threads.count

    def _points(self, box: Box) -> float:
        """How many a mesh for a cell has, as a float: no cell is too large for one."""
        return math.prod(float(size) for size in self._sizes(box))

    def _check(self, frames: Frames, frame: int, method: str) -> None:
        """Refuse a structure that would take too long."""
        n = int(frames.counts[frame])
        if method == "pairs":
            pairs = n * (n - 1) / 2
            check_work(_PAIR_COST * pairs, n, None, f"{pairs:.2g} pairs", self.config)
            return
        box, reach = Box.of(frames.cell[frame]), reach_of(self.config)
        if method == "ewald":
            check_work(self._ewald_seconds(n, box), n, box, f"{box.waves(reach):.2g} waves", self.config)
        else:
            check_work(self._mesh_seconds(n, box), n, box, f"{self._points(box):.2g} points of a mesh", self.config)

    def _directly(self, positions: Floats, charges: Floats, cell: Floats, method: str) -> tuple[Floats, Floats, Floats]:
        """Potential (n,), its gradient (n, 3) and virial (3, 3) of one structure without a mesh."""
        n, sigma = len(charges), self.config.sigma
        potential, gradient, virial = np.zeros(n), np.zeros((3, n)), np.zeros((3, 3))
        if method == "pairs":
            add_pairs(positions, charges, sigma, COULOMB, potential, gradient, virial)
            return potential, gradient.T, virial
        reach, box = reach_of(self.config), Box.of(cell)
        longest = np.array(box.longest(reach), dtype=np.int64)
        needed = _PHASE_BYTES * n * float(longest.sum() + 3)
        if needed > _LARGE:
            check_room(needed, f"the Ewald sum of the charges of {n} atoms in {box}")
        shape = np.array([reach**2, sigma**2, 8 * math.pi * COULOMB / volume(cell)])
        add_waves(positions, charges, inverse_of(cell), longest, shape, potential, gradient, virial)
        self._add_constants(charges, cell, potential, virial)
        return potential, gradient.T, virial

    def _on_mesh(self, positions: Floats, charges: Floats, cell: Floats) -> tuple[Floats, Floats, Floats]:
        """The same on a mesh, by all threads."""
        box = Box.of(cell)
        sizes = self._sizes(box)
        if sizes not in self._meshes:
            self._meshes.clear()
            needed = _POINT_BYTES * float(math.prod(sizes)) + _ATOM_BYTES * len(charges)
            if needed > _LARGE:
                check_room(needed, f"the mesh for the charges of {len(charges)} atoms in {box}")
            self._meshes[sizes] = Mesh(sizes, self.config.sigma, self._threads)
        potential, gradient, virial = self._meshes[sizes].evaluate(positions, charges, cell)
        self._add_constants(charges, cell, potential, virial)
        return potential, gradient, virial

    def _add_constants(self, charges: Floats, cell: Floats, potential: Floats, virial: Floats) -> None:
        """What the waves count of an atom's own charge, and the background of structures that are not neutral."""
        sigma, total = self.config.sigma, float(charges.sum())
        potential -= charges * (COULOMB / (sigma * math.sqrt(math.pi)))
        background = 4 * math.pi * COULOMB * sigma**2 * total / volume(cell)
        potential -= background
        virial -= 0.5 * background * total * np.eye(3)

    def _sizes(self, box: Box) -> tuple[int, ...]:
        """Points of a mesh that is fine enough, along each lattice vector."""
        return tuple(round_size(math.ceil(length / self._spacing)) for length in box.lengths)

    @property
    def _spacing(self) -> float:
        """Distance of the points of a mesh that is fine enough, Å."""
        fineness: float = max(1.0, (0.015 / self.config.accuracy) ** (1 / 7.7))  # fits what was measured, see docs
        return math.sqrt(2) * self.config.sigma / fineness
