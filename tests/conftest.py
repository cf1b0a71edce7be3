"""Fixtures of all tests, and one thread per process: the tests are many small computations."""

import logging
import os
import signal

# Read by numpy's and torch's libraries when they are first loaded, by this process and by those the tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell that starts the tests in the background has them ignore SIGINT, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_runtime_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where daemons keep their control sockets: those of the tests and of their user do not see each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        yield


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Serving sets the package's log up; the next test is to find it as it was."""
    logger = logging.getLogger("dpserver")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference data that are not part of the repository; tests that need them are skipped where they are absent."""
    path = Path(os.environ.get("DPSERVER_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip(f"no reference data in {path}; DPSERVER_SHARED names another directory")
    return path
