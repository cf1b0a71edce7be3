"""Fourier transforms of many columns at once: each step of a transform is one operation on rows of numbers.

X_k = Σ_j exp(-2πi jk/n) x_j, for an n whose factors are 2, 3 and 5, by Stockham's method: step by step the transforms
become longer and the rows come into order by themselves. Where x_j is a row of numbers, one for each column, all
arithmetic is that of vectors, with one factor for a row; no column knows of the others. Real and imaginary parts lie
apart. The inverse, which is not divided by n, is the same with real and imaginary parts exchanged.

Rows are `stride_of` numbers apart or further, and computed up to the next multiple of 8: what lies there is of no use,
and may be anything.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils as _cgutils

from dpserver.frames import Floats, Ints
from dpserver.jit import jit
from dpserver.kernels.simd import Emitter, kernel, lanes

cgutils: Any = _cgutils
_I64, _I32 = ir.IntType(64), ir.IntType(32)
_LANES: Final = lanes(np.float64)

Complex = tuple[Any, Any]
"""Real and imaginary part, as vectors that LLVM knows."""
Rows = tuple[int, int, int]
"""Where the first real and the first imaginary number of rows are in a flat array, and the way from row to row."""


class Plan(NamedTuple):
    """How numbers of points are transformed.

    Attributes:
        factors: of the number of points, in the order of the steps.
        turns: for each step of radix r, on transforms of n points so far, exp(-2πi pk/n), (n / r, r - 1, 2), for p
            below n/r and k from 1 to r - 1, one after the other.
    """

    factors: Ints
    turns: Floats


def plan_of(n: int) -> Plan:
    """How n points are transformed, n > 1 with no factors but 2, 3 and 5."""
    factors, turns, left = list[int](), [np.zeros(0)], n
    for radix in (5, 3, 4, 2):
        while left % radix == 0:
            p, k = np.meshgrid(np.arange(left // radix), np.arange(1, radix), indexing="ij")
            turns.append(turns_of(p * k, left).ravel())
            factors.append(radix)
            left //= radix
    return Plan(np.array(factors, dtype=np.int64), np.concatenate(turns))


def turns_of(parts: Ints, n: int) -> Floats:
    """exp(-2πi p/n) for an array of p: cosines and sines along one more axis."""
    angle = -2 * math.pi * (parts % n) / n
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


@jit
def whole(n: int) -> int:
    """The next multiple of 8."""
    return (n + 7) // 8 * 8


@jit
def stride_of(n: int) -> int:
    """How far rows of n numbers lie apart: whole vectors, and an odd number of the longest ones.

    Powers of two would have many rows in the same few lines of a cache.
    """
    return 8 * ((n + 7) // 8 | 1)


def _plus(v: Emitter, a: Complex, b: Complex) -> Complex:
    return v.builder.fadd(a[0], b[0]), v.builder.fadd(a[1], b[1])


def _minus(v: Emitter, a: Complex, b: Complex) -> Complex:
    return v.builder.fsub(a[0], b[0]), v.builder.fsub(a[1], b[1])


def _turned(v: Emitter, a: Complex) -> Complex:
    """The number times -i."""
    return a[1], v.builder.fneg(a[0])


def _times(v: Emitter, a: Complex, w: Complex) -> Complex:
    """The product of two numbers."""
    re = v.fma(v.builder.fneg(a[1]), w[1], v.builder.fmul(a[0], w[0]))
    return re, v.fma(a[1], w[0], v.builder.fmul(a[0], w[1]))


def _scaled(v: Emitter, a: Complex, factor: float, start: Complex | None = None) -> Complex:
    """Start + f a for a real number f."""
    f = v.constant(factor)
    if start is None:
        return v.builder.fmul(f, a[0]), v.builder.fmul(f, a[1])
    return v.fma(f, a[0], start[0]), v.fma(f, a[1], start[1])


def _transformed(v: Emitter, a: list[Complex]) -> list[Complex]:
    """The transform of 2, 3, 4 or 5 numbers."""
    if len(a) == 2:
        return [_plus(v, a[0], a[1]), _minus(v, a[0], a[1])]
    if len(a) == 3:
        both, apart = _plus(v, a[1], a[2]), _minus(v, a[1], a[2])
        middle, side = _scaled(v, both, -0.5, a[0]), _scaled(v, _turned(v, apart), math.sin(2 * math.pi / 3))
        return [_plus(v, a[0], both), _plus(v, middle, side), _minus(v, middle, side)]
    if len(a) == 4:
        even, odd = _transformed(v, a[::2]), _transformed(v, a[1::2])
        odd[1] = _turned(v, odd[1])
        return [_plus(v, even[0], odd[0]), _plus(v, even[1], odd[1]), *_lower(v, even, odd)]
    outer, inner = _transformed(v, [a[1], a[4]]), _transformed(v, [a[2], a[3]])
    found = [_plus(v, a[0], _plus(v, outer[0], inner[0]))]
    sides = []
    for k in (1, 2):
        c, s = ([f(2 * math.pi * k * j / 5) for j in (1, 2)] for f in (math.cos, math.sin))
        found.append(_scaled(v, inner[0], c[1], _scaled(v, outer[0], c[0], a[0])))
        sides.append(_turned(v, _scaled(v, inner[1], s[1], _scaled(v, outer[1], s[0]))))
    first, second = found[1:]
    return [
        found[0], _plus(v, first, sides[0]), _plus(v, second, sides[1]), _minus(v, second, sides[1]),
        _minus(v, first, sides[0]),
    ]  # fmt: skip


def _lower(v: Emitter, even: list[Complex], odd: list[Complex]) -> list[Complex]:
    return [_minus(v, even[k], odd[k]) for k in (0, 1)]


def _row(v: Emitter, x: dict[str, Any], name: str, k: int) -> Complex:
    """Where the real and the imaginary numbers of one of an array's rows are."""
    first = v.at(x[name], v.builder.mul(x[f"{name}_step"], v.index(k)))
    return v.at(first, x[f"{name}_re"]), v.at(first, x[f"{name}_im"])


def _step_of(radix: int) -> Any:
    """A function for numba: the transforms of `radix` rows, times the turns if there are any (`turns_at` ≥ 0)."""

    def step(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
        sources, targets = ([_row(v, x, name, k) for k in range(radix)] for name in "xy")
        n_vectors = builder.sdiv(x["count"], v.index(v.lanes))

        def loop(turns: list[Complex | None]) -> None:
            with cgutils.for_range(builder, n_vectors, intp=_I64) as each:
                at = builder.mul(each.index, v.index(v.lanes))
                found = _transformed(v, [(v.load(v.at(re, at)), v.load(v.at(im, at))) for re, im in sources])
                for value, turn, (re, im) in zip(found, turns, targets, strict=True):
                    value = value if turn is None else _times(v, value, turn)
                    v.store(value[0], v.at(re, at))
                    v.store(value[1], v.at(im, at))

        with builder.if_else(builder.icmp_signed("<", x["turns_at"], v.index(0))) as (plain, turned):
            with plain:
                loop([None] * radix)
            with turned:
                start = v.at(x["turns"], x["turns_at"])
                parts = [v.splat(builder.load(v.at(start, k))) for k in range(2 * (radix - 1))]
                loop([None, *zip(parts[::2], parts[1::2], strict=True)])

    step.__name__ = f"step_{radix}"
    return kernel("x y turns", "x_re x_im x_step y_re y_im y_step turns_at count")(step)


step_2, step_3, step_4, step_5 = (_step_of(radix) for radix in (2, 3, 4, 5))


@jit
def transform(plan: Plan, x: Floats, x_at: Rows, y: Floats, y_at: Rows, space: Floats, space_at: Rows, n: int) -> None:
    """Transform the n columns of x into y; neither these nor `space`, which takes as much as y, may overlap.

    Args:
        plan: for the number of rows.
        x: flat, with the rows at `x_at`.
        x_at: where they are.
        y: filled, at `y_at`.
        y_at: likewise.
        space: overwritten, at `space_at`.
        space_at: likewise.
        n: columns.
    """
    count, length, group, turns_at = whole(n), 1, 1, 0
    for radix in plan.factors:
        length *= radix
    n_steps = len(plan.factors)
    for k in range(n_steps):
        radix = plan.factors[k]
        source, source_at = (x, x_at) if k == 0 else (y, y_at) if (n_steps - k) % 2 == 0 else (space, space_at)
        target, target_at = (y, y_at) if (n_steps - k) % 2 == 1 else (space, space_at)
        parts = length // radix
        for p in range(parts):
            here = -1 if p == 0 else turns_at + 2 * (radix - 1) * p
            for q in range(group):
                _step(
                    radix, source, _from(source_at, q + group * p, group * parts), target,
                    _from(target_at, q + group * radix * p, group), plan.turns, here, count,
                )  # fmt: skip
        turns_at += 2 * (radix - 1) * parts
        length, group = parts, group * radix


@jit
def _from(rows: Rows, first: int, step: int) -> Rows:
    """Every so many of some rows, from one of them on."""
    return rows[0] + first * rows[2], rows[1] + first * rows[2], step * rows[2]


@jit
def _step(radix: int, x: Floats, x_at: Rows, y: Floats, y_at: Rows, turns: Floats, turns_at: int, count: int) -> None:
    """One step on `radix` rows."""
    if radix == 4:
        step_4(x, y, turns, x_at[0], x_at[1], x_at[2], y_at[0], y_at[1], y_at[2], turns_at, count)
    elif radix == 2:
        step_2(x, y, turns, x_at[0], x_at[1], x_at[2], y_at[0], y_at[1], y_at[2], turns_at, count)
    elif radix == 3:
        step_3(x, y, turns, x_at[0], x_at[1], x_at[2], y_at[0], y_at[1], y_at[2], turns_at, count)
    else:
        step_5(x, y, turns, x_at[0], x_at[1], x_at[2], y_at[0], y_at[1], y_at[2], turns_at, count)


@jit
def inverse_of(rows: Rows) -> Rows:
    """Rows with real and imaginary parts exchanged: a transform of such, to such, is the inverse."""
    return rows[1], rows[0], rows[2]


@kernel("x z y turns", "x_re x_im z_re z_im y_re y_im turns_at count")
def split_row(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """A wave k of real numbers from the transform Z of n = 2h of them, taken as h complex ones, of which x is Z_k.

    X_k = (Z_k + Z*_h-k)/2 - i w (Z_k - Z*_h-k)/2, w = exp(-2πi k/n), and z is Z_h-k.
    """
    turn = tuple(v.splat(builder.load(v.at(x["turns"], x["turns_at"], k))) for k in range(2))
    with cgutils.for_range(builder, builder.sdiv(x["count"], v.index(v.lanes)), intp=_I64) as each:
        at = builder.mul(each.index, v.index(v.lanes))
        a, b = _loaded(v, x, "x", at), _conjugate(v, _loaded(v, x, "z", at))
        odd = _times(v, _turned(v, _minus(v, a, b)), turn)
        _stored(v, x, _scaled(v, _plus(v, _plus(v, a, b), odd), 0.5), at)


@kernel("x z y turns", "x_re x_im z_re z_im y_re y_im turns_at count")
def join_row(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """The reverse of `split_row`, twice that: Z_k = X_k + X*_h-k + i (X_k - X*_h-k)/w, where z is X_h-k."""
    turn = tuple(v.splat(builder.load(v.at(x["turns"], x["turns_at"], k))) for k in range(2))
    with cgutils.for_range(builder, builder.sdiv(x["count"], v.index(v.lanes)), intp=_I64) as each:
        at = builder.mul(each.index, v.index(v.lanes))
        a, b = _loaded(v, x, "x", at), _conjugate(v, _loaded(v, x, "z", at))
        odd = _times(v, _minus(v, a, b), _conjugate(v, turn))
        _stored(v, x, _minus(v, _plus(v, a, b), _turned(v, odd)), at)


def _loaded(v: Emitter, x: dict[str, Any], name: str, at: Any) -> Complex:
    return v.load(v.at(x[name], x[f"{name}_re"], at)), v.load(v.at(x[name], x[f"{name}_im"], at))


def _stored(v: Emitter, x: dict[str, Any], value: Complex, at: Any) -> None:
    v.store(value[0], v.at(x["y"], x["y_re"], at))
    v.store(value[1], v.at(x["y"], x["y_im"], at))


def _conjugate(v: Emitter, a: Complex) -> Complex:
    return a[0], v.builder.fneg(a[1])


@kernel("x y", "x_at x_step y_at y_step")
def transpose_tile(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """Exchange rows and columns of a square that is as wide as a vector."""
    x_at, y_at = v.at(x["x"], x["x_at"]), v.at(x["y"], x["y_at"])
    rows = [v.load(v.at(x_at, builder.mul(x["x_step"], v.index(k)))) for k in range(v.lanes)]
    half = v.lanes
    while half > 1:
        half //= 2
        for k in range(v.lanes):
            if (k // half) % 2 == 0:
                rows[k], rows[k + half] = _exchanged(v, rows[k], rows[k + half], half)
    for k, row in enumerate(rows):
        v.store(row, v.at(y_at, builder.mul(x["y_step"], v.index(k))))


def _exchanged(v: Emitter, a: Any, b: Any, half: int) -> tuple[Any, Any]:
    """Two rows, with every second `half` numbers of the first exchanged for those before them in the second."""
    n = v.lanes
    upper = [k if (k // half) % 2 == 0 else n + k - half for k in range(n)]
    lower = [k + half if (k // half) % 2 == 0 else n + k for k in range(n)]
    masks = [ir.Constant(ir.VectorType(_I32, n), mask) for mask in (upper, lower)]
    first, second = (v.builder.shuffle_vector(a, b, mask) for mask in masks)
    return first, second


@jit
def transpose(x: Floats, x_at: int, x_step: int, y: Floats, y_at: int, y_step: int, n_rows: int, n: int) -> None:
    """Exchange rows and columns of `n_rows` rows of n numbers, and of what is next to them up to whole vectors."""
    for row in range(0, n_rows, _LANES):
        for column in range(0, n, _LANES):
            transpose_tile(x, y, x_at + row * x_step + column, x_step, y_at + column * y_step + row, y_step)
