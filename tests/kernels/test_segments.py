"""Row sums against `index_add`, and their derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dpserver.kernels.segments import Segments, gather, spread, sum_outer

CPU = torch.device("cpu")
ROWS = {
    "ragged": [0, 0, 0, 1, 3, 3, 3, 3, 5],
    "empty at both ends": [2, 2, 3],
    "one edge": [4],
    "one row": [0] * 7,
    "no edges": [],
}
N_ROWS = 7


def segments(name: str) -> Segments:
    return Segments.from_rows(np.array(ROWS[name], dtype=np.int64), N_ROWS, CPU)


def draw(n: int, width: int, seed: int) -> Tensor:
    values = torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.requires_grad_()


@pytest.mark.parametrize("name", ROWS)
def test_layout(name: str) -> None:
    rows, s = np.array(ROWS[name], dtype=np.int64), segments(name)
    counts = np.bincount(rows, minlength=N_ROWS)
    np.testing.assert_array_equal(s.counts.numpy(), counts)
    assert s.width == counts.max()
    assert s.n_rows == N_ROWS
    edge = s.edge.view(N_ROWS, s.width).numpy()
    for row in range(N_ROWS):
        here = np.flatnonzero(rows == row)
        np.testing.assert_array_equal(edge[row, : len(here)], here)
        assert np.all(edge[row, len(here) :] == len(rows))
    np.testing.assert_array_equal(s.edge.numpy()[s.slot.numpy()], np.arange(len(rows)))


@pytest.mark.parametrize("name", ROWS)
def test_sum_outer_is_index_add(name: str) -> None:
    rows = torch.tensor(ROWS[name], dtype=torch.int64)
    a, b = draw(len(rows), 4, 1), draw(len(rows), 3, 2)
    expected = torch.zeros(N_ROWS, 4, 3, dtype=torch.float64).index_add(0, rows, a[:, :, None] * b[:, None, :])
    result = sum_outer(segments(name), a, b)
    torch.testing.assert_close(result, expected, rtol=1e-14, atol=1e-14)
    assert result.shape == (N_ROWS, 4, 3)


@pytest.mark.parametrize("name", [n for n in ROWS if ROWS[n]])
def test_first_and_second_derivatives(name: str) -> None:
    s, n = segments(name), len(ROWS[name])
    a, b = draw(n, 2, 4), draw(n, 3, 5)
    assert torch.autograd.gradcheck(lambda a, b: sum_outer(s, a, b), (a, b))
    assert torch.autograd.gradgradcheck(lambda a, b: sum_outer(s, a, b), (a, b))


def test_derivatives_without_edges() -> None:
    a, b = draw(0, 2, 6), draw(0, 3, 7)
    total = sum_outer(segments("no edges"), a, b).sum()
    grads = torch.autograd.grad(total, (a, b), create_graph=True)
    assert [tuple(g.shape) for g in grads] == [(0, 2), (0, 3)]


def test_no_rows_at_all() -> None:
    empty = Segments.from_rows(np.zeros(0, dtype=np.int64), 0, CPU)
    assert sum_outer(empty, draw(0, 2, 8), draw(0, 3, 9)).shape == (0, 2, 3)


def test_float32_stays_float32_and_sums_repeat_to_the_bit() -> None:
    rows = np.sort(np.random.default_rng(11).integers(0, 50, 4000))
    s = Segments.from_rows(rows, 50, CPU)
    a, b = draw(4000, 6, 12).float(), draw(4000, 4, 13).float()
    first, second = sum_outer(s, a, b), sum_outer(s, a, b)
    assert first.dtype == torch.float32
    assert torch.equal(first, second)


@pytest.mark.parametrize("names", [["ragged", "one edge"], ["no edges", "ragged", "one row"], ["no edges"]])
def test_joined_parts_have_the_edges_of_all(names: list[str]) -> None:
    parts = [segments(name) for name in names]
    joined = Segments.joined(parts)
    rows = np.concatenate([np.array(ROWS[name], dtype=np.int64) for name in names])
    values = draw(len(rows), 3, 1)
    pieces = zip(parts, values.split([len(ROWS[name]) for name in names]), strict=True)
    expected = sum(sum_outer(part, piece, piece) for part, piece in pieces)
    torch.testing.assert_close(sum_outer(joined, values, values), expected)
    np.testing.assert_array_equal(joined.counts, np.bincount(rows, minlength=N_ROWS))
    torch.testing.assert_close(gather(spread(values, joined), joined), values)
