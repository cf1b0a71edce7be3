"""`make chaos`: long runs of what `make test` samples. The seed and what was measured are printed at the end."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

SEED = int(os.environ.get("DPSERVER_CHAOS_SEED", random.SystemRandom().randrange(1_000_000)))
_REPORTED: list[str] = []


@pytest.fixture(scope="session")
def chaos_seed() -> int:
    """Of every random choice; DPSERVER_CHAOS_SEED gives it."""
    _REPORTED.append(f"again: make chaos DPSERVER_CHAOS_SEED={SEED}")
    return SEED


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say something behind the last line of the tests."""
    return lambda text: _REPORTED.append(f"{request.node.name}: {text}")


def pytest_report_header() -> str:
    return f"chaos: DPSERVER_CHAOS_SEED={SEED}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _REPORTED:
        terminalreporter.section("chaos")
        for line in _REPORTED:
            terminalreporter.line(line)
