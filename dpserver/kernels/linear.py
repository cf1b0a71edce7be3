"""Linear algebra on numpy's arrays by torch, because torch can be told to use one thread, and numpy cannot.

On a machine whose cores are busy, two pools of threads that wait for each other make seconds of milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from dpserver.frames import Floats


@contextmanager
def at_most(n_threads: int) -> Iterator[None]:
    """Let torch compute in so many threads at most for a while, the calling one among them."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, n_threads))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in the calling thread alone for a while."""
    with at_most(1):
        yield


def product(*factors: Floats) -> Floats:
    """The matrix product of several factors, from the left; a factor may be a stack of matrices."""
    result = torch.from_numpy(np.ascontiguousarray(factors[0]))
    for factor in factors[1:]:
        result = result @ torch.from_numpy(np.ascontiguousarray(factor))
    return np.asarray(result.numpy())


def right_singular_vectors(matrix: Floats) -> Floats:
    """As rows, the largest singular value first, (min(m, n), n)."""
    return np.asarray(torch.linalg.svd(torch.from_numpy(matrix), full_matrices=False)[2].numpy())


def pseudo_inverse(matrix: Floats) -> Floats:
    """The inverse on the space that a matrix reaches, (n, m)."""
    return np.asarray(torch.linalg.pinv(torch.from_numpy(matrix)).numpy())
