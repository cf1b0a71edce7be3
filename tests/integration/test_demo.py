"""The demo from the command line: real i-PI, the real daemon, a model of random weights."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dpserver.demo.analysis import Distribution, write_distribution
from dpserver.demo.trajectory import read_properties
from dpserver.models import checkpoint
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from tests.patience import JOB_PATIENCE

pytest.importorskip("ipi")
pytest.importorskip("matplotlib")

MODEL = {
    "type_map": ["O", "H"],
    "descriptor": {"type": "se_e2_a", "sel": [20, 40], "rcut": 4.0, "neuron": [4, 8], "axis_neuron": 2},
    "fitting_net": {"neuron": [8, 8]},
}
WATER = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])


@pytest.fixture
def command(tmp_path) -> list[str]:
    """`dpserver demo` on two waters, everything below a temporary directory."""
    checkpoint.save(tmp_path / "w.pt", Potential(parse(ModelConfig, MODEL)))
    atoms = np.concatenate([WATER, WATER + np.array([3.0, 1.0, 2.0])])
    lines = [f"{s} {x:.6f} {y:.6f} {z:.6f}" for s, (x, y, z) in zip("OHHOHH", atoms, strict=True)]
    comment = "# CELL(abcABC): 7.0 7.0 7.0 90 90 90 positions{angstrom} cell{angstrom}"
    (tmp_path / "water.xyz").write_text("\n".join(["6", comment, *lines, ""]))
    edges = np.arange(0.0, 3.5, 0.02)
    write_distribution(tmp_path / "rdf.csv", Distribution(edges, {"OO": np.ones(len(edges) - 1)}), "made up")
    return [
        *(sys.executable, "-m", "dpserver", "demo", "--model", "w.pt", "--structure", "water.xyz"),
        *("--reference", "rdf.csv", "--beads", "2", "--output", "run"),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def test_a_run_leaves_a_picture(command, tmp_path):
    done = subprocess.run(
        [*command, "--steps", "7"], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "water.png").read_bytes().startswith(b"\x89PNG")
    assert read_properties(tmp_path / "run" / "simulation.out")["step"][-1] == 7
    assert done.stdout.startswith("starting i-PI and dpserver")
    assert "step 7 of 7" in done.stdout
    assert "picture: run/water.png" in done.stdout


def test_an_interrupted_run_leaves_a_picture_and_no_process(command, tmp_path):
    demo = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("step"):
            break
    demo.send_signal(signal.SIGINT)
    text = demo.communicate(timeout=JOB_PATIENCE)[0]
    assert demo.returncode == 130, text
    assert "interrupted: drawing what there is" in text
    assert (tmp_path / "run" / "water.png").exists()
    assert not Path(f"/tmp/ipi_dpserver_demo_{demo.pid}").exists()
