"""How much memory is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dpserver.models import memory


def test_what_is_in_use_and_what_is_left() -> None:
    left = memory.memory_left()
    if left is not None:
        assert 0 < left < 1 << 50
    assert memory.memory_in_use(torch.device("cpu")) > 1 << 20


def files(texts: dict[str, str]) -> Any:
    """Stand in for files of the system; all others do not exist."""

    def read_text(path: Path, *_: Any, **__: Any) -> str:
        if str(path) not in texts:
            raise FileNotFoundError(path)
        return texts[str(path)]

    return read_text


MEMINFO = {"/proc/meminfo": "MemTotal: 100 kB\nMemAvailable:  70 kB\nBuffers: 3 kB\n"}


def group(most: str, used: int) -> dict[str, str]:
    folder = "/sys/fs/cgroup/memory"
    return {
        f"{folder}.max": f"{most}\n",
        f"{folder}.current": f"{used}\n",
        f"{folder}.stat": "anon 5\ninactive_file 96\n",
    }


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({}, None),
        (MEMINFO, 70 * 1024),
        ({**MEMINFO, **group("max", 1000)}, 70 * 1024),
        ({**MEMINFO, **group("20000", 1000)}, 19_096),
        ({**MEMINFO, **group("2000000", 1000)}, 70 * 1024),
        (group("20000", 1000), 19_096),
    ],
)
def test_the_smaller_of_the_machine_and_the_jobs_limit(
    texts: dict[str, str], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", files(texts))
    assert memory.memory_left() == expected


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_left", lambda: 3 * 10**9)
    memory.check_room(2.9e9, "this")
    with pytest.raises(MemoryError, match=r"^this takes about 5.2 GB, and 3 GB of memory are left$"):
        memory.check_room(5.2e9, "this")
    monkeypatch.setattr(memory, "memory_left", lambda: None)
    memory.check_room(1e30, "this")
