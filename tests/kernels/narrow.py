"""Run tests as on a CPU with narrower vectors: `narrow.py 128|256 PYTEST_ARGUMENTS`."""

from __future__ import annotations

import os
import sys

import pytest

BITS = int(sys.argv[1])
os.environ["NUMBA_CPU_NAME"] = {128: "nehalem", 256: "haswell"}[BITS]
os.environ["NUMBA_CPU_FEATURES"] = ""

import llvmlite.binding as llvm  # noqa: E402

real = dict(llvm.get_host_cpu_features())
wide = ("avx512", "avx2") if BITS == 128 else ("avx512",)
llvm.get_host_cpu_features = lambda: {name: has and not name.startswith(wide) for name, has in real.items()}

from dpserver.kernels import simd  # noqa: E402

assert simd.lanes("float32") * 32 == BITS
sys.exit(pytest.main(sys.argv[2:]))
