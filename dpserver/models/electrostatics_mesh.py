"""Smooth particle-mesh Ewald of one structure: the potential of given charges by Fourier transforms on a mesh."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dpserver.frames import Floats, Ints
from dpserver.kernels import mesh as kernels
from dpserver.kernels import mesh_waves
from dpserver.kernels.fourier import stride_of
from dpserver.kernels.threads import Threads
from dpserver.models.electrostatics_slabs import Bounds, Room, Slabs, Undivided, touched_planes
from dpserver.models.packing import aligned
from dpserver.parts import Parts
from dpserver.units import COULOMB

_Part = Callable[[int, int, int], None]
"""Of a thread's number, and the first and the end of its pieces of work."""


class Mesh:
    """A mesh of one size, with its room.

    Args:
        sizes: points along each lattice vector, see `round_size`.
        order: of the splines: points that a charge is spread over in each direction, 8 or 12.
        sigma: width of the charges, Å.
        threads: that compute.
    """

    def __init__(self, sizes: tuple[int, ...], order: int, sigma: float, threads: Threads) -> None:
        self._sizes, self._sigma, self._threads = np.array(sizes, dtype=np.int64), sigma, threads
        self._splines = kernels.splines_of(order)
        self._plans = mesh_waves.plans_of(sizes)
        self._points, self._sheets, self._influence, self._space = map(_zeros, _shapes(sizes, order, threads.count))
        x, y, z = (kernels.moduli_of(size, order) for size in sizes)
        self._moduli = x, y, z
        self._weights = _zeros((0, 3, self._splines.shape[1]))
        self._cell, self._known = np.zeros((3, 3)), (0, 0)
        self._room = Room()

    @staticmethod
    def n_bytes(sizes: tuple[int, ...], order: int, n_threads: int) -> float:
        """What a mesh takes, whatever the number of atoms."""
        return 8.0 * sum(math.prod(float(n) for n in shape) for shape in _shapes(sizes, order, n_threads))

    def evaluate(
        self, positions: Floats, charges: Floats, cell: Floats, parts: Parts | None = None
    ) -> tuple[Floats, Floats, Floats]:
        """Potential (n,), its gradient (n, 3) and virial (3, 3); of the atoms of a part, virials that add up."""
        inverse = inverse_of(cell)
        atoms = self._place(positions, inverse)
        self._spread(atoms, charges)
        share = self._share_of(parts, atoms)
        share.add_planes()
        self._transform(share.planes)
        share.to_sheets()
        virial = self._fold(cell, inverse, share.sheets)
        share.to_planes()
        self._transform_back(share.planes)
        share.take_planes()
        potential, gradient = self._collect(atoms, inverse)
        return potential, gradient, virial

    def _share_of(self, parts: Parts | None, atoms: _Atoms) -> Undivided:
        """Which planes and sheets of the mesh are transformed here."""
        if parts is None:
            return Undivided(len(self._points), len(self._sheets))
        touched = touched_planes(len(self._points), atoms.starts, len(self._splines))
        return Slabs(parts, self._points, self._sheets, touched, self._room)

    def _place(self, positions: Floats, inverse: Floats) -> _Atoms:
        """Find where atoms are on the mesh, and sort them."""
        n, nx = len(positions), int(self._sizes[0])
        points, beyond = np.empty((n, 3), dtype=np.int64), np.empty((n, 3))
        self._share(n, lambda k, a, b: kernels.find_places(positions, inverse, self._sizes, a, b, points, beyond))
        starts, order = np.empty(nx + 1, dtype=np.int64), np.empty(n, dtype=np.int64)
        kernels.sort_planes(points, nx, starts, order)
        return _Atoms(points, beyond, starts, order)

    def _spread(self, atoms: _Atoms, charges: Floats) -> None:
        """Put the charges onto the mesh."""
        n, (order, width) = len(charges), self._splines.shape
        if len(self._weights) < n:
            self._weights = _zeros((n, 3, width))
        weights = self._weights

        def weigh(_: int, low: int, high: int) -> None:
            kernels.find_weights(self._splines, atoms.beyond, charges, atoms.order, low, high, weights)

        def put(_: int, low: int, high: int) -> None:
            kernels.spread(
                self._points, self._sizes, order, atoms.points, atoms.starts, atoms.order, weights, low, high
            )

        self._share(n, weigh)
        self._share(len(self._points), put)

    def _transform(self, planes: Bounds) -> None:
        """Along the second direction, plane by plane; what lies beyond the end of lines is taken to their beginning."""
        self._share_between(
            *planes,
            lambda k, a, b: mesh_waves.transform_planes(self._points, self._plans, self._sheets, self._space[k], a, b),
        )

    def _fold(self, cell: Floats, inverse: Floats, sheets: Bounds) -> Floats:
        """Transform along the other directions, fold the charges with their interaction, go back: the virial."""
        metric = mesh_waves.metric_of(inverse)
        if not np.array_equal(cell, self._cell) or sheets != self._known:
            shape = np.array([self._sigma**2, 4 * math.pi * COULOMB / volume(cell)])
            self._share_between(
                *sheets, lambda _, a, b: mesh_waves.find_influence(metric, shape, self._moduli, a, b, self._influence)
            )
            self._cell, self._known = cell.copy(), sheets
        sums, square = np.zeros((len(self._sheets), 7)), self._sigma**2
        self._share_between(
            *sheets,
            lambda k, a, b: mesh_waves.fold_sheets(
                self._sheets, self._plans, self._influence, metric, square, self._space[k], a, b, sums
            ),
        )
        return mesh_waves.virial_of(sums, inverse)

    def _transform_back(self, planes: Bounds) -> None:
        """Along the second direction; the beginning of lines is repeated beyond their end."""
        self._share_between(
            *planes,
            lambda k, a, b: mesh_waves.restore_planes(self._sheets, self._plans, self._points, self._space[k], a, b),
        )

    def _collect(self, atoms: _Atoms, inverse: Floats) -> tuple[Floats, Floats]:
        """Read potential and gradient off the mesh."""
        n = len(atoms.order)
        potential, gradient = np.empty(n), np.empty((n, 3))

        def read(_: int, low: int, high: int) -> None:
            kernels.collect(
                self._points, self._sizes, self._splines, inverse, atoms.points, atoms.beyond, atoms.order, low, high,
                potential, gradient,
            )  # fmt: skip

        self._share(n, read)
        return potential, gradient

    def _share(self, n: int, job: _Part) -> None:
        """Let each thread do a part of n pieces of work."""
        self._share_between(0, n, job)

    def _share_between(self, low: int, high: int, job: _Part) -> None:
        """Let each thread do a part of the pieces of work between two bounds."""
        ends: Ints = np.linspace(low, high, self._threads.count + 1).astype(np.int64)
        self._threads.run(lambda k: job(k, int(ends[k]), int(ends[k + 1])))


@dataclass(frozen=True, eq=False)
class _Atoms:
    """Where atoms are on a mesh; see `kernels.find_places` and `kernels.sort_planes`."""

    points: Ints
    beyond: Floats
    starts: Ints
    order: Ints


def order_of(accuracy: float) -> int:
    """Of the splines with which a mesh for an accuracy is the least work."""
    return 8 if accuracy > 1.5e-6 else 12


def spacing_of(sigma: float, accuracy: float) -> float:
    """Distance of the points of a mesh that is fine enough, Å.

    Fits the largest errors that were measured, see `docs/long-range.md`, times 3/2.
    """
    laws = {8: ((0.034, 9.9), (0.005, 7.7)), 12: ((0.035, 14.5),)}[order_of(accuracy)]
    return math.sqrt(2) * sigma / max(1.0, *[math.pow(size / accuracy, 1 / power) for size, power in laws])


@functools.lru_cache(maxsize=1024)
def round_size(least: int, order: int = 8) -> int:
    """The next even number from there on that Fourier transforms like, and no less than the order of the splines.

    Its factors are 2, 3 and 5: of each product of threes and fives, the first power of 2 that is enough.
    """
    half = -(-max(least, order) // 2)
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


def _zeros(shape: tuple[int, ...]) -> Floats:
    """Zeros that begin where vectors like it."""
    found: Floats = aligned(math.prod(shape), np.float64).reshape(shape)
    return found


def _shapes(sizes: tuple[int, ...], order: int, n_threads: int) -> list[tuple[int, ...]]:
    """Of the points of a mesh, of the sheets of waves, of their influence, and of what the threads need beside it."""
    points = sizes[0], sizes[1], stride_of(sizes[2] + kernels.width_of(order) - 1)
    space = n_threads, mesh_waves.space_size(sizes)
    return [points, mesh_waves.sheets_shape(sizes), mesh_waves.influence_shape(sizes), space]


def volume(cell: Floats) -> float:
    """Of a cell, Å³."""
    return float(abs(np.linalg.det(cell)))


def inverse_of(cell: Floats) -> Floats:
    """The inverse of a cell, 1/Å."""
    inverse: Floats = np.linalg.inv(cell).astype(np.float64)
    return inverse
