"""The loops with explicit vectors against numpy, on this CPU's vectors and on narrower ones."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from dpserver.jit import jit
from dpserver.kernels import simd
from dpserver.models.packing import aligned

DTYPES = [np.float64, np.float32]
N_INTERVALS, N_EDGES, POWERS = 5, 11, np.arange(simd.DEGREE + 1)


@jit
def _tanh(a: Any, weights: Any, outputs: Any, slopes: Any) -> None:
    simd.tanh_layer(a, weights, outputs, slopes, 0, 0, 0, a.size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh(dtype: Any) -> None:
    rng = np.random.default_rng(3)
    special = [0.0, -0.0, np.inf, -np.inf, *np.zeros(12)]
    x = np.append(rng.normal(size=4000) * 10.0 ** rng.uniform(-12, 2, 4000), special).astype(dtype)
    weights, y, slope = np.full_like(x, 2), np.empty_like(x), np.empty_like(x)
    _tanh(x, weights, y, slope)
    expected = np.tanh(x.astype(np.float64))
    np.testing.assert_allclose(y, 2 * expected, rtol=2 * np.finfo(dtype).eps, atol=0)
    np.testing.assert_allclose(slope, 2 * (1 - expected**2), rtol=0, atol=8 * np.finfo(dtype).eps)
    assert np.signbit(y[4001])
    x[:] = np.nan
    _tanh(x, weights, y, slope)
    assert np.isnan(y).all()


class Edges:
    """A table, edges in its intervals, and what the moments and their derivatives are by numpy."""

    def __init__(self, dtype: Any, n_vectors: int) -> None:
        rng = np.random.default_rng(5)
        self.columns = (n_vectors + 1) * simd.lanes(dtype)
        self.mine = slice(simd.lanes(dtype), self.columns)  # the first vector is left to another chunk
        size = N_INTERVALS * len(POWERS) * self.columns
        self.table = aligned(size, dtype)
        self.table[:] = rng.uniform(-1, 1, size)
        self.edges = aligned(N_EDGES * simd.RECORD + 16, dtype)[: N_EDGES * simd.RECORD].reshape(N_EDGES, simd.RECORD)
        self.edges[:, :5] = rng.uniform(0, 1, (N_EDGES, 5))
        self.interval = rng.integers(0, N_INTERVALS, N_EDGES).astype(np.int32)
        coefficients = self.table.reshape(N_INTERVALS, len(POWERS), self.columns)[self.interval].astype(np.float64)
        place = self.edges[:, :1].astype(np.float64)
        self.value = np.einsum("ep,epc->ec", place**POWERS, coefficients)[:, self.mine]
        slopes = POWERS[1:] * place ** (POWERS[1:] - 1)
        self.slope = np.einsum("ep,epc->ec", slopes, coefficients[:, 1:])[:, self.mine]
        self.rows = self.edges[:, 1:5].astype(np.float64)
        self.moment = aligned(4 * self.columns, dtype)
        self.moment[:] = rng.uniform(-1, 1, 4 * self.columns)


@jit
def _moments(table: Any, edge: Any, interval: Any, moment: Any, columns: int, start: int, stop: int) -> None:
    lanes = simd.lanes_of(moment)
    n = columns // lanes - 1
    simd.add_moments(table, edge, interval, moment, lanes, columns, start, stop, lanes, columns, n)


@jit
def _gradients(table: Any, edge: Any, interval: Any, moment: Any, gradient: Any, columns: int, is_first: bool) -> None:
    lanes = simd.lanes_of(moment)
    n = columns // lanes - 1
    simd.add_gradients(table, edge, interval, moment, gradient, lanes, columns, 2, 9, lanes, columns, n, is_first)


@pytest.mark.parametrize("n_vectors", range(1, simd.CHUNK + 1))
@pytest.mark.parametrize("dtype", DTYPES)
def test_moments(dtype: Any, n_vectors: int) -> None:
    x = Edges(dtype, n_vectors)
    before = x.moment.reshape(4, -1).copy()
    expected = before.astype(np.float64)
    expected[:, x.mine] += x.rows[2:9].T @ x.value[2:9]
    _moments(x.table, x.edges, x.interval, x.moment, x.columns, 2, 9)
    np.testing.assert_allclose(x.moment.reshape(4, -1), expected, rtol=0, atol=100 * np.finfo(dtype).eps)
    once = x.moment.copy()
    _moments(x.table, x.edges, x.interval, x.moment, x.columns, 4, 4)
    np.testing.assert_array_equal(x.moment, once)


@pytest.mark.parametrize("n_vectors", range(1, simd.CHUNK + 1))
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(dtype: Any, n_vectors: int) -> None:
    x = Edges(dtype, n_vectors)
    by_moment = x.moment.reshape(4, -1).astype(np.float64)[:, x.mine]
    expected = np.zeros((N_EDGES, 5))
    expected[2:9, 0] = np.einsum("ek,kc,ec->e", x.rows, by_moment, x.slope)[2:9]
    expected[2:9, 1:] = (x.value @ by_moment.T)[2:9]
    gradient = aligned(N_EDGES * simd.RECORD + 16, dtype)[: N_EDGES * simd.RECORD].reshape(N_EDGES, simd.RECORD)
    gradient[2:9] = 77
    tolerance = 500 * np.sqrt(x.columns) * np.finfo(dtype).eps
    for count in (1, 2):
        _gradients(x.table, x.edges, x.interval, x.moment, gradient, x.columns, count == 1)
        np.testing.assert_allclose(gradient[:9, :5], count * expected[:9], rtol=0, atol=count * tolerance)


@jit
def _products(a: Any, out: Any, step: int, i: int, j: int, count: int) -> None:
    simd.products(a, out, 3, step, i, j, count, 2)


@jit
def _products_gradient(a: Any, gradient: Any, by_a: Any, step: int, i: int, j: int, count: int) -> None:
    simd.add_products_gradient(a, gradient, by_a, 3, step, i, j, count, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("i", "j", "count"), [(0, 0, 1), (0, 0, 30), (4, 4, 26), (3, 10, 17), (7, 20, 2)])
def test_products(dtype: Any, i: int, j: int, count: int) -> None:
    rng, lanes = np.random.default_rng(6), simd.lanes(dtype)
    step = 30 + lanes
    a, out, by_a = (
        aligned(3 + 4 * step + lanes, dtype),
        aligned(2 + 30 + lanes, dtype),
        aligned(3 + 4 * step + lanes, dtype),
    )
    a[:], by_a[:], out[:] = (rng.normal(size=x.size) for x in (a, by_a, out))
    gradient = out.copy()

    def rows(x: Any) -> Any:
        return x[3 : 3 + 4 * step].reshape(4, step).astype(np.float64)

    _products(a, out, step, i, j, count)
    row = rows(a)
    tolerance = 200 * np.finfo(dtype).eps
    np.testing.assert_allclose(out[2 : 2 + count], row[:, i] @ row[:, j : j + count], rtol=0, atol=tolerance)
    np.testing.assert_array_equal(out[:2], gradient[:2])
    expected, given = rows(by_a), gradient[2 : 2 + count].astype(np.float64)
    expected[:, j : j + count] += given * row[:, i : i + 1]
    expected[:, i] += row[:, j : j + count] @ given
    _products_gradient(a, gradient, by_a, step, i, j, count)
    np.testing.assert_allclose(rows(by_a), expected, rtol=0, atol=tolerance)


@jit
def _numbers(counter: Any, found: Any) -> None:
    for k in range(len(found)):
        found[k] = simd.take_number(counter)


def test_numbers_come_one_after_the_other() -> None:
    counter, found = np.array([3]), np.zeros(5, dtype=np.int64)
    _numbers(counter, found)
    np.testing.assert_array_equal(found, [3, 4, 5, 6, 7])


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the names of CPUs are those of x86")
@pytest.mark.skipif("DPSERVER_NARROW" in os.environ, reason="is what runs already")
@pytest.mark.parametrize("bits", [128, 256])
def test_narrower_vectors(bits: int, tmp_path: Path) -> None:
    if bits > 8 * 4 * simd.lanes(np.float32):
        pytest.skip("this CPU has no vectors so wide")
    here = Path(__file__).parent
    environment = {**os.environ, "DPSERVER_NARROW": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    tests = [here / f"test_{name}.py" for name in ("simd", "cpu", "fourier", "mesh", "waves")]
    command = [sys.executable, here / "narrow.py", str(bits), "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=here.parents[1], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
