"""Fixtures of all tests, and one thread per process: the tests are many small computations."""

import logging
import os
import signal

# Read by numpy's and torch's libraries when they are first loaded, by this process and by those the tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["COLUMNS"] = "80"  # what is printed is the same, however wide the terminal is that the tests run in
# Where there is no GPU, Triton's kernels are interpreted.
os.environ.setdefault("TRITON_INTERPRET", "0" if os.path.exists("/dev/nvidiactl") else "1")

from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell that starts the tests in the background has them ignore SIGINT, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side, those of a file stay together, and with them what its fixtures have made."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


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
def peer_python() -> Path:
    """A Python with DeePMD-kit, its backends and dpserver; tests that need it are skipped where there is none.

    DPSERVER_PEER names it, or the folder of its environment; `make test-peers` makes `.venv-peer`.
    """
    path = Path(os.environ.get("DPSERVER_PEER", Path(__file__).resolve().parents[1] / ".venv-peer"))
    python = path / "bin" / "python" if path.is_dir() else path
    if not python.is_file():
        pytest.skip(f"no Python with DeePMD-kit at {python}; `make test-peers` makes one")
    return python.absolute()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference data that are not part of the repository; tests that need them are skipped where they are absent."""
    path = Path(os.environ.get("DPSERVER_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip(f"no reference data in {path}; DPSERVER_SHARED names another directory")
    return path
