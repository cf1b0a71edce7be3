"""The command line, run in the process of the test."""

from __future__ import annotations

import sys

import pytest

from dpserver.cli import app


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run a command and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["dpserver", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object, code: int = 0) -> None:
    """Run a command that has to end with this status."""
    assert exit_code(monkeypatch, *arguments) == code
