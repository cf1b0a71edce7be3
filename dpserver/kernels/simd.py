"""Vector instructions for numba: the inner loops of the CPU kernels, written in LLVM's own terms.

LLVM's vectoriser does not keep a block of sums in registers over a loop, and on some CPUs it uses half their width. So
the few loops where the time goes are spelled out here with explicit vectors, for the widest registers of the CPU that
numba compiles for; it compiles them with everything around them. No compiler and no BLAS is needed, and since every row
of a product is summed in one and the same order, results depend neither on the rows computed along with it nor on the
thread.

All of them take flat arrays, and positions in them; sizes along vectors are multiples of `lanes`.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from itertools import product
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils
from numba.extending import intrinsic, overload

from dpserver.jit import compiles_for_x86, compiles_with

DEGREE: Final = 7
"""Degree of the polynomials of a table."""

_BITS: Final = 512 if compiles_with("avx512f") else 256 if compiles_with("avx2") else 128
_HAS_32_REGISTERS: Final = _BITS == 512 or not compiles_for_x86()
TILE_ROWS: Final = 8 if _HAS_32_REGISTERS else 4
TILE_VECTORS: Final = 3
RECORD: Final = 8
"""Numbers from one edge to the next; what is written to a record may run on to the end of a vector."""
CHUNK: Final = 4 if _HAS_32_REGISTERS else 1
"""Vectors of a row of moments that are held in registers at a time, four rows of them."""

cgutils: Any = _cgutils
_I64 = ir.IntType(64)
_I32 = ir.IntType(32)


def lanes(dtype: np.dtype[Any] | type) -> int:
    """Numbers of a dtype in one vector."""
    return _BITS // (8 * np.dtype(dtype).itemsize)


def lanes_of(array: np.ndarray[Any, Any]) -> int:
    """Numbers of an array in one vector; numba knows it when it compiles."""
    return lanes(array.dtype)


@overload(lanes_of)
def _lanes_of(array):  # type: ignore[no-untyped-def]  # numba compares this signature with that of the lambda
    count = _BITS // array.dtype.bitwidth
    return lambda array: count


class Emitter:
    """Writes instructions on vectors of one type.

    Args:
        context: numba's.
        builder: where the instructions go.
        dtype: numba's type of a number.
    """

    def __init__(self, context: Any, builder: Any, dtype: Any) -> None:
        self.builder = builder
        self.context = context
        self.is_double = dtype == types.float64
        self.scalar = ir.DoubleType() if self.is_double else ir.FloatType()
        self.bytes = 8 if self.is_double else 4
        self.lanes = _BITS // (8 * self.bytes)
        self.type = ir.VectorType(self.scalar, self.lanes)
        self.integer = ir.IntType(8 * self.bytes)
        self.integers = ir.VectorType(self.integer, self.lanes)
        self.undefined = ir.Constant(self.type, ir.Undefined)

    def data(self, array_type: Any, array: Any) -> Any:
        """The address of an array's first number."""
        return self.context.make_array(array_type)(self.context, self.builder, array).data

    def index(self, value: int) -> Any:
        """A position that is known."""
        return ir.Constant(_I64, value)

    def at(self, pointer: Any, *offsets: Any) -> Any:
        """The address some numbers further on."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset if isinstance(offset, ir.Value) else self.index(offset)])
        return pointer

    def load(self, pointer: Any) -> Any:
        """The vector at an address."""
        return self.builder.load(self.builder.bitcast(pointer, self.type.as_pointer()), align=self.bytes)

    def store(self, vector: Any, pointer: Any) -> None:
        """Write a vector to an address."""
        self.builder.store(vector, self.builder.bitcast(pointer, self.type.as_pointer()), align=self.bytes)

    def splat(self, number: Any) -> Any:
        """A vector of one number."""
        one = self.builder.insert_element(self.undefined, number, ir.Constant(_I32, 0))
        mask = ir.Constant(ir.VectorType(_I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(one, self.undefined, mask)

    def constant(self, value: float) -> Any:
        """A vector of one number that is known."""
        return ir.Constant(self.type, [value] * self.lanes)

    def integer_constant(self, value: int) -> Any:
        """A vector of one integer that is known."""
        return ir.Constant(self.integers, [value] * self.lanes)

    def call(self, name: str, result: Any, *args: Any, fastmath: tuple[str, ...] = ()) -> Any:
        """Call one of LLVM's intrinsics on vectors."""
        kind = ir.FunctionType(result, [a.type for a in args])
        suffix = f"v{self.lanes}f{8 * self.bytes}"
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.{name}.{suffix}")
        return self.builder.call(function, args, fastmath=fastmath)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """A b + c."""
        return self.call("fmuladd", self.type, a, b, c)

    def sum(self, vector: Any) -> Any:
        """The sum of its numbers, in the order of a tree."""
        zero = ir.Constant(self.scalar, 0.0)
        return self.call("vector.reduce.fadd", self.scalar, zero, vector, fastmath=("reassoc",))

    def sums(self, vectors: list[Any]) -> list[Any]:
        """The sums of several vectors, one after the other in as few vectors as hold them; then zeros."""
        found = []
        for first in range(0, len(vectors), self.lanes):
            group: list[Any] = [None] * self.lanes
            n_bits = self.lanes.bit_length() - 1
            for k, vector in enumerate(vectors[first : first + self.lanes]):
                group[int(f"{k:0{n_bits}b}"[::-1], 2)] = vector
            half = self.lanes
            while half > 1:
                half //= 2
                group = [self._pairwise(a, b, half) for a, b in zip(group[::2], group[1::2], strict=True)]
            found.append(group[0])
        return found

    def _pairwise(self, a: Any, b: Any, half: int) -> Any:
        """In every 2 `half` numbers add the second half of `a` to its first one, and the first of `b` to its second."""
        if a is None:
            return None
        b = self.constant(0.0) if b is None else b
        first, n = [(k // half) % 2 == 0 for k in range(self.lanes)], self.lanes
        kept = [k if is_first else n + k for k, is_first in enumerate(first)]
        moved = [k + half if is_first else n + k - half for k, is_first in enumerate(first)]
        masks = [ir.Constant(ir.VectorType(_I32, n), mask) for mask in (kept, moved)]
        return self.builder.fadd(*(self.builder.shuffle_vector(a, b, mask) for mask in masks))

    def variable(self, value: Any) -> Any:
        """A vector that changes in a loop; LLVM keeps it in a register."""
        slot = cgutils.alloca_once(self.builder, value.type)
        self.builder.store(value, slot)
        return slot

    def first(self, count: Any, vector: Any) -> Any:
        """Its first numbers, and zeros."""
        places = ir.Constant(ir.VectorType(_I64, self.lanes), list(range(self.lanes)))
        undefined = ir.Constant(places.type, ir.Undefined)
        limit = self.builder.insert_element(undefined, count, ir.Constant(_I32, 0))
        limit = self.builder.shuffle_vector(
            limit, undefined, ir.Constant(ir.VectorType(_I32, self.lanes), [0] * self.lanes)
        )
        is_in = self.builder.icmp_signed("<", places, limit)
        return self.builder.select(is_in, vector, self.constant(0.0))


Body = Callable[[Emitter, Any, dict[str, Any]], None]


def kernel(arrays: str, integers: str) -> Callable[[Body], Any]:
    """Make a function for numba of a body that emits instructions.

    Args:
        arrays: names of the arrays, one dtype for the first of them and all vectors.
        integers: names of the integers that follow.
    """
    array_names, integer_names = arrays.split(), integers.split()

    def wrap(body: Body) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emitter = Emitter(context, builder, signature.args[0].dtype)
            named = {
                name: emitter.data(kind, value)
                for name, kind, value in zip(array_names, signature.args, args, strict=False)
            }
            named.update(zip(integer_names, args[len(array_names) :], strict=True))
            body(emitter, builder, named)
            return context.get_dummy_value()

        def typed(_context: Any, *given: Any) -> Any:
            return types.void(*given[: len(array_names)], *[types.intp] * len(integer_names)), codegen

        typed.__name__, typed.__doc__ = body.__name__, body.__doc__
        names = ["context", *array_names, *integer_names]
        parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        typed.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # numba takes the names from there
        return intrinsic(typed)

    return wrap


@kernel("a w start c", "a_at a_step w_at start_at start_step c_at c_step depth")
def product_tile(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """C = start + A W for TILE_ROWS rows of A and C, and TILE_VECTORS vectors of columns of W and C.

    The columns of W lie packed, `depth` rows of them one after the other. `start` may be C itself.
    """
    width = TILE_VECTORS * v.lanes
    a = [v.at(x["a"], x["a_at"], builder.mul(x["a_step"], v.index(r))) for r in range(TILE_ROWS)]
    c = [v.at(x["c"], x["c_at"], builder.mul(x["c_step"], v.index(r))) for r in range(TILE_ROWS)]
    start = [v.at(x["start"], x["start_at"], builder.mul(x["start_step"], v.index(r))) for r in range(TILE_ROWS)]
    w = v.at(x["w"], x["w_at"])
    tile = list(product(range(TILE_ROWS), range(TILE_VECTORS)))
    sums = {(r, n): v.variable(v.load(v.at(start[r], n * v.lanes))) for r, n in tile}
    with cgutils.for_range(builder, x["depth"], intp=_I64) as loop:
        row = v.at(w, builder.mul(loop.index, v.index(width)))
        columns = [v.load(v.at(row, n * v.lanes)) for n in range(TILE_VECTORS)]
        for r in range(TILE_ROWS):
            factor = v.splat(builder.load(v.at(a[r], loop.index)))
            for n in range(TILE_VECTORS):
                builder.store(v.fma(factor, columns[n], builder.load(sums[r, n])), sums[r, n])
    for r, n in tile:
        v.store(builder.load(sums[r, n]), v.at(c[r], n * v.lanes))


def _polynomial(v: Emitter, x: dict[str, Any], base: Any, place: Any, n: int, has_slope: bool) -> tuple[Any, Any]:
    """Value, and derivative by the place in the interval, of one vector of columns by Horner's scheme."""

    def coefficient(power: int) -> Any:
        return v.load(v.at(base, v.builder.mul(x["columns"], v.index(power)), n * v.lanes))

    value, slope = coefficient(DEGREE), None
    for power in range(DEGREE - 1, -1, -1):
        if has_slope:
            slope = value if slope is None else v.fma(slope, place, value)
        value = v.fma(value, place, coefficient(power))
    return value, slope


def _edge(v: Emitter, builder: Any, x: dict[str, Any], e: Any) -> tuple[Any, Any, list[Any]]:
    """Where an edge's coefficients are, its place in the interval, and its row of the environment."""
    interval = builder.sext(builder.load(v.at(x["interval"], e)), _I64)
    step = builder.mul(x["columns"], v.index(DEGREE + 1))
    base = v.at(x["table"], x["table_at"], builder.mul(interval, step))
    record = v.at(x["edge"], builder.mul(e, v.index(RECORD)))
    numbers = [v.splat(builder.load(v.at(record, k))) for k in range(5)]
    return base, numbers[0], numbers[1:]


def _each_count(v: Emitter, n_vectors: Any, emit: Callable[[int], None]) -> None:
    """Write a loop for every number of vectors up to CHUNK, of which one runs."""
    for n in range(1, CHUNK + 1):
        with v.builder.if_then(v.builder.icmp_signed("==", n_vectors, v.index(n))):
            emit(n)


@kernel("table edge interval moment", "table_at columns start stop moment_at moment_step n_vectors")
def add_moments(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """M_k += Σ_edges R_k φ(s) for the four rows k, on `n_vectors` vectors of columns, CHUNK at most."""
    rows = [v.at(x["moment"], x["moment_at"], builder.mul(x["moment_step"], v.index(k))) for k in range(4)]

    def emit(n_vectors: int) -> None:
        block = list(product(range(4), range(n_vectors)))
        sums = {(k, n): v.variable(v.load(v.at(rows[k], n * v.lanes))) for k, n in block}
        with cgutils.for_range(builder, builder.sub(x["stop"], x["start"]), intp=_I64) as loop:
            base, place, environment = _edge(v, builder, x, builder.add(loop.index, x["start"]))
            for n in range(n_vectors):
                value, _ = _polynomial(v, x, base, place, n, has_slope=False)
                for k in range(4):
                    builder.store(v.fma(environment[k], value, builder.load(sums[k, n])), sums[k, n])
        for k, n in block:
            v.store(builder.load(sums[k, n]), v.at(rows[k], n * v.lanes))

    _each_count(v, x["n_vectors"], emit)


@kernel("table edge interval moment gradient", "table_at columns start stop moment_at moment_step n_vectors is_first")
def add_gradients(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """Derivatives of an energy by the place in the interval, and by the four R_k, of each edge.

    `moment` holds the derivatives by M; what `n_vectors` vectors of columns give is written to `gradient`, or added.
    """
    rows = [v.at(x["moment"], x["moment_at"], builder.mul(x["moment_step"], v.index(k))) for k in range(4)]
    is_first = builder.icmp_signed("!=", x["is_first"], v.index(0))

    def emit(n_vectors: int) -> None:
        by_moment = {(k, n): v.load(v.at(rows[k], n * v.lanes)) for k, n in product(range(4), range(n_vectors))}
        with cgutils.for_range(builder, builder.sub(x["stop"], x["start"]), intp=_I64) as loop:
            e = builder.add(loop.index, x["start"])
            base, place, environment = _edge(v, builder, x, e)
            sums = [v.constant(0.0)] * 5
            for n in range(n_vectors):
                value, slope = _polynomial(v, x, base, place, n, has_slope=True)
                by_value = v.constant(0.0)
                for k in range(4):
                    by_value = v.fma(environment[k], by_moment[k, n], by_value)
                    sums[k + 1] = v.fma(by_moment[k, n], value, sums[k + 1])
                sums[0] = v.fma(by_value, slope, sums[0])
            record = v.at(x["gradient"], builder.mul(e, v.index(RECORD)))
            for part, total in enumerate(v.sums(sums)):
                place = v.at(record, part * v.lanes)
                before = builder.select(is_first, v.constant(0.0), v.load(place))
                v.store(builder.fadd(before, total), place)

    _each_count(v, x["n_vectors"], emit)


@kernel("table edge interval sums", "table_at columns start stop sums_at n_vectors")
def add_values(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """M += Σ_edges φ(s), on `n_vectors` vectors of columns, CHUNK at most."""
    row = v.at(x["sums"], x["sums_at"])

    def emit(n_vectors: int) -> None:
        sums = [v.variable(v.load(v.at(row, n * v.lanes))) for n in range(n_vectors)]
        with cgutils.for_range(builder, builder.sub(x["stop"], x["start"]), intp=_I64) as loop:
            base, place, _ = _edge(v, builder, x, builder.add(loop.index, x["start"]))
            for n, total in enumerate(sums):
                value, _ = _polynomial(v, x, base, place, n, has_slope=False)
                builder.store(builder.fadd(builder.load(total), value), total)
        for n, total in enumerate(sums):
            v.store(builder.load(total), v.at(row, n * v.lanes))

    _each_count(v, x["n_vectors"], emit)


@kernel("table edge interval by_sums gradient", "table_at columns start stop sums_at n_vectors is_first")
def add_slopes(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """Derivative of an energy by the place in the interval of each edge, from those by M; written or added."""
    row = v.at(x["by_sums"], x["sums_at"])
    is_first = builder.icmp_signed("!=", x["is_first"], v.index(0))

    def emit(n_vectors: int) -> None:
        by_sums = [v.load(v.at(row, n * v.lanes)) for n in range(n_vectors)]
        with cgutils.for_range(builder, builder.sub(x["stop"], x["start"]), intp=_I64) as loop:
            e = builder.add(loop.index, x["start"])
            base, place, _ = _edge(v, builder, x, e)
            total = v.constant(0.0)
            for n, by_sum in enumerate(by_sums):
                _, slope = _polynomial(v, x, base, place, n, has_slope=True)
                total = v.fma(by_sum, slope, total)
            target = v.at(x["gradient"], builder.mul(e, v.index(RECORD)))
            before = builder.select(is_first, ir.Constant(v.scalar, 0.0), builder.load(target))
            builder.store(builder.fadd(before, v.sum(total)), target)

    _each_count(v, x["n_vectors"], emit)


@kernel("a out", "a_at a_step i j count out_at")
def products(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """out_m = Σ_k A_ki A_k,j+m over four rows k, m < count; more is written after it, up to a vector."""
    rows = [v.at(x["a"], x["a_at"], builder.mul(x["a_step"], v.index(k))) for k in range(4)]
    factors = [v.splat(builder.load(v.at(row, x["i"]))) for row in rows]
    out = v.at(x["out"], x["out_at"])
    n_vectors = builder.sdiv(builder.add(x["count"], v.index(v.lanes - 1)), v.index(v.lanes))
    with cgutils.for_range(builder, n_vectors, intp=_I64) as loop:
        m = builder.mul(loop.index, v.index(v.lanes))
        total = v.constant(0.0)
        for factor, row in zip(factors, rows, strict=True):
            total = v.fma(factor, v.load(v.at(row, x["j"], m)), total)
        v.store(total, v.at(out, m))


@kernel("a gradient by_a", "a_at a_step i j count gradient_at")
def add_products_gradient(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """Add to the derivatives by A what `products` passes on of the derivatives by its output."""
    steps = [builder.mul(x["a_step"], v.index(k)) for k in range(4)]
    rows = [v.at(x["a"], x["a_at"], step) for step in steps]
    targets = [v.at(x["by_a"], x["a_at"], step) for step in steps]
    factors = [v.splat(builder.load(v.at(row, x["i"]))) for row in rows]
    sums = [v.variable(v.constant(0.0)) for _ in rows]
    n_vectors = builder.sdiv(builder.add(x["count"], v.index(v.lanes - 1)), v.index(v.lanes))
    with cgutils.for_range(builder, n_vectors, intp=_I64) as loop:
        m = builder.mul(loop.index, v.index(v.lanes))
        given = v.first(builder.sub(x["count"], m), v.load(v.at(x["gradient"], x["gradient_at"], m)))
        for factor, row, target, total in zip(factors, rows, targets, sums, strict=True):
            place = v.at(target, x["j"], m)
            v.store(v.fma(given, factor, v.load(place)), place)
            builder.store(v.fma(given, v.load(v.at(row, x["j"], m)), builder.load(total)), total)
    for target, total in zip(targets, sums, strict=True):
        place = v.at(target, x["i"])
        builder.store(builder.fadd(builder.load(place), v.sum(builder.load(total))), place)


@kernel("a weights outputs slopes", "at weights_at to count")
def tanh_layer(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """Find w tanh(a) and w (1 - tanh(a)²), with the relative accuracy of the type.

    tanh|x| = -m/(m + 2), m = exp(-2|x|) - 1
    """
    with cgutils.for_range(builder, builder.sdiv(x["count"], v.index(v.lanes)), intp=_I64) as loop:
        place = builder.mul(loop.index, v.index(v.lanes))
        given = v.load(v.at(x["a"], x["at"], place))
        weight = v.load(v.at(x["weights"], x["weights_at"], place))
        size = v.call("fabs", v.type, given)
        m = _exp_minus_one(v, builder.fmul(v.constant(-2.0), _at_most(v, size, 22.0)))
        y = builder.fdiv(builder.fneg(m), builder.fadd(m, v.constant(2.0)))
        slope = builder.fmul(weight, v.fma(builder.fneg(y), y, v.constant(1.0)))
        v.store(builder.fmul(weight, v.call("copysign", v.type, y, given)), v.at(x["outputs"], x["to"], place))
        v.store(slope, v.at(x["slopes"], x["to"], place))


def _at_most(v: Emitter, x: Any, limit: float) -> Any:
    """The smaller one; not a number stays what it is."""
    return v.builder.select(v.builder.fcmp_ordered(">", x, v.constant(limit)), v.constant(limit), x)


def _exp_minus_one(v: Emitter, y: Any) -> Any:
    """exp(y) - 1 for -44 ≤ y ≤ 0: y = n ln 2 + f, a Taylor polynomial in f, scaled by 2ⁿ."""
    builder = v.builder
    mantissa, bias, degree = (52, 1023, 13) if v.is_double else (23, 127, 7)
    shifter = v.constant(1.5 * 2.0**mantissa)  # adding it rounds to a whole number, found in the last bits
    shifted = v.fma(y, v.constant(1.4426950408889634), shifter)
    n = builder.fsub(shifted, shifter)
    # ln 2 in two parts, the first with so few bits that n times it is exact.
    high, low = (0.693147180369123816490, 1.90821492927058770002e-10) if v.is_double else (0.693359375, -2.12194440e-4)
    f = v.fma(n, v.constant(-low), v.fma(n, v.constant(-high), y))
    factorial, coefficients = 1.0, []
    for k in range(1, degree + 1):
        factorial *= k
        coefficients.append(1.0 / factorial)
    p = v.constant(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        p = v.fma(p, f, v.constant(coefficient))
    p = builder.fmul(p, f)
    bits = builder.shl(builder.bitcast(shifted, v.integers), v.integer_constant(mantissa))
    scale = builder.bitcast(builder.add(bits, v.integer_constant(bias << mantissa)), v.type)
    return v.fma(scale, p, builder.fsub(scale, v.constant(1.0)))


def _codegen_next(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    pointer = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "acq_rel")


def _take_number(_context: Any, counter: Any) -> Any:
    """Give the next number of a counter, (1,), int64, to one of several threads.

    Who gets it sees what was written by those that came before.
    """
    return types.int64(counter), _codegen_next


take_number: Any = intrinsic(_take_number)
