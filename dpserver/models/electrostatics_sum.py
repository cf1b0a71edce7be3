"""The interaction of given charges on CPU cores: energies, potentials, forces and virials by kernels.

It answers what `coulomb` does in torch, to the accuracy that was asked for.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpserver.frames import Floats, Frames, Ints
from dpserver.kernels import mesh as kernels
from dpserver.kernels.threads import Threads
from dpserver.kernels.waves import add_pairs, add_waves
from dpserver.models.config import ElectrostaticsConfig
from dpserver.models.coulomb import reach_of
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
_Part = Callable[[int, int], None]


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
        self._meshes: dict[tuple[int, ...], _Mesh] = {}
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
        shape = np.array([reach**2, sigma**2, 8 * math.pi * COULOMB / _volume(cell)])
        add_waves(positions, charges, _inverse(cell), longest, shape, potential, gradient, virial)
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
            self._meshes[sizes] = _Mesh(sizes, self.config.sigma, self._threads)
        potential, gradient, virial = self._meshes[sizes].evaluate(positions, charges, cell)
        self._add_constants(charges, cell, potential, virial)
        return potential, gradient, virial

    def _add_constants(self, charges: Floats, cell: Floats, potential: Floats, virial: Floats) -> None:
        """What the waves count of an atom's own charge, and the background of structures that are not neutral."""
        sigma, total = self.config.sigma, float(charges.sum())
        potential -= charges * (COULOMB / (sigma * math.sqrt(math.pi)))
        background = 4 * math.pi * COULOMB * sigma**2 * total / _volume(cell)
        potential -= background
        virial -= 0.5 * background * total * np.eye(3)

    def _sizes(self, box: Box) -> tuple[int, ...]:
        """Points of a mesh that is fine enough, along each lattice vector."""
        return tuple(_round_size(math.ceil(length / self._spacing)) for length in box.lengths)

    @property
    def _spacing(self) -> float:
        """Distance of the points of a mesh that is fine enough, Å."""
        fineness: float = max(1.0, (0.015 / self.config.accuracy) ** (1 / 7.7))  # fits what was measured, see docs
        return math.sqrt(2) * self.config.sigma / fineness


class _Mesh:
    """A mesh of one size, with its room.

    Args:
        sizes: points along each lattice vector.
        sigma: width of the charges, Å.
        threads: that compute.
    """

    def __init__(self, sizes: tuple[int, ...], sigma: float, threads: Threads) -> None:
        self._sizes, self._sigma, self._threads = np.array(sizes, dtype=np.int64), sigma, threads
        self._points = np.zeros(sizes)
        self._waves: NDArray[np.complex128] = np.zeros((sizes[0], sizes[1], sizes[2] // 2 + 1), dtype=np.complex128)
        self._moduli = kernels.moduli_of(sizes[0]), kernels.moduli_of(sizes[1]), kernels.moduli_of(sizes[2])
        self._influence = np.zeros(self._waves.shape)
        self._cell = np.zeros((3, 3))

    def evaluate(self, positions: Floats, charges: Floats, cell: Floats) -> tuple[Floats, Floats, Floats]:
        """Potential (n,), its gradient (n, 3) and virial (3, 3)."""
        n, nx, inverse = len(charges), int(self._sizes[0]), _inverse(cell)
        first = np.empty((n, 3), dtype=np.int64)
        weights, slopes = np.empty((n, 3, kernels.ORDER)), np.empty((n, 3, kernels.ORDER))
        self._share(n, lambda a, b: kernels.find_weights(positions, inverse, first, weights, slopes, self._sizes, a, b))

        def put(low: int, high: int) -> None:
            self._points[low:high] = 0.0
            kernels.spread(charges, first, weights, self._points, low, high)

        self._share(nx, put)
        self._transform()
        planes = np.zeros((nx, 3, 3))
        self._multiply(cell, inverse, planes)
        self._transform_back()
        potential, gradient = np.zeros(n), np.zeros((3, n))
        self._share(
            n,
            lambda a, b: kernels.collect(self._points, first, weights, slopes, inverse, a, b, potential, gradient),
        )
        return potential, gradient.T, planes.sum(axis=0)

    def _multiply(self, cell: Floats, inverse: Floats, planes: Floats) -> None:
        """Fold the charges with their interaction, and find the virial of each plane."""
        if not np.array_equal(cell, self._cell):
            shape = np.array([self._sigma**2, 4 * math.pi * COULOMB / _volume(cell)])
            kernels.find_influence(inverse, shape, self._moduli, self._influence)
            self._cell = cell.copy()
        is_even = bool(self._sizes[2] % 2 == 0)
        self._share(
            len(planes),
            lambda a, b: kernels.fold(self._waves, self._influence, inverse, self._sigma**2, is_even, a, b, planes),
        )

    def _transform(self) -> None:
        points, waves = self._points, self._waves

        def planes(low: int, high: int) -> None:
            waves[low:high] = np.fft.fft(np.fft.rfft(points[low:high], axis=2), axis=1)

        def columns(low: int, high: int) -> None:
            waves[:, low:high] = np.fft.fft(waves[:, low:high], axis=0)

        self._share(waves.shape[0], planes)
        self._share(waves.shape[1], columns)

    def _transform_back(self) -> None:
        points, waves, n = self._points, self._waves, int(self._sizes[2])

        def columns(low: int, high: int) -> None:
            waves[:, low:high] = np.fft.ifft(waves[:, low:high], axis=0, norm="forward")

        def planes(low: int, high: int) -> None:
            lines = np.fft.ifft(waves[low:high], axis=1, norm="forward")
            points[low:high] = np.fft.irfft(lines, n, axis=2, norm="forward")

        self._share(waves.shape[1], columns)
        self._share(waves.shape[0], planes)

    def _share(self, n: int, job: _Part) -> None:
        """Let each thread do a part of n pieces of work."""
        ends: Ints = np.linspace(0, n, self._threads.count + 1).astype(np.int64)
        self._threads.run(lambda k: job(int(ends[k]), int(ends[k + 1])))


def _volume(cell: Floats) -> float:
    return float(abs(np.linalg.det(cell)))


def _inverse(cell: Floats) -> Floats:
    inverse: Floats = np.linalg.inv(cell).astype(np.float64)
    return inverse


@functools.lru_cache(maxsize=1024)
def _round_size(least: int) -> int:
    """The next even number from there on, at least as many points as a charge takes, that Fourier transforms like.

    Its factors are 2, 3 and 5: of each product of threes and fives, the first power of 2 that is enough.
    """
    half = -(-max(least, kernels.ORDER) // 2)
    best, fives = _power_of_two(half), 1
    while fives < best:
        odd = fives
        while odd < best:
            best = min(best, odd * _power_of_two(-(-half // odd)))
            odd *= 3
        fives *= 5
    return 2 * best


def _power_of_two(least: int) -> int:
    """The first that is at least a positive number."""
    return 1 << (least - 1).bit_length()
