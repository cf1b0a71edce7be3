"""Tables of functions of one variable: embedding nets as piecewise polynomials, in as few columns as they need.

On each interval a polynomial of degree 7 takes over value and first three derivatives at both ends, so that what is
computed from it is smooth. Intervals are bins of one width, each cut into equal parts where the function is sharp.

The many outputs of a net are smooth functions of one number, and nearly dependent on each other: their columns are

    G_a(s) = Σ_p φ_p(s) C_pa

with fewer φ than G, to the accuracy asked for (singular value decomposition of samples of values and derivatives).
Moments are then sums of φ, and C enters once per atom instead of once per edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import factorial
from typing import Final

import numpy as np

from dpserver.frames import Floats, Ints
from dpserver.kernels.linear import product, pseudo_inverse, right_singular_vectors

Derivatives = Callable[[Floats, int], list[Floats]]
"""From s, (n,), and an order m: value and derivatives by s up to m, each (n, n_channels)."""

MATCHED: Final = 3
"""Derivatives that two neighbouring polynomials share."""
DEGREE: Final = 2 * MATCHED + 1
_MOST_BINS: Final = 256
_MANY_PARTS: Final = 64
_FINE_SHARE: Final = 0.75
_ASIDE: Final = 1e-12
"""Where a derivative jumps it is taken on this side, as a part of an interval."""
_PLACES: Final = np.array([0.07, 0.25, 0.5, 0.75, 0.93])
"""Where in an interval polynomials are held against the function."""


@dataclass(frozen=True)
class TableError:
    """Largest deviation of a table from its function, relative to the root mean square of what deviates.

    Attributes:
        value: of the function.
        first: of its derivative.
        second: of its second derivative.
    """

    value: float
    first: float
    second: float

    def largest(self, other: TableError) -> TableError:
        """The larger one of each number of two tables."""
        return TableError(max(self.value, other.value), max(self.first, other.first), max(self.second, other.second))


@dataclass(frozen=True, eq=False)
class Table:
    """A function of s from 0 on, with many channels.

    Attributes:
        width: of a bin.
        parts: intervals in each bin, (n_bins,).
        coefficients: of powers of the place in the interval, 0 to 1, (n_intervals, DEGREE + 1, n_columns).
        mix: from columns to channels, (n_columns, n_channels); None where they are the same.
        error: against the function.
    """

    width: float
    parts: Ints
    coefficients: Floats
    mix: Floats | None
    error: TableError

    @property
    def first(self) -> Ints:
        """First interval of each bin, (n_bins,)."""
        return np.asarray(np.cumsum(self.parts) - self.parts, dtype=np.int64)

    def columns(self, s: Floats) -> Floats:
        """The columns at s, (n, n_columns)."""
        place = np.minimum(s / self.width, np.nextafter(len(self.parts), 0))
        here = place.astype(np.int64)
        place = (place - here) * self.parts[here]
        part = place.astype(np.int64)
        interval = self.first[here] + part
        powers = (place - part)[:, None] ** np.arange(DEGREE + 1)
        return np.asarray(np.einsum("np,npc->nc", powers, self.coefficients[interval]))


@dataclass(frozen=True, eq=False)
class Intervals:
    """Polynomials of all channels, interval by interval.

    Attributes:
        width: of a bin.
        parts: intervals in each bin, (n_bins,).
        coefficients: of powers of the place in the interval, 0 to 1, (n_intervals, DEGREE + 1, n_channels).
    """

    width: float
    parts: Ints
    coefficients: Floats


class Tabulation:
    """Polynomials for a function from 0 to `end`, from which tables are made.

    Args:
        function: to be tabulated.
        end: of the range.
        tolerance: largest deviation of value and first derivative, as in `TableError`; a function that is too sharp
            for it is tabulated as finely as is reasonable.
        break_at: where the third derivative of the function jumps, if anywhere: no polynomial spans that place.
        intervals: of the same function, range and tolerance, where such have been kept; else they are made.

    Attributes:
        end: of the range.
        intervals: that the range is cut into.
    """

    def __init__(
        self,
        function: Derivatives,
        end: float,
        tolerance: float,
        break_at: float | None = None,
        intervals: Intervals | None = None,
    ) -> None:
        self._function = function
        self._tolerance = tolerance
        self._scale = _Scale.of(function, end)
        self.end = end
        self.intervals = self._cut(break_at) if intervals is None else intervals
        width, parts = self.intervals.width, self.intervals.parts
        starts = [b * width + np.arange(n) * (width / n) for b, n in enumerate(parts)]
        self._fit = _Fit(np.concatenate(starts), np.repeat(width / parts, parts), self.intervals.coefficients)

    def _cut(self, break_at: float | None) -> Intervals:
        """Cut the range into intervals so small that polynomials are near the function."""
        function, end, tolerance, scale = self._function, self.end, self._tolerance, self._scale
        bins = 4
        is_fine = np.zeros(bins, dtype=bool)
        while is_fine.mean() < _FINE_SHARE and bins < _MOST_BINS:
            bins *= 2
            width = end * (1 + 1e-9) / bins
            if break_at is not None and break_at < end:
                width = break_at / round(max(break_at / width, 1))
            starts = _places(math.ceil(end * (1 + 1e-9) / width), width)
            fit = _Fit.of(function, starts, width, break_at)
            is_fine = fit.deviation(function, scale) <= 0.5 * tolerance
        parts = np.ones(len(starts), dtype=np.int64)
        coefficients = [c[None] for c in fit.coefficients]
        for b in np.flatnonzero(~is_fine):
            deviation, before = np.inf, np.inf
            # Where halving intervals does not help any more, a kink or rounding is to blame.
            while deviation > 0.5 * tolerance and (parts[b] < _MANY_PARTS or deviation < 0.5 * before):
                parts[b] *= 2
                step = width / parts[b]
                local = _Fit.of(function, b * width + _places(int(parts[b]), step), step, break_at)
                before, deviation = deviation, float(local.deviation(function, scale).max())
            coefficients[b] = local.coefficients
        return Intervals(width, parts, np.concatenate(coefficients))

    def table(self) -> Table:
        """A table with one column for each channel."""
        return self._table(self._fit.coefficients, None)

    def compressed(self, samples: Floats) -> Table | None:
        """A table with fewer columns, and the matrix to channels; None where that takes as many.

        Args:
            samples: values of s that are as frequent here as in use, for which columns come in the order of their
                importance; the tolerance is kept in the whole range.
        """
        mix = _compress(self._fit, self._scale, self._tolerance, self._function(samples, 1))
        return None if mix is None else self._table(product(self._fit.coefficients, pseudo_inverse(mix)), mix)

    def _table(self, coefficients: Floats, mix: Floats | None) -> Table:
        error = self._fit.error(self._function, self._scale, coefficients, mix)
        return Table(self.intervals.width, self.intervals.parts, coefficients, mix, error)


@dataclass(frozen=True)
class _Scale:
    """Root mean square over s of the largest channel: of value, first and second derivative."""

    value: float
    first: float
    second: float

    @classmethod
    def of(cls, function: Derivatives, end: float) -> _Scale:
        sampled = function(np.linspace(0, end, 2000), 2)
        value, first, second = (float(np.sqrt(np.mean(np.abs(d).max(axis=1) ** 2))) for d in sampled)
        value = max(value, np.finfo(np.float64).tiny)
        first = max(first, value / end)  # a nearly constant function has no slope to speak of
        return cls(value, first, max(second, first / end))


@dataclass(frozen=True, eq=False)
class _Fit:
    """Polynomials on intervals: where they start, their widths, their coefficients in the place from 0 to 1."""

    starts: Floats
    widths: Floats
    coefficients: Floats

    @classmethod
    def of(cls, function: Derivatives, starts: Floats, width: float, break_at: float | None = None) -> _Fit:
        if break_at is None:
            knots = np.append(starts, starts[-1] + width)
            found = function(knots, MATCHED)
            low, high = [d[:-1] for d in found], [d[1:] for d in found]
        else:
            inside = _ASIDE * width
            low, high = function(starts + inside, MATCHED), function(starts + width - inside, MATCHED)
        ends = np.stack([d * width**order for side in (low, high) for order, d in enumerate(side)])
        return cls(starts, np.full(len(starts), width), np.einsum("pq,qnc->npc", _HERMITE, ends))

    def at(self, places: Floats, coefficients: Floats, order: int) -> Floats:
        """A derivative by s, (n_places, n_intervals, n_columns)."""
        powers = np.zeros((len(places), DEGREE + 1))
        for p in range(order, DEGREE + 1):
            powers[:, p] = factorial(p) / factorial(p - order) * places ** (p - order)
        values = np.einsum("tp,npc->tnc", powers, coefficients)
        return np.asarray(values / self.widths[:, None] ** order)

    def deviation(self, function: Derivatives, scale: _Scale) -> Floats:
        """The larger deviation of value and first derivative on each interval, (n_intervals,)."""
        points = (self.starts + _PLACES[:, None] * self.widths).ravel()
        worst = np.zeros(len(self.starts))
        for order, (exact, size) in enumerate(zip(function(points, 1), (scale.value, scale.first), strict=True)):
            found = self.at(_PLACES, self.coefficients, order)
            worst = np.maximum(worst, np.abs(found - exact.reshape(found.shape)).max(axis=(0, 2)) / size)
        return worst

    def error(self, function: Derivatives, scale: _Scale, reduced: Floats, mix: Floats | None) -> TableError:
        """Of what the table gives, at places between those that made it."""
        points = (self.starts + _PLACES[:, None] * self.widths).ravel()
        found = []
        for order, exact in enumerate(function(points, 2)):
            values = self.at(_PLACES, reduced, order)
            values = values if mix is None else product(values, mix)
            found.append(float(np.abs(values - exact.reshape(values.shape)).max()))
        return TableError(found[0] / scale.value, found[1] / scale.first, found[2] / scale.second)


def _places(n: int, step: float) -> Floats:
    """Multiples of a step from 0 on, (n,)."""
    return np.asarray(step * np.arange(n))


def _compress(fit: _Fit, scale: _Scale, tolerance: float, frequent: Sequence[Floats]) -> Floats | None:
    """The matrix C, (n_columns, n_channels), with columns φ of size 1; None where there would be as many as channels.

    Args:
        fit: polynomials.
        scale: of value and derivative.
        tolerance: of both.
        frequent: value and derivative where they matter most, (n, n_channels) each.
    """
    places = np.array([0.0, 0.35, 0.7])
    n_channels = fit.coefficients.shape[2]
    sizes = (scale.value, scale.first)
    everywhere = [fit.at(places, fit.coefficients, k).reshape(-1, n_channels) / sizes[k] for k in range(2)]
    samples = np.concatenate(everywhere)
    usual = np.concatenate([f / size for f, size in zip(frequent, sizes, strict=True)])
    directions = right_singular_vectors(usual)

    def is_enough(kept: Floats) -> bool:
        return float(np.abs(samples - product(samples, kept.T, kept)).max()) <= 0.5 * tolerance

    low, high = 1, len(directions)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(directions[:middle]) else (middle + 1, high)
    kept = directions[:low]
    if low >= n_channels or not is_enough(kept):
        return None
    largest = np.abs(product(samples, kept.T)).max(axis=0) * scale.value
    return np.asarray(kept * np.maximum(largest, np.finfo(np.float64).tiny)[:, None])


def _hermite() -> Floats:
    """From scaled derivatives at 0 and at 1 to the coefficients of the polynomial that has them."""
    conditions = np.zeros((DEGREE + 1, DEGREE + 1))
    for order in range(MATCHED + 1):
        conditions[order, order] = factorial(order)
        for p in range(order, DEGREE + 1):
            conditions[MATCHED + 1 + order, p] = factorial(p) / factorial(p - order)
    return np.asarray(np.rint(np.linalg.inv(conditions) * 6) / 6)


_HERMITE: Final = _hermite()
