"""Charges on a mesh, and what is read off it, by B-splines: smooth particle-mesh Ewald (Essmann et al., JCP 103, 8577).

A charge is spread over `order` points in each direction with the weights M_p(f + p - 1 - j), f how far it is beyond a
point, j = 0, …, p - 1: polynomials of degree p - 1 in f. Potential and exact derivative are read off by the same
weights, so that energies are smooth in positions and cell as long as the mesh has the same number of points. What
happens to the mesh in between is in `mesh_waves`.

Weights lie in rows as wide as whole vectors, filled up with zeros, and each line of a mesh goes on for as many points
beyond its last one: what is put there belongs to its beginning, which `mesh_waves` sees to, and the beginning is
repeated there before anything is read.

Several threads may share the work; every number is summed in an order of its own, whatever their number: that of the
planes where charges begin, and in each plane that in which the charges were given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import cgutils as _cgutils

from dpserver.frames import Floats, Ints
from dpserver.jit import jit
from dpserver.kernels.simd import Emitter, kernel, lanes

cgutils: Any = _cgutils
_I64 = ir.IntType(64)
_LANES: Final = lanes(np.float64)
_WIDTHS: Final = (8, 16)
"""Of rows of weights."""


def width_of(order: int) -> int:
    """How wide rows of so many weights are."""
    return next(width for width in _WIDTHS if width >= order)


def splines_of(order: int) -> Floats:
    """Coefficients of the weights by powers of f - 1/2, the highest first, (order, width).

    M_p(u) = (u M_p-1(u) + (p - u) M_p-1(u - 1))/(p - 1), M_1 = 1 between 0 and 1.
    """
    pieces = [np.array([1.0])]  # of M_p, by f - 1/2; u = f + k in the k-th
    for p in range(2, order + 1):
        none, found = np.zeros(p - 1), list[Floats]()
        for k in range(p):
            here, before = (pieces[k] if k < p - 1 else none), (pieces[k - 1] if k else none)
            rising, falling = np.array([1.0, k + 0.5]), np.array([-1.0, p - k - 0.5])
            found.append((np.convolve(rising, here) + np.convolve(falling, before)) / (p - 1))
        pieces = found
    table = np.zeros((order, width_of(order)))
    table[:, :order] = np.array(pieces[::-1]).T
    return table


def moduli_of(size: int, order: int) -> Floats:
    """1/|Σ_j M_p(j + 1) exp(2πi m j/n)|² for all waves m of a mesh of n points, (n,)."""
    weights = splines_of(order)[:, :order]
    values = np.zeros(size)
    for j in range(order):
        values[j % size] += np.polyval(weights[:, j], -0.5)
    found: Floats = 1 / np.abs(np.fft.fft(values)) ** 2
    return found


@jit
def find_places(
    positions: Floats, inverse: Floats, sizes: Ints, low: int, high: int, points: Ints, beyond: Floats
) -> None:
    """The points of the mesh at or before the atoms from `low` to `high`, and how far these are beyond.

    Args:
        positions: (n, 3), Å.
        inverse: of the cell whose rows are lattice vectors, (3, 3), Å⁻¹.
        sizes: points of the mesh, (3,).
        low: of the atoms.
        high: of them.
        points: (n, 3); filled.
        beyond: in units of the mesh, less 1/2, (n, 3); filled.
    """
    for i in range(low, high):
        for d in range(3):
            s = positions[i, 0] * inverse[0, d] + positions[i, 1] * inverse[1, d] + positions[i, 2] * inverse[2, d]
            u = (s - math.floor(s)) * sizes[d]
            point = math.floor(u)
            points[i, d] = point % sizes[d]
            beyond[i, d] = u - point - 0.5


@jit
def sort_planes(points: Ints, n_planes: int, starts: Ints, atoms: Ints) -> None:
    """Sort atoms by the plane of their point.

    Args:
        points: (n, 3).
        n_planes: of the mesh.
        starts: where each plane's begin in `atoms`, (n_planes + 1,); filled.
        atoms: (n,); filled.
    """
    starts[:] = 0
    for i in range(len(points)):
        starts[points[i, 0] + 1] += 1
    for plane in range(n_planes):
        starts[plane + 1] += starts[plane]
    at = starts[:n_planes].copy()
    for i in range(len(points)):
        plane = points[i, 0]
        atoms[at[plane]] = i
        at[plane] += 1


@kernel("table places values slopes", "n_rows place_at values_at slopes_at width has_slopes")
def find_splines(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """Polynomials, and maybe their derivatives, in three places, by Horner's scheme."""
    places = [v.splat(builder.load(v.at(x["places"], x["place_at"], k))) for k in range(3)]
    with cgutils.for_range(builder, builder.sdiv(x["width"], v.index(v.lanes)), intp=_I64) as vector:
        at = builder.mul(vector.index, v.index(v.lanes))

        def loop(at: Any, has_slopes: bool) -> None:
            values = [v.variable(v.load(v.at(x["table"], at))) for _ in places]
            slopes = [v.variable(v.constant(0.0)) for _ in places]
            with cgutils.for_range(builder, builder.sub(x["n_rows"], v.index(1)), intp=_I64) as row:
                below = builder.mul(builder.add(row.index, v.index(1)), x["width"])
                coefficient = v.load(v.at(x["table"], below, at))
                for place, value, slope in zip(places, values, slopes, strict=True):
                    before = builder.load(value)
                    if has_slopes:
                        builder.store(v.fma(builder.load(slope), place, before), slope)
                    builder.store(v.fma(before, place, coefficient), value)
            for k in range(3):
                row_at = builder.add(at, builder.mul(x["width"], v.index(k)))
                v.store(builder.load(values[k]), v.at(x["values"], x["values_at"], row_at))
                if has_slopes:
                    v.store(builder.load(slopes[k]), v.at(x["slopes"], x["slopes_at"], row_at))

        with builder.if_else(builder.icmp_signed("!=", x["has_slopes"], v.index(0))) as (with_slopes, without):
            with with_slopes:
                loop(at, has_slopes=True)
            with without:
                loop(at, has_slopes=False)


@jit
def find_weights(
    table: Floats, beyond: Floats, charges: Floats, atoms: Ints, low: int, high: int, weights: Floats
) -> None:
    """Weights of the sorted atoms from `low` to `high`, those along the first direction times the charge.

    Args:
        table: see `splines_of`.
        beyond: see `find_places`.
        charges: (n,), e.
        atoms: in the order of the weights.
        low: of these.
        high: of them.
        weights: (n, 3, width); filled.
    """
    width = table.shape[1]
    for k in range(low, high):
        i = atoms[k]
        find_splines(table, beyond, weights, weights, len(table), 3 * i, 3 * k * width, 0, width, 0)
        for a in range(len(table)):
            weights[k, 0, a] *= charges[i]


def _each_width(v: Emitter, width: Any, emit: Callable[[int], None]) -> None:
    """Write a loop for every width of rows of weights, of which one runs."""
    for possible in _WIDTHS:
        with v.builder.if_then(v.builder.icmp_signed("==", width, v.index(possible))):
            emit(possible // v.lanes)


def _wrapped(v: Emitter, index: Any, n: Any) -> Any:
    """An index below 2n, as one below n."""
    return v.builder.select(v.builder.icmp_signed("<", index, n), index, v.builder.sub(index, n))


@kernel("mesh weights", "plane_at step n_lines line z order scale_at y_at width")
def add_plane(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """Add the part of a charge that is on one plane of the mesh."""

    def emit(n_vectors: int) -> None:
        y_at = v.at(x["weights"], x["y_at"])
        scale = v.splat(builder.load(v.at(x["weights"], x["scale_at"])))
        along = [builder.fmul(scale, v.load(v.at(y_at, x["width"], n * v.lanes))) for n in range(n_vectors)]
        with cgutils.for_range(builder, x["order"], intp=_I64) as loop:
            line = _wrapped(v, builder.add(x["line"], loop.index), x["n_lines"])
            target = v.at(x["mesh"], x["plane_at"], builder.mul(line, x["step"]), x["z"])
            weight = v.splat(builder.load(v.at(y_at, loop.index)))
            for n, vector in enumerate(along):
                place = v.at(target, n * v.lanes)
                v.store(v.fma(weight, vector, v.load(place)), place)

    _each_width(v, x["width"], emit)


@jit
def spread(
    mesh: Floats, sizes: Ints, order: int, points: Ints, starts: Ints, atoms: Ints, weights: Floats, low: int, high: int
) -> None:
    """Put the charges onto the planes of a mesh from `low` to `high`.

    Args:
        mesh: (nx, ny, nz or more), e; these planes are filled.
        sizes: its points, (3,).
        order: of the splines.
        points: see `find_places`.
        starts: see `sort_planes`.
        atoms: sorted by planes.
        weights: see `find_weights`.
        low: of the planes.
        high: of them.
    """
    n_lines, step, width = mesh.shape[1], mesh.shape[2], weights.shape[2]
    for plane in range(low, high):
        mesh[plane] = 0.0
        for a in range(order):
            point = (plane - a + order - 1) % sizes[0]
            for k in range(starts[point], starts[point + 1]):
                y = (points[atoms[k], 1] - order + 1) % sizes[1]
                z = (points[atoms[k], 2] - order + 1) % sizes[2]
                row = 3 * width * k
                add_plane(
                    mesh, weights, plane * n_lines * step, step, n_lines, y, z, order, row + a, row + width, width
                )


@kernel("mesh splines out", "plane line z step n_planes n_lines order width")
def read_point(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """What the mesh is at an atom, and its derivatives in units of the mesh: four numbers.

    `splines` are three rows of weights, and then their derivatives.
    """
    rows = [v.at(x["splines"], builder.mul(x["width"], v.index(k))) for k in range(6)]
    span = builder.mul(x["n_lines"], x["step"])

    def emit(n_vectors: int) -> None:
        totals = [[v.variable(v.constant(0.0)) for _ in range(n_vectors)] for _ in range(3)]
        with cgutils.for_range(builder, x["order"], intp=_I64) as a:
            plane = _wrapped(v, builder.add(x["plane"], a.index), x["n_planes"])
            start = v.at(x["mesh"], builder.mul(plane, span), x["z"])
            sums = [[v.variable(v.constant(0.0)) for _ in range(n_vectors)] for _ in range(2)]
            for part in sums:
                for total in part:
                    builder.store(v.constant(0.0), total)
            with cgutils.for_range(builder, x["order"], intp=_I64) as b:
                line = _wrapped(v, builder.add(x["line"], b.index), x["n_lines"])
                place = v.at(start, builder.mul(line, x["step"]))
                factors = [v.splat(builder.load(v.at(rows[k], b.index))) for k in (1, 4)]
                for n in range(n_vectors):
                    value = v.load(v.at(place, n * v.lanes))
                    for factor, part in zip(factors, sums, strict=True):
                        builder.store(v.fma(factor, value, builder.load(part[n])), part[n])
            by_x = [v.splat(builder.load(v.at(rows[k], a.index))) for k in (0, 3, 0)]
            for factor, part, total in zip(by_x, (sums[0], sums[0], sums[1]), totals, strict=True):
                for n in range(n_vectors):
                    builder.store(v.fma(factor, builder.load(part[n]), builder.load(total[n])), total[n])
        for k, (row, total) in enumerate(((2, totals[0]), (2, totals[1]), (2, totals[2]), (5, totals[0]))):
            found = v.constant(0.0)
            for n in range(n_vectors):
                found = v.fma(v.load(v.at(rows[row], n * v.lanes)), builder.load(total[n]), found)
            builder.store(v.sum(found), v.at(x["out"], k))

    _each_width(v, x["width"], emit)


@jit
def collect(
    mesh: Floats, sizes: Ints, table: Floats, inverse: Floats, points: Ints, beyond: Floats, atoms: Ints, low: int,
    high: int, potential: Floats, gradient: Floats,
) -> None:  # fmt: skip
    """Read potential and gradient of the sorted atoms from `low` to `high` off the mesh.

    Args:
        mesh: (nx, ny, nz or more), eV/e.
        sizes: its points, (3,).
        table: see `splines_of`.
        inverse: of the cell, (3, 3), Å⁻¹.
        points: see `find_places`.
        beyond: see there.
        atoms: sorted by planes.
        low: of these.
        high: of them.
        potential: (n,), eV/e; filled.
        gradient: (n, 3), eV/e/Å; filled.
    """
    order, width = table.shape
    n_planes, n_lines, step = mesh.shape
    splines, out, first = np.empty(6 * width), np.empty(4), np.empty(3, dtype=np.int64)
    for k in range(low, high):
        i = atoms[k]
        find_splines(table, beyond, splines, splines, order, 3 * i, 0, 3 * width, width, 1)
        for d in range(3):
            first[d] = (points[i, d] - order + 1) % sizes[d]
        read_point(mesh, splines, out, first[0], first[1], first[2], step, n_planes, n_lines, order, width)
        potential[i] = out[0]
        gx, gy, gz = sizes[0] * out[1], sizes[1] * out[2], sizes[2] * out[3]
        for d in range(3):
            gradient[i, d] = gx * inverse[d, 0] + gy * inverse[d, 1] + gz * inverse[d, 2]
