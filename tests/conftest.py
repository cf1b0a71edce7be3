"""Fixtures of all tests, and one thread per process: the tests are many small computations."""

import os
import signal

# Read by numpy's and torch's libraries when they are first loaded, by this process and by those the tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path

import pytest

# A shell that starts the tests in the background has them ignore SIGINT, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference data that are not part of the repository; tests that need them are skipped where they are absent."""
    path = Path(os.environ.get("DPSERVER_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip(f"no reference data in {path}; DPSERVER_SHARED names another directory")
    return path
