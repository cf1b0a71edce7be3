"""Fourier transforms of columns against numpy's."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from dpserver.frames import Floats
from dpserver.jit import jit
from dpserver.kernels import fourier

SIZES = [2, 3, 4, 5, 8, 12, 15, 20, 27, 50, 64, 90, 96, 250]


def columns(n: int, m: int, seed: int = 0) -> tuple[Floats, fourier.Rows]:
    """Real and imaginary parts of n rows of m numbers, and where they are; NaN is what is beyond the numbers."""
    step = fourier.stride_of(m)
    made = np.full((2, n, step), np.nan)
    made[:, :, :m] = np.random.default_rng(seed).normal(size=(2, n, m))
    return made, (0, n * step, step)


def empty(made: Floats) -> Floats:
    return np.full_like(made, np.nan)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("m", [1, 8, 13])
def test_columns_are_transformed(n, m):
    given, rows = columns(n, m)
    found, space, back = (empty(given) for _ in range(3))
    kept = given.copy()
    fourier.transform(fourier.plan_of(n), given.ravel(), rows, found.ravel(), rows, space.ravel(), rows, m)
    expected = np.fft.fft(given[0, :, :m] + 1j * given[1, :, :m], axis=0)
    np.testing.assert_allclose(found[0, :, :m] + 1j * found[1, :, :m], expected, rtol=0, atol=1e-15 * n)
    np.testing.assert_array_equal(given, kept)
    there = fourier.inverse_of(rows)
    fourier.transform(fourier.plan_of(n), found.ravel(), there, back.ravel(), there, space.ravel(), rows, m)
    np.testing.assert_allclose(back[:, :, :m] / n, given[:, :, :m], rtol=0, atol=3e-15)


def test_rows_may_lie_apart():
    n, m = 12, 9
    given, rows = columns(n, m)
    step = rows[2]
    wide = np.zeros((n, 2, 3, step))
    wide[:, 0, 1], wide[:, 1, 1] = given
    found, space = empty(given), empty(given)
    apart = (step, 4 * step, 6 * step)
    fourier.transform(fourier.plan_of(n), wide.ravel(), apart, found.ravel(), rows, space.ravel(), rows, m)
    expected = np.fft.fft(given[0, :, :m] + 1j * given[1, :, :m], axis=0)
    np.testing.assert_allclose(found[0, :, :m] + 1j * found[1, :, :m], expected, rtol=0, atol=1e-14)


def test_a_column_is_the_same_beside_any_others():
    given, rows = columns(60, 24)
    found, space = empty(given), empty(given)
    fourier.transform(fourier.plan_of(60), given.ravel(), rows, found.ravel(), rows, space.ravel(), rows, 24)
    alone, one = columns(60, 1)
    alone[:, :, 0] = given[:, :, 17]
    single, space = empty(alone), empty(alone)
    fourier.transform(fourier.plan_of(60), alone.ravel(), one, single.ravel(), one, space.ravel(), one, 1)
    np.testing.assert_array_equal(single[:, :, 0], found[:, :, 17])


def test_rows_lie_an_odd_number_of_vectors_apart():
    for n in range(1, 300):
        step = fourier.stride_of(n)
        assert n <= step < n + 16
        assert step % 16 == 8


@jit
def _split(half: Floats, whole: Floats, turns: Floats, h: int, step: int) -> None:
    for k in range(h + 1):
        a, b, to = k % h * step, (h - k) % h * step, k * step
        im, far = h * step, (h + 1) * step
        fourier.split_row(half, half, whole, turns, a, im + a, b, im + b, to, far + to, 2 * k, step)


@jit
def _join(whole: Floats, half: Floats, turns: Floats, h: int, step: int) -> None:
    for k in range(h):
        a, b, to = k * step, (h - k) * step, k * step
        im, far = h * step, (h + 1) * step
        fourier.join_row(whole, whole, half, turns, a, far + a, b, far + b, to, im + to, 2 * k, step)


@pytest.mark.parametrize("h", [1, 2, 5, 6])
def test_real_numbers_as_half_as_many_complex_ones(h):
    step = 8
    real = np.random.default_rng(h).normal(size=(2 * h, step))
    turns = fourier.turns_of(np.arange(h + 1), 2 * h)
    halved = np.fft.fft(real[::2] + 1j * real[1::2], axis=0)
    half, whole = np.stack([halved.real, halved.imag]), np.zeros((2, h + 1, step))
    _split(half.ravel(), whole.ravel(), turns.ravel(), h, step)
    np.testing.assert_allclose(whole[0] + 1j * whole[1], np.fft.rfft(real, axis=0), rtol=0, atol=1e-14)
    again = np.zeros_like(half)
    _join(whole.ravel(), again.ravel(), turns.ravel(), h, step)
    np.testing.assert_allclose(again, 2 * half, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("n", "m"), [(8, 8), (24, 16), (13, 21)])
def test_rows_become_columns(n, m):
    x = np.random.default_rng(0).normal(size=(n + 8, fourier.stride_of(m)))
    y = np.zeros((m + 8, fourier.stride_of(n)))
    fourier.transpose(x.ravel(), 0, x.shape[1], y.ravel(), 0, y.shape[1], n, m)
    np.testing.assert_array_equal(y[:m, :n], x[:n, :m].T)
