"""Single kernels against numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from dpserver.kernels import cpu, simd
from dpserver.kernels.activations import CODES, activate, code
from dpserver.kernels.fitting import Matrix, multiply, pack, padded
from dpserver.models.networks import activation
from dpserver.models.packing import aligned

DTYPES = [np.float64, np.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 1, 1), (8, 128, 24), (13, 129, 50), (40, 700, 241), (5, 0, 7)])
def test_product(dtype: Any, size: tuple[int, int, int]) -> None:
    rng, (rows, depth, columns) = np.random.default_rng(1), size
    a, w = rng.normal(size=(rows, depth)).astype(dtype), rng.normal(size=(depth, columns)).astype(dtype)
    width, filled = padded(columns, dtype), -(-rows // simd.TILE_ROWS) * simd.TILE_ROWS
    bias, result = aligned(width, dtype), aligned(filled * width, dtype)
    bias[:columns] = rng.normal(size=columns)
    factor = aligned(filled * depth + 1, dtype)
    factor[: a.size] = a.ravel()
    arguments = Matrix(factor, 0, depth), Matrix(pack(w, width), 0, 0)
    multiply(*arguments, Matrix(bias, 0, 0), Matrix(result, 0, width), (rows, depth, width))
    found = result.reshape(filled, width)[:rows]
    expected = a.astype(np.float64) @ w + bias[:columns]
    tolerance = 100 * np.sqrt(depth + 1) * np.finfo(dtype).eps
    np.testing.assert_allclose(found[:, :columns], expected, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(found[:, columns:], 0)
    multiply(*arguments, Matrix(result, 0, width), Matrix(result, 0, width), (rows, depth, width))
    np.testing.assert_allclose(found[:, :columns], 2 * expected - bias[:columns], rtol=0, atol=2 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_product_does_not_depend_on_the_others(dtype: Any) -> None:
    rng = np.random.default_rng(2)
    a, width = rng.normal(size=(24, 300)).astype(dtype), padded(30, dtype)
    w, zeros = pack(rng.normal(size=(300, 30)).astype(dtype), width), aligned(width, dtype)

    def product(rows: np.ndarray) -> np.ndarray:
        result = aligned(len(rows) * width, dtype)
        size = (len(rows), 300, width)
        multiply(Matrix(rows.ravel(), 0, 300), Matrix(w, 0, 0), Matrix(zeros, 0, 0), Matrix(result, 0, width), size)
        return result.reshape(-1, width)

    whole, alone = product(a), product(np.concatenate([a[17:18], rng.normal(size=(7, 300)).astype(dtype)]))
    np.testing.assert_array_equal(whole[17], alone[0])


@pytest.mark.parametrize("name", [*CODES, "silut:1.5"])
def test_activation_functions_are_torchs(name: str) -> None:
    x = torch.linspace(-9, 9, 451, dtype=torch.float64, requires_grad=True)
    expected = activation(name)(x)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    found = np.array([activate(*code(name), v) for v in x.tolist()])
    np.testing.assert_allclose(found[:, 0], expected.detach(), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(found[:, 1], slope, rtol=1e-12, atol=1e-14)


def test_the_largest_arguments_do_not_overflow() -> None:
    for name in CODES:
        for x in (-800.0, 800.0):
            with np.errstate(all="raise"):
                y, slope = activate(*code(name), x)
            assert np.isfinite([y, slope]).all(), name


@pytest.mark.parametrize("n_threads", [1, 2, 3, 16])
@pytest.mark.parametrize(
    "counts",
    [(64, 128), (512, 1024), (1, 0), (0, 0), (100, 37, 3), (5000, 1, 0, 12000)],
    ids=lambda n: "-".join(map(str, n)),
)
def test_blocks_are_all_atoms_in_whole_tiles(counts: tuple[int, ...], n_threads: int) -> None:
    n, products = np.array(counts), np.array([8e5, 1e6, 0.0, 3e5])[: len(counts)]
    blocks = cpu.cut_into_blocks(n, products, n_threads, 96)
    low, high, species = blocks.T
    assert ((low < high) & (high - low <= 128)).all()
    bounds = np.cumsum(np.append(0, n))
    assert ((low >= bounds[species]) & (high <= bounds[species + 1])).all()
    assert ((low - bounds[species]) % simd.TILE_ROWS == 0).all()
    taken = np.concatenate([np.arange(a, b) for a, b in zip(low, high, strict=True)]) if len(blocks) else np.zeros(0)
    np.testing.assert_array_equal(np.sort(taken), np.arange(n.sum()))


def test_few_atoms_are_shared_evenly() -> None:
    blocks = cpu.cut_into_blocks(np.array([64, 128]), np.array([8e5, 1e6]), 2, 96)
    sizes = blocks[:, 1] - blocks[:, 0]
    assert (np.abs(np.sort(sizes) - [32, 64, 96]) <= simd.TILE_ROWS).all()
    assert sizes[0] == sizes.max()
    assert blocks[0, 2] == 1
