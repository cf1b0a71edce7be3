"""Smooth particle-mesh Ewald of one structure: the potential of given charges by Fourier transforms on a mesh."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dpserver.frames import Floats, Ints
from dpserver.kernels import mesh as kernels
from dpserver.kernels.threads import Threads
from dpserver.units import COULOMB

_Part = Callable[[int, int], None]


class Mesh:
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
        n, nx, inverse = len(charges), int(self._sizes[0]), inverse_of(cell)
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
            shape = np.array([self._sigma**2, 4 * math.pi * COULOMB / volume(cell)])
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


@functools.lru_cache(maxsize=1024)
def round_size(least: int) -> int:
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


def volume(cell: Floats) -> float:
    """Of a cell, Å³."""
    return float(abs(np.linalg.det(cell)))


def inverse_of(cell: Floats) -> Floats:
    """The inverse of a cell, 1/Å."""
    inverse: Floats = np.linalg.inv(cell).astype(np.float64)
    return inverse
