"""The Python of the README runs as it stands there."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import JOB_PATIENCE, PATIENCE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def run(snippet: str) -> float:
    """Run a snippet in a process of its own and return the energy it prints."""
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=JOB_PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[0])


def test_both_ways_of_ase_give_one_energy():
    over_socket, in_process = SNIPPETS
    command = re.search(r"`dpserver (--model \S+ --template \S+) --port 31415`", README)
    assert command is not None
    port = str(free_port())
    daemon = subprocess.Popen(
        [sys.executable, "-m", "dpserver", *command[1].split(), "--port", port], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        assert run(over_socket.replace("31415", port)) == pytest.approx(run(in_process), rel=1e-10)
    finally:
        daemon.terminate()
        assert daemon.wait(PATIENCE) == 0
