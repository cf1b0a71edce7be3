"""Run tests as on a CPU with narrower vectors: `narrow.py 128|256 PYTEST_ARGUMENTS`."""

from __future__ import annotations

import os
import sys

import pytest

BITS = int(sys.argv[1])
os.environ["NUMBA_CPU_NAME"] = {128: "nehalem", 256: "haswell"}[BITS]
os.environ["NUMBA_CPU_FEATURES"] = {128: "", 256: "+avx2,+fma"}[BITS]

from dpserver.kernels import simd  # noqa: E402

assert simd.lanes("float32") * 32 == BITS
sys.exit(pytest.main(sys.argv[2:]))
