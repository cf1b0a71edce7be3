"""Whether vectors are written out is decided by what numba compiles for, which need not be this machine's CPU."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from dpserver.neighbors.rows import build_rows
from tests import structures

ROOT = Path(__file__).parents[2]
SEARCH = """
import sys
import numpy as np
from dpserver.neighbors.rows import build_rows
from tests import structures
rows = build_rows(structures.triclinic(), 4.0, 2)
np.savez(sys.argv[1], starts=rows.starts, neighbour=rows.neighbour, shift=rows.shift, incoming=rows.incoming)
"""
TELL = """
from dpserver.kernels import simd
from dpserver.neighbors import selection
print(selection.HAS_VECTORS, 4 * simd.lanes("float64"))
"""


def run(script: str, folder: Path, settings: dict[str, str]) -> str:
    """Run Python in a process where numba has other settings, and compile there anew."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    environment = {**clean, "NUMBA_CACHE_DIR": str(folder), **settings}
    command = [sys.executable, "-c", script, str(folder / "rows.npz")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "settings", [{"NUMBA_CPU_NAME": "generic"}, {"NUMBA_CPU_FEATURES": ""}, {"NUMBA_ENABLE_AVX": "0"}]
)
def test_no_vectors_that_numba_is_not_to_use(settings: dict[str, str], tmp_path: Path) -> None:
    assert run(TELL, tmp_path, settings).split() == ["False", "8"]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the names of features are those of x86")
def test_vectors_that_numba_is_to_use(tmp_path: Path) -> None:
    settings = {"NUMBA_CPU_FEATURES": "+avx2,+avx512f,+avx512vl"}
    assert run(TELL, tmp_path, settings).split() == ["True", "32"]


def test_the_same_list_for_a_generic_cpu(tmp_path: Path) -> None:
    run(SEARCH, tmp_path, {"NUMBA_CPU_NAME": "generic"})
    expected = build_rows(structures.triclinic(), 4.0, 2)
    with np.load(tmp_path / "rows.npz") as found:
        for name in found.files:
            np.testing.assert_array_equal(found[name], getattr(expected, name))
