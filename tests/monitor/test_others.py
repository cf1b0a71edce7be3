"""What a daemon says of others at the same endpoint."""

from __future__ import annotations

import json
import logging
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from dpserver.monitor.others import warn_of_others
from dpserver.transport.control import ControlServer


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    found = tmp_path / "dpserver"
    found.mkdir(mode=0o700)
    return found


def test_only_those_at_the_same_endpoint_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And neither this process itself, nor one that says something else, nor one that has died."""
    ours = {"pid": 7, "model": "a.pt", "endpoints": [{"endpoint": "unix:/tmp/ipi_a"}, {"endpoint": "unix:/tmp/ipi_b"}]}
    answers = {"7": ours, str(os.getpid()): ours, "8": {**ours, "pid": 8, "endpoints": []}, "9": ["nothing"]}
    with ExitStack() as stack, caplog.at_level(logging.WARNING):
        for name, answer in answers.items():
            text = json.dumps(answer).encode()
            stack.enter_context(ControlServer(folder / name, lambda text=text: text))
        warn_of_others(["unix:/tmp/ipi_a", "inet:localhost:31415"])
    warn_of_others(["unix:/tmp/ipi_a"])
    (record,) = [record for record in caplog.records if "dials it too" in record.message]
    assert record.message.startswith("unix:/tmp/ipi_a: dpserver 7, with the model a.pt, dials it too (dpserver status)")
