"""`make gpu` on machines that have little: what it says is missing, and that nothing else is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(blocked: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, in which some packages cannot be imported."""
    environment = {**os.environ, "PYTHONPATH": ".", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    head = f"import sys\nsys.path.insert(0, 'benchmarks')\nsys.modules.update(dict.fromkeys({blocked!r}))\n"
    command = [sys.executable, "-W", "error", "-c", head + code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_it_says_what_is_missing_and_where_it_comes_from() -> None:
    found = run(("numba", "pydantic", "triton"), "sys.argv[1:] = ['--repeats', '1']\nimport gpu\ngpu.main()")
    first, *lines = found.stderr.splitlines()
    assert found.returncode == 1
    assert first == "benchmarks/gpu.py cannot run here:"
    triton, numba, pydantic, *_, last = [line.strip() for line in lines]
    assert triton.startswith("triton cannot be imported (ModuleNotFoundError: ")
    assert "it comes with torch for CUDA" in triton
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert numba.endswith(f"or make gpu-packages GPU_PYTHON={version} GPU_MORE='numba llvmlite'")
    assert pydantic.endswith(f"or make gpu-packages GPU_PYTHON={version}")
    assert last.endswith(f"run it elsewhere, and copy what it makes to {ROOT}/.gpu/packages")


def test_a_device_is_missing_too() -> None:
    found = run((), "import torch\ntorch.cuda.is_available = lambda: False\nimport gpu\nprint(gpu.obstacles())")
    assert "sees no CUDA device" in found.stdout
    assert found.stdout.count("',") <= 1  # beside triton, where that is not installed


EVALUATE = """
import numpy as np
from tests.pretend_cuda import pretended
import gpu_path
from dpserver import neighbors
from dpserver.frames import Frames
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential

small = {**gpu_path.STANDARD, "fitting_net": {"neuron": [4, 4]}}
small["descriptor"] = {**small["descriptor"], "neuron": [2, 4], "axis_neuron": 2, "rcut": 4.0}
model, water = Potential(parse(ModelConfig, small), seed=1), gpu_path.WATER
few = np.r_[0:3, 64:70]
frames = Frames.concatenate([
    Frames.single(water.positions[few], water.types[few]),
    Frames.single(water.positions[few], water.types[few], water.cell[0] / 2),
])
exact = gpu_path.place(model, "cpu", "double").reference(frames)
with pretended():
    there = gpu_path.place(model, "cuda", "double")
    found = there.evaluate(frames)
    print(there.evaluated_by())
print(neighbors.builder(), gpu_path.relative(found.forces, exact.forces) < 1e-7, np.abs(exact.forces).max() > 0)
"""


def test_all_but_the_timing_works_with_what_such_machines_have() -> None:
    """The reference on the CPU and the kernels on a device that is pretended, without vesin and much else."""
    pytest.importorskip("triton")
    pytest.importorskip("numba")
    blocked = ("vesin", "ase", "scipy", "rich", "typer", "h5py", "yaml", "matplotlib", "mpi4py", "nvalchemiops")
    found = run(blocked, EVALUATE)
    assert not found.stderr
    kernels, agreement = found.stdout.splitlines()
    assert kernels.startswith("['fused kernels in float64 on cuda")
    assert agreement == "dpserver.neighbors.rows True True"
