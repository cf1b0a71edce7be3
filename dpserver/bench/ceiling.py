"""What a machine reaches in a product of the size of a first fitting layer: nothing that is made of such is faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch

_ROWS, _DEPTH, _COLUMNS = 256, 1600, 240
_ROWS_ON_GPU: Final = 32768
_REPEATS: Final = 20


def ceiling(dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Operations per second in a matrix product, by what computes it.

    Args:
        dtype: float64 or float32.
        device: on the CPU one core is measured, by torch's library and by our kernels.

    Returns:
        GFLOP/s of `torch`, and of `dpserver` on a CPU.
    """
    is_cpu = device.type == "cpu"
    rows = _ROWS if is_cpu else _ROWS_ON_GPU
    a, b = (torch.rand(*shape, dtype=dtype, device=device) for shape in ((rows, _DEPTH), (_DEPTH, _COLUMNS)))
    out = torch.empty(rows, _COLUMNS, dtype=dtype, device=device)

    def multiply() -> None:
        torch.mm(a, b, out=out)
        if not is_cpu:
            torch.cuda.synchronize(device)

    found = {"torch": _fastest(multiply)}
    if is_cpu:
        found["dpserver"] = _fastest(_ours(a.numpy(), b.numpy()))
    return {name: 2e-9 * rows * _DEPTH * _COLUMNS / seconds for name, seconds in found.items()}


def _ours(a: Any, b: Any) -> Callable[[], None]:
    """The product by our kernel."""
    from dpserver.kernels.fitting import Matrix, multiply, pack, padded
    from dpserver.models.packing import aligned

    width = padded(_COLUMNS, a.dtype)
    packed, left = aligned(_DEPTH * width, a.dtype), aligned(a.size, a.dtype)
    packed[:], left[:] = pack(b, width), a.ravel()
    c = Matrix(aligned(_ROWS * width, a.dtype), 0, width)
    factors = Matrix(left, 0, _DEPTH), Matrix(packed, 0, 0)
    return lambda: multiply(*factors, c, c, (_ROWS, _DEPTH, width))


def _fastest(run: Callable[[], None]) -> float:
    """Least of some times, s, with one thread of torch on the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run()
        times = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return float(np.min(times))
