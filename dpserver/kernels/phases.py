"""Vectors of atoms that waves pass through: the inner loops of the sum over all waves of `waves`.

The phase of a wave at an atom is that of its first two components times that of its third. What depends on the first
two is found once for all waves that share them; and a third component and its opposite share their sums over atoms, and
what atoms take of them. Tables of cosines and sines have rows of `room` numbers, one for each atom, with zeros after
the last; `room` is a multiple of 16.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils as _cgutils

from dpserver.kernels.simd import Emitter, kernel

cgutils: Any = _cgutils
_I64 = ir.IntType(64)


@kernel("first second charges phases", "first_at first_gap second_at second_gap is_negative room")
def join_phases(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """exp(i(α ± β)) of atoms, from cosines and sines of α and β that lie a gap apart, alone and times their charges.

    `phases` are rows: real and imaginary part, and the two times the charge.
    """
    is_negative = builder.icmp_signed("!=", x["is_negative"], v.index(0))
    with cgutils.for_range(builder, builder.sdiv(x["room"], v.index(v.lanes)), intp=_I64) as each:
        at = builder.mul(each.index, v.index(v.lanes))
        c1, c2 = (v.load(v.at(x[name], x[f"{name}_at"], at)) for name in ("first", "second"))
        s1, s2 = (v.load(v.at(x[name], x[f"{name}_at"], x[f"{name}_gap"], at)) for name in ("first", "second"))
        s2 = builder.select(is_negative, builder.fneg(s2), s2)
        real = v.fma(builder.fneg(s1), s2, builder.fmul(c1, c2))
        imaginary = v.fma(s1, c2, builder.fmul(c1, s2))
        charge = v.load(v.at(x["charges"], at))
        for k, row in enumerate((real, imaginary, builder.fmul(charge, real), builder.fmul(charge, imaginary))):
            v.store(row, v.at(x["phases"], builder.mul(x["room"], v.index(k)), at))


@kernel("phases third sums", "third_at third_gap sums_at room")
def sum_phases(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """Σ q re c, Σ q im s, Σ q im c and Σ q re s over atoms, with their cosines c and sines s of a third angle."""
    rows = [v.at(x["phases"], builder.mul(x["room"], v.index(k))) for k in (2, 3)]
    third = v.at(x["third"], x["third_at"])
    totals = [[v.variable(v.constant(0.0)) for _ in range(4)] for _ in range(2)]
    with cgutils.for_range(builder, builder.sdiv(x["room"], v.index(2 * v.lanes)), intp=_I64) as each:
        for part, total in enumerate(totals):
            at = builder.add(builder.mul(each.index, v.index(2 * v.lanes)), v.index(part * v.lanes))
            real, imaginary = (v.load(v.at(row, at)) for row in rows)
            c, s = v.load(v.at(third, at)), v.load(v.at(third, x["third_gap"], at))
            for place, a, b in zip(total, (real, imaginary, imaginary, real), (c, s, c, s), strict=True):
                builder.store(v.fma(a, b, builder.load(place)), place)
    both = [builder.fadd(builder.load(a), builder.load(b)) for a, b in zip(*totals, strict=True)]
    for k, vector in enumerate(v.sums(both)):
        v.store(vector, v.at(x["sums"], x["sums_at"], k * v.lanes))


@kernel("phases third weights found", "third_gap n_terms n1 n2 room")
def add_phases(v: Emitter, builder: Any, x: dict[str, Any]) -> None:
    """Add what waves that differ in the third component alone make at atoms.

    `found` are rows: the potential, and its derivatives by 2π times the fractional coordinates. `weights` are, for each
    third component k, factors of cos and sin of its angle: in the parts of the potential that go with the real and the
    imaginary part of the other phases, and in those of its derivative by the third coordinate.
    """
    rows = [v.at(x["phases"], builder.mul(x["room"], v.index(k))) for k in range(2)]
    numbers = [v.splat(builder.sitofp(x[name], v.scalar)) for name in ("n1", "n2")]
    with cgutils.for_range(builder, builder.sdiv(x["room"], v.index(v.lanes)), intp=_I64) as each:
        at = builder.mul(each.index, v.index(v.lanes))
        totals = [v.variable(v.constant(0.0)) for _ in range(4)]
        for total in totals:
            builder.store(v.constant(0.0), total)
        with cgutils.for_range(builder, x["n_terms"], intp=_I64) as term:
            place = v.at(x["third"], builder.mul(term.index, x["room"]), at)
            both = v.load(place), v.load(v.at(place, x["third_gap"]))
            factors = v.at(x["weights"], builder.mul(term.index, v.index(8)))
            for k, total in enumerate(totals):
                for part, value in enumerate(both):
                    factor = v.splat(builder.load(v.at(factors, 2 * k + part)))
                    builder.store(v.fma(factor, value, builder.load(total)), total)
        real, imaginary = (v.load(v.at(row, at)) for row in rows)
        u, w, slope_w, slope_u = (builder.load(total) for total in totals)
        minus = builder.fneg(imaginary)
        slope = v.fma(minus, u, builder.fmul(real, w))
        by_third = v.fma(minus, slope_u, builder.fmul(real, slope_w))
        for k, (a, b) in enumerate(((real, u), (numbers[0], slope), (numbers[1], slope))):
            target = v.at(x["found"], builder.mul(x["room"], v.index(k)), at)
            before = v.load(target) if k else v.fma(imaginary, w, v.load(target))
            v.store(v.fma(a, b, before), target)
        target = v.at(x["found"], builder.mul(x["room"], v.index(3)), at)
        v.store(builder.fadd(v.load(target), by_third), target)
