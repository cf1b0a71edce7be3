"""A real daemon in a process of its own, with a small model of random weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpserver.models import checkpoint
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential

MODEL = {
    "type_map": ["O", "H"],
    "descriptor": {"type": "se_e2_a", "sel": [20, 40], "rcut": 4.0, "neuron": [4, 8], "axis_neuron": 2},
    "fitting_net": {"neuron": [8, 8]},
}


def save_model(path: Path) -> None:
    """Write a model file."""
    checkpoint.save(path, Potential(parse(ModelConfig, MODEL)))


@contextmanager
def daemon(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Python with these arguments; killed at the end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def serve(model: Path, *endpoints: str) -> list[str]:
    """The command line of a daemon for water."""
    connect = [word for endpoint in endpoints for word in ("--connect", endpoint)]
    return ["--model", str(model), "--species", "O H H", *connect]


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
