"""Which of a run of points are near another one: the inner loop of the search for neighbours.

Compilers make no vector code of a loop that keeps what fulfils a condition. AVX-512 has an instruction for it, so where
numba compiles for CPUs that have it the loop is written out here in LLVM's terms; elsewhere it is a plain one.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from dpserver.frames import Floats
from dpserver.jit import compiles_with, jit

Ints32 = NDArray[np.int32]

LANES: Final = 8
"""Points are looked at by so many; arrays of points, and what is found, may be read and written so far beyond."""

HAS_VECTORS: Final = compiles_with("avx512f") and compiles_with("avx512vl")

cgutils: Any = _cgutils
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_DOUBLES, _INTEGERS = ir.VectorType(ir.DoubleType(), LANES), ir.VectorType(_I32, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)


class Points(NamedTuple):
    """Points side by side, with LANES of no meaning after the last.

    Attributes:
        x, y, z: coordinates, (n + LANES,), Å.
        atoms: whose they are, (n + LANES,).
    """

    x: Floats
    y: Floats
    z: Floats
    atoms: Ints32


class Found(NamedTuple):
    """Room for what is found, LANES more than that.

    Attributes:
        atoms: near; images: that they are near in.
    """

    atoms: Ints32
    images: Ints32


@jit
def find_plainly(
    x: Floats,
    y: Floats,
    z: Floats,
    atoms: Ints32,
    a: float,
    b: float,
    c: float,
    tx: float,
    ty: float,
    tz: float,
    square: float,
    first: int,
    end: int,
    but: int,
    image: int,
    found: Ints32,
    images: Ints32,
    n: int,
) -> int:
    """`find` on any CPU."""
    for q in range(first, end):
        dx, dy, dz = (x[q] - a) + tx, (y[q] - b) + ty, (z[q] - c) + tz
        found[n], images[n] = atoms[q], image
        n += (dx * dx + dy * dy + dz * dz < square) & (q != but)
    return n


def _find_in_vectors(_context, x, y, z, atoms, a, b, c, tx, ty, tz, square, first, end, but, image, found, images, n):  # type: ignore[no-untyped-def]
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = {
            k: context.make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 1, 2, 3, 15, 16)
        }
        own, shift = ([_splat(builder, number, _DOUBLES) for number in part] for part in (args[4:7], args[7:10]))
        limit, end, but = (_splat(builder, number, kind) for number, kind in _limits(builder, args))
        image = _splat(builder, builder.trunc(args[14], _I32), _INTEGERS)
        kind = ir.FunctionType(_INTEGERS, [_INTEGERS, _INTEGERS, _MASK])
        compress = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.mask.compress.v8i32")
        count = cgutils.alloca_once_value(builder, args[17])
        zeros, steps = ir.Constant(_INTEGERS, [0] * LANES), ir.Constant(_INTEGERS, list(range(LANES)))
        step = ir.Constant(_I64, LANES)
        with cgutils.for_range_slice(builder, args[11], args[12], step, intp=_I64) as (q, _):
            square = _square(builder, [arrays[k] for k in range(3)], q, own, shift)
            places = builder.add(_splat(builder, builder.trunc(q, _I32), _INTEGERS), steps)
            mask = builder.and_(builder.icmp_signed("<", places, end), builder.icmp_signed("!=", places, but))
            mask = builder.and_(mask, builder.fcmp_ordered("<", square, limit))
            at = builder.load(count)
            kept = builder.call(compress, [_load(builder, arrays[3], q, _INTEGERS), zeros, mask])
            for target, vector in ((arrays[15], kept), (arrays[16], image)):
                builder.store(vector, builder.bitcast(builder.gep(target, [at]), _INTEGERS.as_pointer()), align=4)
            more = builder.zext(builder.ctpop(builder.bitcast(mask, ir.IntType(LANES))), _I64)
            builder.store(builder.add(at, more), count)
        return builder.load(count)

    numbers, places = [types.float64] * 7, [types.intp] * 4
    return types.intp(x, y, z, atoms, *numbers, *places, found, images, types.intp), codegen


find_in_vectors: Any = intrinsic(_find_in_vectors)
"""`find` with AVX-512."""


def _limits(builder: Any, args: Any) -> list[tuple[Any, Any]]:
    """Square of the distance, end of the run, and the point to leave out, with the vectors that they become."""
    return [(args[10], _DOUBLES), *((builder.trunc(args[k], _I32), _INTEGERS) for k in (12, 13))]


def _splat(builder: Any, number: Any, kind: Any) -> Any:
    """A vector of one number."""
    undefined = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(undefined, number, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


def _load(builder: Any, pointer: Any, at: Any, kind: Any) -> Any:
    """A vector of numbers of an array."""
    align = 8 if kind is _DOUBLES else 4
    return builder.load(builder.bitcast(builder.gep(pointer, [at]), kind.as_pointer()), align=align)


def _square(builder: Any, points: Any, at: Any, own: Any, shift: Any) -> Any:
    """Squared distances of some points from another; of two points either from the other the same, to the last bit."""
    found: Any = None
    for pointer, middle, translation in zip(points, own, shift, strict=True):
        difference = builder.fadd(builder.fsub(_load(builder, pointer, at, _DOUBLES), middle), translation)
        square = builder.fmul(difference, difference, flags=("contract",))
        found = square if found is None else builder.fadd(found, square, flags=("contract",))
    return found


find: Any = find_in_vectors if HAS_VECTORS else find_plainly
"""Find the points of a run that are near another point, and add them to what has been found before.

Args:
    x, y, z: coordinates of all points, LANES more of them, Å; atoms: whose they are.
    a, b, c: the other point.
    tx, ty, tz: what the run is moved by, Å.
    square: of the distance, Å², below which points are near.
    first: of the run; end: after its last.
    but: a point that does not count.
    image: what to note of where the run is.
    found: atoms that are near, with room for LANES more; images: they are near in.
    n: number of those found before.

Returns:
    Number of those found until now.
"""
