"""How much memory is in use, and how much is left."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def memory_in_use(device: torch.device) -> int:
    """Count the bytes that this process holds: on a GPU what torch has reserved there, else its resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    try:
        n_pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the most there has been
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
    return n_pages * resource.getpagesize()


def memory_left() -> int | None:
    """Count the bytes that this process can still take from the machine; None where the system does not say.

    What a job's own limit leaves (control groups) counts, where that is less.
    """
    left = [n for n in (_left_on_the_machine(), _left_in_the_group()) if n is not None]
    return min(left, default=None)


def check_room(needed: float, purpose: str) -> None:
    """Refuse what would fill the memory, while the system would rather end this process than say so.

    Args:
        needed: bytes.
        purpose: what for, for the message.

    Raises:
        MemoryError: that is more than there is.
    """
    left = memory_left()
    if left is not None and needed > left:
        raise MemoryError(f"{purpose} takes about {needed / 1e9:.2g} GB, and {left / 1e9:.2g} GB of memory are left")


def _left_on_the_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def _left_in_the_group() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        most, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return int(most) - int(used) + int(cached.get("inactive_file", 0)) if most.isdigit() else None
