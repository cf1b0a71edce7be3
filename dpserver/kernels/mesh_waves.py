"""From charges on a mesh to their potential: Fourier transforms, and the product with what each wave does.

The mesh (nx, ny, nz) is transformed plane by plane along y, which makes h + 1 = ny/2 + 1 sheets of waves of it, and
sheet by sheet along x and z; there, where the sheet is in a core's cache, it is multiplied by the influence, and
transformed back along z and x; and then plane by plane along y. A line along z has room for more than nz points, see
`mesh`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dpserver.frames import Floats, Ints
from dpserver.jit import jit, jit_reordered
from dpserver.kernels.fourier import (
    Plan,
    inverse_of,
    join_row,
    plan_of,
    split_row,
    stride_of,
    transform,
    transpose,
    turns_of,
    whole,
)


class Plans(NamedTuple):
    """How a mesh is transformed.

    Attributes:
        sizes: its points, (3,); ny is even.
        x: along the first direction.
        y: along the second, for half its points.
        z: along the third.
        turns: exp(-2πi k/ny) for k up to half of them, (ny/2 + 1, 2).
    """

    sizes: Ints
    x: Plan
    y: Plan
    z: Plan
    turns: Floats


def plans_of(sizes: tuple[int, ...]) -> Plans:
    """How a mesh of so many points is transformed; they have no factors but 2, 3 and 5, and the second is even."""
    nx, ny, nz = sizes
    turns = turns_of(np.arange(ny // 2 + 1), ny)
    return Plans(np.array(sizes, dtype=np.int64), plan_of(nx), plan_of(ny // 2), plan_of(nz), turns)


def sheets_shape(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Of what the waves are kept in: sheets; real and imaginary part; x; z and room."""
    return sizes[1] // 2 + 1, 2, sizes[0], stride_of(sizes[2])


def influence_shape(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Of the influence: sheets, z, x."""
    return sizes[1] // 2 + 1, sizes[2], sizes[0]


def space_size(sizes: tuple[int, ...]) -> int:
    """Numbers that a thread takes for itself."""
    nx, ny, nz = sizes
    return 6 * max(stride_of(nx) * stride_of(nz), ny // 2 * stride_of(nz))


@jit
def transform_planes(mesh: Floats, plans: Plans, sheets: Floats, space: Floats, low: int, high: int) -> None:
    """Transform the planes of a mesh from `low` to `high` along y.

    Args:
        mesh: (nx, ny, nz or more); what is beyond nz is added to the beginning of its line.
        plans: see `plans_of`.
        sheets: see `sheets_shape`; filled.
        space: see `space_size`; overwritten.
        low: of the planes.
        high: of them.
    """
    _, ny, nz = plans.sizes
    n_planes, half, line = plans.sizes[0], ny // 2, mesh.shape[2]
    step = sheets.shape[3]
    flat, waves, size = mesh.reshape(-1), sheets.reshape(-1), half * step
    there, between = (0, size, step), (2 * size, 3 * size, step)
    for x in range(low, high):
        for y in range(ny):
            for z in range(nz, line):
                mesh[x, y, z - nz] += mesh[x, y, z]
        rows = (x * ny * line, (x * ny + 1) * line, 2 * line)
        transform(plans.y, flat, rows, space, there, space, between, nz)
        for k in range(half + 1):
            a, b = k % half * step, (half - k) % half * step
            to = (2 * k * n_planes + x) * step
            split_row(
                space, space, waves, plans.turns, a, size + a, b, size + b, to, to + n_planes * step, 2 * k, whole(nz)
            )


@jit
def restore_planes(sheets: Floats, plans: Plans, mesh: Floats, space: Floats, low: int, high: int) -> None:
    """The reverse of `transform_planes`, times ny; the beginning of each line is repeated beyond its end."""
    _, ny, nz = plans.sizes
    n_planes, half, line = plans.sizes[0], ny // 2, mesh.shape[2]
    step = sheets.shape[3]
    flat, waves, size = mesh.reshape(-1), sheets.reshape(-1), half * step
    here, between = (0, size, step), (2 * size, 3 * size, step)
    for x in range(low, high):
        for k in range(half):
            a, b = (2 * k * n_planes + x) * step, (2 * (half - k) * n_planes + x) * step
            to, im = k * step, n_planes * step
            join_row(waves, waves, space, plans.turns, a, a + im, b, b + im, to, size + to, 2 * k, whole(nz))
        rows = (x * ny * line, (x * ny + 1) * line, 2 * line)
        transform(plans.y, space, inverse_of(here), flat, inverse_of(rows), space, inverse_of(between), nz)
        for y in range(ny):
            for z in range(nz, line):
                mesh[x, y, z] = mesh[x, y, z - nz]


@jit
def fold_sheets(
    sheets: Floats, plans: Plans, influence: Floats, metric: Floats, width: float, space: Floats, low: int, high: int,
    sums: Floats,
) -> None:  # fmt: skip
    """Transform the sheets from `low` to `high` along x and z, multiply them by the influence, and go back.

    Args:
        sheets: see `sheets_shape`; in place.
        plans: see `plans_of`.
        influence: see `find_influence`.
        metric: of the waves, see `metric_of`.
        width: σ², Å².
        space: see `space_size`; overwritten.
        low: of the sheets.
        high: of them.
        sums: of each sheet, see `virial_of`, (n_sheets, 7); filled.
    """
    nx, ny, nz = plans.sizes
    waves, size = sheets.reshape(-1), len(space) // 6
    long, across = sheets.shape[3], stride_of(nx)
    a, b, c = (0, size, long), (2 * size, 3 * size, long), 4 * size
    turned_a, turned_b, turned_c = (0, size, across), (2 * size, 3 * size, across), (c, c + size, across)
    for y in range(low, high):
        rows = (2 * y * nx * long, (2 * y + 1) * nx * long, long)
        transform(plans.x, waves, rows, space, a, space, b, nz)
        for part in range(2):
            transpose(space, a[part], long, space, b[part], across, nx, nz)
        transform(plans.z, space, turned_b, space, turned_a, space, turned_c, nx)
        sums[y] = 0.0
        for z in range(nz):
            k = z if 2 * z < nz else z - nz
            _fold(space, z * across, size + z * across, influence[y, z], metric, width, y, k, sums[y])
        if 0 < y < ny // 2:
            sums[y] *= 2.0
        transform(plans.z, space, inverse_of(turned_a), space, inverse_of(turned_b), space, inverse_of(turned_c), nx)
        for part in range(2):
            transpose(space, b[part], across, space, a[part], long, nz, nx)
        transform(plans.x, space, inverse_of(a), waves, inverse_of(rows), space, inverse_of(b), nz)


@jit_reordered
def _fold(
    space: Floats, re_at: int, im_at: int, influence: Floats, metric: Floats, width: float, m2: int, m3: int,
    sums: Floats,
) -> None:  # fmt: skip
    """Multiply a row of waves by the influence, in place, and add its part of the sums."""
    n = len(influence)
    re, im = space[re_at : re_at + n], space[im_at : im_at + n]
    start = metric[1, 1] * m2 * m2 + 2 * metric[1, 2] * m2 * m3 + metric[2, 2] * m3 * m3
    slope, bend = 2 * (metric[0, 1] * m2 + metric[0, 2] * m3), metric[0, 0]
    energy = pull = first = second = 0.0
    for x in range(n):
        m1 = float(x if 2 * x < n else x - n)
        weight, a, b = influence[x], re[x], im[x]
        square = start + m1 * (slope + m1 * bend)
        each = 0.5 * weight * (a * a + b * b)
        pulled = each * (width + 1 / (square if weight > 0.0 else 1.0))
        energy += each
        pull += pulled
        first += pulled * m1
        second += pulled * m1 * m1
        re[x], im[x] = weight * a, weight * b
    sums[0] += energy
    sums[1] += second
    sums[2] += m2 * first
    sums[3] += m3 * first
    sums[4] += m2 * m2 * pull
    sums[5] += m2 * m3 * pull
    sums[6] += m3 * m3 * pull


def virial_of(sums: Floats, inverse: Floats) -> Floats:
    """The virial Σ e (1 - 2 (1/G² + σ²) G ⊗ G), (3, 3), eV.

    Args:
        sums: of the energy e of waves, and of e (1/G² + σ²) times products of their components m: 11, 12, 13, 22, 23,
            33; (n_sheets, 7).
        inverse: of the cell, (3, 3), Å⁻¹; G = 2π inverse·m.
    """
    total = sums.sum(axis=0)
    products = total[np.array([[1, 2, 3], [2, 4, 5], [3, 5, 6]])]
    found: Floats = total[0] * np.eye(3) - 8 * math.pi**2 * (inverse @ products @ inverse.T)
    return found


def metric_of(inverse: Floats) -> Floats:
    """The metric of components of waves, G² = m·metric·m, (3, 3), Å⁻²."""
    found: Floats = 4 * math.pi**2 * (inverse.T @ inverse)
    return found


@jit
def find_influence(
    metric: Floats, shape: Floats, moduli: tuple[Floats, Floats, Floats], low: int, high: int, influence: Floats
) -> None:
    """What each wave of the sheets from `low` to `high` is multiplied by, eV/Å² per e² times points.

    The shortest waves of an even number of points, which stand for themselves and their opposites, are left out: in
    most cells the two are not of one length.

    Args:
        metric: of the waves, see `metric_of`.
        shape: σ², Å²; 4πk/V.
        moduli: 1/|Σ_j M_p(j + 1) exp(2πi m j/n)|² for the waves m of each direction.
        low: of the sheets.
        high: of them.
        influence: (ny/2 + 1, nz, nx); filled.
    """
    n_sheets, nz, nx = influence.shape
    for m2 in range(low, high):
        for z in range(nz):
            if m2 == n_sheets - 1 or 2 * z == nz:
                influence[m2, z] = 0.0
                continue
            m3 = z if 2 * z < nz else z - nz
            start = metric[1, 1] * m2 * m2 + 2 * metric[1, 2] * m2 * m3 + metric[2, 2] * m3 * m3
            slope, factor = 2 * (metric[0, 1] * m2 + metric[0, 2] * m3), shape[1] * moduli[1][m2] * moduli[2][z]
            for x in range(nx):
                m1 = x if 2 * x < nx else x - nx
                square = start + m1 * (slope + m1 * metric[0, 0])
                influence[m2, z, x] = factor * moduli[0][x] * math.exp(-shape[0] * square) / square
            if nx % 2 == 0:
                influence[m2, z, nx // 2] = 0.0
    if low == 0:
        influence[0, 0, 0] = 0.0
