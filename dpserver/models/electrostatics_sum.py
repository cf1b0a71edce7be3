"""The interaction of given charges on CPU cores: energies, potentials, forces and virials by kernels.

It answers what `coulomb` does in torch, to the accuracy that was asked for. Of a structure that is in parts, see
`dpserver.parts`, it sums what belongs to the atoms of one part; structure factors, charges on the mesh, or in open
structures positions and charges of all atoms, it shares with the other parts.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np

from dpserver.frames import Floats, Frames, Ints
from dpserver.kernels.threads import Threads
from dpserver.kernels.waves import add_factors, add_pairs, add_waves, find_factors, list_lines
from dpserver.models.config import ElectrostaticsConfig
from dpserver.models.coulomb import reach_of
from dpserver.models.electrostatics_mesh import Mesh, inverse_of, order_of, volume
from dpserver.models.electrostatics_method import Methods
from dpserver.models.electrostatics_work import Box
from dpserver.models.memory import check_room
from dpserver.models.wholes import totals
from dpserver.parts import Parts, add_up, gather
from dpserver.units import COULOMB

_ATOM_BYTES, _PHASE_BYTES, _WAVE_BYTES = 500, 16, 60
"""Of an atom on a mesh, of an atom's phase by one component of a wave, and of a wave in parts."""
_SHARED_BYTES = 16
"""Of a point of a mesh that is shared with other parts, at most, for what is sent and what comes."""
_LARGE = 1e8
"""Bytes that are not taken without a look at what is left."""
_KEPT_MESHES = 4
"""For cells that come by turns: to make a mesh takes as long as several evaluations of a few hundred atoms."""


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
        self._methods = Methods(config)
        self._threads = Threads(threads)
        self._meshes: dict[tuple[int, ...], Mesh] = {}  # by size, the one that was used last at the end
        self._lock = threading.Lock()

    def evaluate(self, frames: Frames, charges: Floats) -> Interaction:
        """Sum the interaction in each structure of a batch.

        Args:
            frames: structures that `electrostatics.checked` lets pass, or parts of such: then what is found at their
                atoms, 0 for ghosts, and virials that add up to that of the structure.
            charges: of their atoms, (n_atoms,), e; not looked at for ghosts.

        Raises:
            StructureError: the sum would take too long, see `electrostatics_method`; parts are taken to be of
                structures that were looked at as wholes.
            MemoryError: there is no room for it.
            AbandonedError: another part of a structure has failed.
        """
        n, offsets = frames.n_atoms, frames.offsets
        potential, gradient, virial = np.zeros(n), np.zeros((n, 3)), np.zeros((frames.n_frames, 3, 3))
        methods = self._methods.choose_or_refuse(frames)
        parts = _parts(frames)
        small = iter([k for k, method in enumerate(methods) if method != "pme" and k not in parts])
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
            for k in (k for k, method in enumerate(methods) if method == "pme" and k not in parts):
                atoms = slice(offsets[k], offsets[k + 1])
                found = self._on_mesh(frames.positions[atoms], charges[atoms], frames.cell[k])
                potential[atoms], gradient[atoms], virial[k] = found
            sums = totals(frames, charges[:, None])[:, 0] if parts else np.zeros(0)
            for k in parts:
                own = _own(frames, k)
                found = self._in_part(frames, k, methods[k], own, charges[own], float(sums[k]))
                potential[own], gradient[own], virial[k] = found
        charges = charges if frames.is_ghost is None else np.where(frames.is_ghost, 0.0, charges)
        gradient *= charges[:, None]
        return Interaction(0.5 * charges * potential, potential, gradient, virial)

    def warm_up(self) -> None:
        """Have the machine code of every way to sum made."""
        positions, charges, cell = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]]), np.array([1.0, -1.0]), np.eye(3)
        with self._lock:
            for method in ("pairs", "ewald"):
                self._directly(positions, charges, cell, method)
            self._on_mesh(positions, charges, cell)
            self._with_factors(positions, charges, cell, None)

    def _directly(self, positions: Floats, charges: Floats, cell: Floats, method: str) -> tuple[Floats, Floats, Floats]:
        """Potential (n,), its gradient (n, 3) and virial (3, 3) of one structure without a mesh."""
        n, sigma = len(charges), self.config.sigma
        potential, gradient, virial = np.zeros(n), np.zeros((3, n)), np.zeros((3, 3))
        if method == "pairs":
            add_pairs(positions, charges, 0, np.array([sigma, COULOMB]), potential, gradient, virial)
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

    def _in_part(
        self, frames: Frames, frame: int, method: str, own: Ints, charges: Floats, total: float
    ) -> tuple[Floats, Floats, Floats]:
        """Potential, its gradient and virial of some atoms of a structure, given the sum of all its charges, e."""
        wholes = frames.wholes
        if wholes is None:
            raise ValueError(f"frame {frame} is no part of a structure")
        positions, cell, parts = frames.positions[own], wholes.cell[frame], wholes.parts
        if method == "pairs":
            potential, gradient, virial = np.zeros(len(own)), np.zeros((3, len(own))), np.zeros((3, 3))
            rows, first = gather(parts, np.column_stack([positions, charges]))
            everywhere, every, shape = rows[:, :3].copy(), rows[:, 3].copy(), np.array([self.config.sigma, COULOMB])
            add_pairs(everywhere, every, first, shape, potential, gradient, virial)
            return potential, gradient.T, virial
        if method == "pme":
            return self._on_mesh(positions, charges, cell, parts, total)
        potential, gradient, virial = self._with_factors(positions, charges, cell, parts)
        self._add_constants(charges, cell, potential, virial, parts, total)
        return potential, gradient, virial

    def _with_factors(
        self, positions: Floats, charges: Floats, cell: Floats, parts: Parts | None
    ) -> tuple[Floats, Floats, Floats]:
        """What the waves make of the atoms of a part, once their structure factors are added up."""
        n, reach, box = len(charges), reach_of(self.config), Box.of(cell)
        longest, inverse = np.array(box.longest(reach), dtype=np.int64), inverse_of(cell)
        needed = _PHASE_BYTES * n * float(longest.sum() + 3) + _WAVE_BYTES * box.waves(reach)
        if needed > _LARGE:
            check_room(needed, f"the Ewald sum of the charges of {n} atoms in {box}")
        potential, gradient, virial = np.zeros(n), np.zeros((3, n)), np.zeros((3, 3))
        lines = list_lines(inverse, longest, reach**2)
        factors = np.zeros((lines[-1, 2] + lines[-1, 3], 4))
        find_factors(positions, charges, inverse, longest, lines, factors)
        if parts is not None:
            add_up(parts, factors)
        shape = np.array([reach**2, self.config.sigma**2, 8 * math.pi * COULOMB / volume(cell)])
        add_factors(positions, inverse, longest, lines, shape, factors, potential, gradient, virial)
        return potential, gradient.T, _once(virial, parts)

    def _on_mesh(
        self, positions: Floats, charges: Floats, cell: Floats, parts: Parts | None = None, total: float | None = None
    ) -> tuple[Floats, Floats, Floats]:
        """The same on a mesh, by all threads; of the atoms of a part, with the sum of the charges of all."""
        mesh = self._mesh_for(len(charges), Box.of(cell), is_shared=parts is not None)
        potential, gradient, virial = mesh.evaluate(positions, charges, cell, parts)
        self._add_constants(charges, cell, potential, virial, parts, total)
        return potential, gradient, virial

    def _mesh_for(self, n_atoms: int, box: Box, *, is_shared: bool) -> Mesh:
        """One that is fine enough, of those that are kept or a new one; a large one is kept until another is wanted."""
        sizes, order = self._methods.sizes(box), order_of(self.config.accuracy)
        mesh = self._meshes.pop(sizes, None)
        own = Mesh.n_bytes(sizes, order, self._threads.count)
        for other in list(self._meshes):
            if max(own, Mesh.n_bytes(other, order, self._threads.count)) > _LARGE:
                del self._meshes[other]
        if mesh is None:
            needed = own + _ATOM_BYTES * n_atoms + (_SHARED_BYTES * float(math.prod(sizes)) if is_shared else 0.0)
            if needed > _LARGE:
                check_room(needed, f"the mesh for the charges of {n_atoms} atoms in {box}")
            if len(self._meshes) == _KEPT_MESHES:
                del self._meshes[next(iter(self._meshes))]
            mesh = Mesh(sizes, order, self.config.sigma, self._threads)
        self._meshes[sizes] = mesh
        return mesh

    def _add_constants(
        self,
        charges: Floats,
        cell: Floats,
        potential: Floats,
        virial: Floats,
        parts: Parts | None = None,
        total: float | None = None,
    ) -> None:
        """What the waves count of an atom's own charge, and the background of structures that are not neutral."""
        sigma, total = self.config.sigma, float(charges.sum()) if total is None else total
        potential -= charges * (COULOMB / (sigma * math.sqrt(math.pi)))
        background = 4 * math.pi * COULOMB * sigma**2 * total / volume(cell)
        potential -= background
        virial -= _once(0.5 * background * total * np.eye(3), parts)


def _parts(frames: Frames) -> list[int]:
    """The frames that are parts of structures."""
    return [] if frames.wholes is None else np.flatnonzero(frames.wholes.is_part).tolist()


def _own(frames: Frames, frame: int) -> Ints:
    """The atoms of a frame that are no ghosts."""
    is_own = frames.frame_idx == frame
    return np.flatnonzero(is_own if frames.is_ghost is None else is_own & ~frames.is_ghost)


def _once(virial: Floats, parts: Parts | None) -> Floats:
    """A virial that each part finds for the whole: the first one counts it."""
    return virial if parts is None or parts.number == 0 else np.zeros_like(virial)
